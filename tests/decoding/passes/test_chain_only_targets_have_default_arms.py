"""Commands without settings draft chains where no trees are verified; trees by name are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.rollouts.decode.evaluation import EvaluateArgs, evaluate
from draftgym.rollouts.decode.generation import GenerateArgs, generate
from draftgym.rollouts.traces.collect import CollectArgs, collect
from draftgym.rollouts.traces.tracer import DEFAULT_ARMS
from tests.architectures import ARCHITECTURES
from tests.tiny import tiny_model
from tests.tiny_text import VOCAB, byte_tokenizer, save_drafters, save_prompts


@pytest.fixture(params=["lfm2", "gpt2"])
def name(request: pytest.FixtureRequest) -> str:
    """A hybrid model, and one that verifies trees."""
    return str(request.param)


@pytest.fixture
def options(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What commands are told of a tiny target and its drafters."""
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DRAFTGYM_CALIBRATION_SECONDS", "0.1")
    folder = tmp_path / name
    model = tiny_model(name, vocab_size=VOCAB, **ARCHITECTURES[name] | layers_of(name))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    target = load_target(str(folder), "float32", 1)
    given = {"target": str(folder), "dtype": "float32", "threads": 1, "max_new_tokens": 6}
    return given | {"drafters": tuple(save_drafters(target, tmp_path))}


def prompts_in(folder: Path) -> str:
    """A short prompt file."""
    return str(save_prompts(folder / "prompts.jsonl", 1))


def layers_of(name: str) -> dict[str, Any]:
    """Six layers: tiny drafters read the sixth."""
    if name == "gpt2":
        return {"n_layer": 6}
    return {"num_hidden_layers": 6, "layer_types": ["conv", "full_attention"] * 3}


def test_defaults_ask_for_no_tree_where_none_is_verified(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    assert generate(GenerateArgs(prompt="Why?", **options)).tokens
    compared = evaluate(EvaluateArgs(prompts=prompts_in(tmp_path), **options))
    assert not compared.differences
    assert {row.policy for row in compared.rows} >= {"plain", "eagle3", "dflash", "ngram"}
    asked = {"out": tmp_path / "traces", "prompts": prompts_in(tmp_path)}
    traces = collect(CollectArgs(**asked, **options))
    trees = name == "gpt2"
    fitting = [arm for arm in DEFAULT_ARMS if trees or not parse_arm(arm).nodes]
    assert list(traces.origin.arms) == fitting


@pytest.mark.parametrize("policy", ["eagle3:3x6", "random@eagle3:3x6,ngram:4"])
def test_named_trees_are_refused_where_none_is_verified(
    name: str, policy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if name == "gpt2":
        assert generate(GenerateArgs(prompt="Why?", policy=policy, **options)).tokens
        return
    with pytest.raises(DraftgymError, match="verifies chains only"):
        generate(GenerateArgs(prompt="Why?", policy=policy, **options))
    with pytest.raises(DraftgymError, match="verifies chains only"):
        chosen = ("plain", policy)
        evaluate(EvaluateArgs(policies=chosen, prompts=prompts_in(tmp_path), **options))
    with pytest.raises(DraftgymError, match="verifies chains only"):
        collect(CollectArgs(out=tmp_path / "traces", arms=("eagle3:3x6",), **options))
