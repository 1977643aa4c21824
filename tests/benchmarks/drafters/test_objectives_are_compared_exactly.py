"""The comparison of objectives says what live decoding would, and measures nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.drafters import objectives
from benchmarks.drafters.held_out_texts import write_texts
from benchmarks.drafters.measure import conditions
from benchmarks.drafters.objectives import ObjectivesArgs, compare_objectives
from benchmarks.report import markdown
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.cost_model import Curve, write_cost_model
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.drafters.loading import load_folder
from draftgym.policies.routers.rules import FixedPolicy
from tests.handmade.traces import COST
from tests.tiny import tiny_eagle3
from tests.tiny_text import save_drafters, save_prompts, save_target

SHAPES = ("3", "4x8")
TOKENS = 14
PROMPTS = 6


@dataclass(frozen=True)
class Files:
    """What a user has on disk: a target, checkpoints of it, prompts."""

    target: Target
    names: dict[str, Path]
    prompts: Path

    def args(self, folder: Path, *names: str, **changes: Any) -> ObjectivesArgs:
        """Arguments that compare some checkpoints."""
        made = ObjectivesArgs(
            checkpoints=tuple(f"{name}={self.names[name]}" for name in names),
            baseline=names[0],
            prompts=str(self.prompts),
            max_new_tokens=TOKENS,
            shapes=SHAPES,
            texts=folder / "texts",
            target=self.target.name,
            threads=1,
            json=folder / "result.json",
        )
        return replace(made, **changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("user")
    target = load_target(str(save_target(folder / "target")), "float32", 1)
    names = {"dflash": save_drafters(target, folder)[1]}
    for name, seed in {"eagle3": 1, "other-1": 8, "other-2": 9}.items():
        names[name] = folder / f"trained-{name}"
        save_checkpoint(tiny_eagle3(target, seed, draft_vocab=200).network, names[name], target)
    return Files(target, names, save_prompts(folder / "prompts.jsonl"))


@pytest.fixture(scope="module")
def shared(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the first call of all tests leaves its texts."""
    return tmp_path_factory.mktemp("shared")


def live(files: Files, name: str, shape: str, temperature: float, at: Path) -> list[Generation]:
    """Every text by decoding with one arm, prompt by prompt."""
    drafter = load_folder(files.names[name], files.target)
    policy = FixedPolicy(parse_arm(f"{drafter.name}:{shape}"))
    decoder = SpeculativeDecoder(files.target, {drafter.name: drafter}, policy)
    texts = write_texts(files.args(at, name).writing, files.target)
    made = []
    for one in (text for text in texts if text.temperature == temperature):
        prompt = one.text.tokens[: one.text.prompt_length]
        text = decoder.generate(prompt, TOKENS, temperature, one.seed)
        assert torch.equal(torch.tensor(text.tokens), one.text.tokens[one.text.prompt_length :])
        made.append(text)
    return made


@pytest.mark.parametrize("name", ["eagle3", "dflash"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_are_those_of_live_decoding(
    files: Files, shared: Path, tmp_path: Path, name: str, temperature: float
) -> None:
    rule = "coupled" if temperature else "greedy"
    result = compare_objectives(files.args(shared, name, json=tmp_path / "result.json"))
    (measured,) = result["measured"].values()
    for shape in SHAPES:
        texts = live(files, name, shape, temperature, shared)
        condition = f"T={temperature:g} {rule} {shape}"
        assert measured[condition]["rounds"] == [len(text.rounds) for text in texts]
        figures = result["figures"][name][condition]
        tokens = sum(len(text.tokens) - 1 for text in texts)
        length = tokens / sum(len(text.rounds) for text in texts)
        assert figures["groups"]["all"]["acceptance_length"] == pytest.approx(length)
        chat = sum(len(text.rounds) for text in texts[:2])  # prompts come category by category
        assert figures["groups"]["chat"]["acceptance_length"] == pytest.approx(
            2 * (TOKENS - 1) / chat
        )
        assert length > 1 or name == "dflash", "or nothing was compared"


def test_predicted_seconds_are_those_of_the_live_rounds(
    files: Files, shared: Path, tmp_path: Path
) -> None:
    tree = {depth: Curve((1, 64), (0.1 * depth, 0.3 * depth)) for depth in (1, 4)}
    model = replace(COST, trees={"eagle3": tree})
    write_cost_model(model, tmp_path / "costs.json")
    args = files.args(shared, "eagle3", json=tmp_path / "result.json")
    result = compare_objectives(replace(args, cost_model=tmp_path / "costs.json"))
    for shape in SHAPES:
        mine = plain = 0.0
        for text in live(files, "eagle3", shape, 0.0, shared):
            plain += sum(model.step_seconds(text.prompt_tokens + i) for i in range(TOKENS - 1))
            mine += sum(
                model.round_seconds(r.asked, len(r.drafted), r.context)
                for r in (item.record for item in text.rounds)
            )
        figures = result["figures"]["eagle3"][f"T=0 greedy {shape}"]
        assert figures["predicted_speedup"] == pytest.approx(plain / mine)


def test_seeds_stand_together_and_the_same_weights_are_no_better(
    files: Files, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = f"both={files.names['other-1']},{files.names['other-2']}"
    args = replace(
        files.args(shared, "eagle3", json=tmp_path / "result.json"),
        checkpoints=(f"init={files.names['eagle3']}", f"same={files.names['eagle3']}", both),
        baseline="init",
        control="same",
    )
    result = compare_objectives(args)
    printed, written = capsys.readouterr().out, markdown(args.json)
    assert "| both |" in written and "over same, in %" in written
    assert "over init" in printed and "over same" in printed
    assert len(result["measured"]) == 3, "the same weights are measured once"
    for condition in map(str, conditions(args.temperatures, SHAPES)):
        figures = {name: rows[condition] for name, rows in result["figures"].items()}
        assert figures["same"]["groups"]["all"]["over"]["init"] == [0.0, 0.0, 0.0]
        first, second = sorted(figures["both"]["acceptance_by_seed"])
        assert figures["both"]["groups"]["all"]["acceptance_length"] == first <= second
        over = figures["both"]["groups"]["all"]["over"]["init"]
        start = figures["init"]["groups"]["all"]["acceptance_length"]
        assert over[0] == pytest.approx(first / start - 1) and over[1] <= over[0] <= over[2]


def test_fewer_prompts_are_the_first_of_each_category_with_the_same_texts(
    files: Files, shared: Path, tmp_path: Path
) -> None:
    args = files.args(shared, "eagle3", json=tmp_path / "all.json")
    whole = compare_objectives(args)
    few = compare_objectives(replace(args, limit_per_category=1, json=tmp_path / "few.json"))
    assert len(whole["texts"]) == 2 * PROMPTS and len(few["texts"]) == PROMPTS
    for condition in map(str, conditions((0.0, 1.0), SHAPES)):
        (all_of,), (some,) = (
            [one[condition]["rounds"] for one in result["measured"].values()]
            for result in (whole, few)
        )
        assert some == all_of[::2]


def counting(monkeypatch: pytest.MonkeyPatch, most: int) -> list[str]:
    """Notes whose drafters are measured; the run dies when it wants one too many."""
    measured: list[str] = []
    original: Callable[..., Any] = objectives.measure_drafter

    def counted(drafter: Any, *arguments: Any) -> Any:
        if len(measured) == most:
            raise KeyboardInterrupt
        measured.append(drafter.fingerprint)
        return original(drafter, *arguments)

    monkeypatch.setattr(objectives, "measure_drafter", counted)
    return measured


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_finds_the_same(
    files: Files, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = files.args(shared, "eagle3", "dflash", "other-1", json=tmp_path / "whole.json")
    whole = compare_objectives(args)
    args = replace(args, json=tmp_path / "result.json")
    with monkeypatch.context() as patch:
        before = counting(patch, most=1)
        with pytest.raises(KeyboardInterrupt):
            compare_objectives(args)
        assert list(json.loads(args.json.read_text())["measured"]) == before
    with monkeypatch.context() as patch:
        after = counting(patch, most=9)
        again = compare_objectives(args)
        assert before + after == list(whole["measured"])
        compare_objectives(replace(args, checkpoints=args.checkpoints[:2]))
        assert len(after) == 2, "nothing is measured twice"
    for key in ("measured", "figures", "texts", "settings"):
        assert again[key] == whole[key]
    assert not list(tmp_path.glob(".*")), "no unfinished file is left"


def test_texts_of_another_target_or_of_other_settings_are_refused(
    files: Files, shared: Path, tmp_path: Path
) -> None:
    args = files.args(shared, "eagle3", json=tmp_path / "result.json")
    compare_objectives(args)
    folder = str(save_target(tmp_path / "target", seed=5))
    drafter = save_drafters(load_target(folder, "float32", 1), tmp_path / "drafters")[0]
    strange = replace(args, target=folder, checkpoints=(f"eagle3={drafter}",))
    fresh = tmp_path / "fresh.json"
    for changed, word in [
        (replace(strange, json=fresh), "fingerprint"),
        (replace(args, json=fresh, max_new_tokens=9), "max_new_tokens"),
        (replace(args, json=fresh, seed=3), "seed"),
    ]:
        with pytest.raises(DraftgymError, match=word) as caught:
            compare_objectives(changed)
        assert "--texts" in caught.value.remedy
    other = replace(args, seed=3, texts=tmp_path / "texts")
    with pytest.raises(DraftgymError, match="seed") as caught:
        compare_objectives(other)
    assert "--json" in caught.value.remedy
    args.json.write_text('{"settings": 3')
    with pytest.raises(DraftgymError, match=r"result\.json holds no results"):
        compare_objectives(args)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"checkpoints": ("runs/eagle3",)}, "runs/eagle3"),
        ({"checkpoints": ("a=x", "a=y")}, "a=y"),
        ({"checkpoints": ("a=",)}, "a="),
        ({"baseline": "nobody"}, "nobody"),
        ({"control": "nobody"}, "nobody"),
        ({"shapes": ()}, "--shapes"),
        ({"detail": "5"}, "--detail"),
        ({"shapes": ("9x4",)}, "9x4"),
        ({"shapes": ("99",)}, "99"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    files: Files, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(DraftgymError) as caught:
        compare_objectives(files.args(tmp_path, "eagle3", **changes))
    assert word in caught.value.problem and caught.value.remedy
    assert not (tmp_path / "texts").exists()
