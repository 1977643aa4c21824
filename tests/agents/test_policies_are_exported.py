"""`draftgym export-policy` writes what engines take of any policy, and tells what that loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from draftgym import cli
from draftgym.agents.serving.export import ExportPolicyArgs, export_policy
from draftgym.agents.serving.export_costs import ExportCostsArgs, export_costs
from draftgym.agents.serving.fit import ForecastFitting, fit_forecast
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.rule import Ladder
from draftgym.policies.serving.stored import save_rule
from draftgym.policies.serving.tokens import save_forecast
from tests.handmade.host import handmade_host
from tests.handmade.served import ARMS, LENGTHS, served_traces
from tests.policies.engine_schemas import (
    check_openvino,
    check_sglang,
    check_sps,
    check_tensorrt_llm,
    check_vllm,
)
from tests.traces import save_traces

SIZES = (1, 16)


@pytest.fixture
def args(tmp_path: Path) -> ExportPolicyArgs:
    traces = served_traces(12)
    parts = replace(traces, texts=traces.texts[:7]), replace(traces, texts=traces.texts[7:])
    return ExportPolicyArgs(
        "vllm",
        tmp_path / "out",
        traces=save_traces(parts[0], tmp_path / "traces"),
        heldout=save_traces(parts[1], tmp_path / "heldout"),
        sizes=SIZES,
        json=tmp_path / "kept.json",
    )


def written(args: ExportPolicyArgs) -> str:
    export_policy(args)
    return args.out.read_text(encoding="utf-8")


def test_tuned_lengths_go_to_every_engine(
    args: ExportPolicyArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    args = replace(args, heldout=None)
    check_vllm(json.loads(written(args)))
    assert "vllm serve MODEL --max-num-seqs 16" in capsys.readouterr().out
    check_sglang(json.loads(written(replace(args, engine="sglang", method="EAGLE3"))))
    check_tensorrt_llm(yaml.safe_load(written(replace(args, engine="tensorrt-llm"))))
    for entry in json.loads(written(replace(args, engine="openvino"))).values():
        check_openvino(entry)


def test_what_is_kept_is_told_and_written(
    args: ExportPolicyArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    export_policy(replace(args, policy="ngram:8>small:5"))
    told = capsys.readouterr().out
    assert "What is kept of ngram:8>small:5" in told and "gain kept" in told
    assert "ngram: not asked there" in told
    assert args.json is not None
    figures = json.loads(args.json.read_text(encoding="utf-8"))
    assert [one["size"] for one in figures["kept"]] == [*SIZES, None]
    for one in figures["kept"][:-1]:
        assert one["export"]["value"] < one["policy"]["value"]


def test_sglangs_own_rule_is_kept_whole(
    args: ExportPolicyArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    args = replace(args, engine="sglang", policy="adaptive", method="EAGLE3")
    check_sglang(json.loads(written(args)))
    assert "the rule itself" in capsys.readouterr().out
    assert args.json is not None
    figures = json.loads(args.json.read_text(encoding="utf-8"))
    assert all(one["against"]["value"] == 1 for one in figures["kept"])


@pytest.mark.parametrize("policy", ["small:3", "goodput", "adaptive"])
def test_arms_and_rules_are_named(args: ExportPolicyArgs, policy: str) -> None:
    check_vllm(json.loads(written(replace(args, policy=policy, heldout=None))))


def test_files_of_engines_become_those_of_others(args: ExportPolicyArgs, tmp_path: Path) -> None:
    made = {"vllm": "[[1, 1, 7], [2, 16, 3]]"}
    source = tmp_path / "source"
    source.write_text(f'{{"num_speculative_tokens_per_batch_size": {made["vllm"]}}}')
    args = replace(args, heldout=None, method=None)
    for engine in ("openvino", "tensorrt-llm", "sglang", "vllm"):
        method = "EAGLE3" if engine == "sglang" else None
        out = tmp_path / engine
        export_policy(
            replace(args, engine=engine, out=out, policy=str(source), method=method)  # type: ignore[arg-type]
        )
        source = out
    body = json.loads(source.read_text(encoding="utf-8"))
    assert str(body["num_speculative_tokens_per_batch_size"]) == made["vllm"]


def test_folders_of_policies_are_exported(args: ExportPolicyArgs, tmp_path: Path) -> None:
    traces = served_traces(12)
    rule = LengthBySize(Ladder.of("small", LENGTHS), {1: 5, 16: 1})
    save_rule(rule, traces.origin, tmp_path / "rule", {})
    body = json.loads(written(replace(args, policy=str(tmp_path / "rule"))))
    assert body["num_speculative_tokens_per_batch_size"] == [[1, 1, 5], [2, 16, 1]]
    load = make_load(traces, ARMS, ServerSettings(4, 12, AtOnce()), 2)
    fitting = ForecastFitting(examples=2_000, epochs=2, batch_size=256, width=16)
    save_forecast(fit_forecast(load, fitting), traces.origin, tmp_path / "run" / "policy", {})
    check_vllm(json.loads(written(replace(args, policy=str(tmp_path / "run" / "policy")))))


def test_a_threshold_needs_no_traces(args: ExportPolicyArgs, tmp_path: Path) -> None:
    sure = ExportPolicyArgs("openvino", tmp_path / "sure.json", policy="confidence:0.4")
    check_openvino(json.loads(written(sure)))
    with pytest.raises(DraftgymError, match="not sure") as refused:
        export_policy(replace(args, policy="confidence:0.4"))
    assert "openvino" in (refused.value.remedy or "")


def test_costs_go_to_sglang(tmp_path: Path) -> None:
    host = tmp_path / "host.json"
    host.write_text(handmade_host().to_json())
    for costs in ("llama3.1-8b-h100", str(host)):
        export_costs(ExportCostsArgs(tmp_path / "sps.json", costs))
        check_sps(json.loads((tmp_path / "sps.json").read_text(encoding="utf-8")))
    with pytest.raises(DraftgymError, match="blocks of 0"):
        export_costs(ExportCostsArgs(tmp_path / "sps.json", block=0))


def test_mistakes_are_told_with_a_remedy(args: ExportPolicyArgs, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("{}")
    for wrong, problem in [
        (replace(args, traces=None), "on which texts"),
        (replace(args, match=3), "cannot look up before"),
        (replace(args, policy="nothing:3"), "nothing"),
        (replace(args, policy=str(tmp_path / "empty")), "no lengths by size"),
        (replace(args, policy=str(tmp_path)), "no policy.json"),
        (replace(args, drafter="eagle3"), "no chain of 'eagle3'"),
        (replace(args, longest=1), "as short as"),
        (replace(args, sizes=(4, 2)), "sizes"),
        (replace(args, out=tmp_path), "cannot write"),
    ]:
        with pytest.raises(DraftgymError, match=problem) as refused:
            export_policy(wrong)
        assert refused.value.remedy


def test_the_commands_are_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run("export-costs", [str(tmp_path / "sps.json"), "--sizes", "1", "8"])
    assert "steps of 1 to 8 requests" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.run("export-policy", ["vllm", str(tmp_path / "out")])
    assert "--traces" in capsys.readouterr().err
