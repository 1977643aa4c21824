"""Costs are of this machine and these weights; what is asked for is measured, once, in a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import draftgym.decoding.costs.calibration as calibration
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.calibration import contexts_up_to, how_sure, load_cost_model
from draftgym.decoding.costs.measuring import measure
from draftgym.decoding.costs.pieces import CATCH_UP, DRAFT, TREE, VERIFY, Piece, Pieces, everything
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from draftgym.rollouts.decode.evaluation import chosen_policies
from tests.tiny import PROMPTS, numbered_target, tiny_eagle3, tiny_target

ARMS = [parse_arm(text) for text in ("eagle3:2x4", "dflash:4", "ngram:4", "plain")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache."""
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path))
    return tmp_path / "cost-models"


@pytest.fixture
def measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Piece]]:
    """What was measured, call by call; every piece takes a second more than the one before."""
    calls: list[list[Piece]] = []

    def pretend(rounds: Mapping[Piece, Any], *_: object) -> dict[Piece, list[float]]:
        calls.append(list(rounds))
        return {piece: [1.0 + i] * 5 for i, piece in enumerate(rounds)}

    monkeypatch.setattr(calibration, "measure", pretend)
    return calls


def test_what_was_measured_is_read_again(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    first, second = (load_cost_model(target, drafters, ARMS) for _ in range(2))
    assert first == second and len(measured) == 1


MACHINES: dict[str, tuple[Any, str, object]] = {
    "processor": (calibration, "cpu_model", lambda: "another one"),
    "cores": (calibration, "usable_cores", lambda: 512),
    "torch": (torch, "__version__", "9.9"),
    "instructions": (torch.backends.cpu, "get_cpu_capability", lambda: "none"),
    "threads between operations": (torch, "get_num_interop_threads", lambda: 77),
    "system": (calibration.platform, "system", lambda: "Plan 9"),
    "version": (calibration, "FORMAT", 1),
}


@pytest.mark.parametrize("what", MACHINES)
def test_a_cache_of_another_machine_is_measured_anew(
    target: Target,
    drafters: dict[str, Drafter],
    measured: list[list[Piece]],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    load_cost_model(target, drafters, ARMS)
    monkeypatch.setattr(*MACHINES[what])
    load_cost_model(target, drafters, ARMS)
    assert len(measured) == 2 and measured[0] == measured[1]


@pytest.mark.parametrize("change", [{"threads": 3}, {"dtype": "bfloat16"}, {"packed": True}])
def test_other_numbers_are_measured_anew(
    target: Target,
    drafters: dict[str, Drafter],
    measured: list[list[Piece]],
    change: dict[str, Any],
) -> None:
    load_cost_model(target, drafters, ARMS)
    load_cost_model(replace(target, precision=replace(target.precision, **change)), drafters, ARMS)
    assert len(measured) == 2 and measured[0] == measured[1]


class Elsewhere(Target):
    """A target that says it computes on a GPU."""

    @property
    def device(self) -> torch.device:
        """Where it would compute."""
        return torch.device("cuda", 0)


@pytest.mark.parametrize(
    "change", [{"device": "B"}, {"device": "A", "capability": [9, 0]}, {"driver": 2}]
)
def test_another_accelerator_is_measured_anew(
    target: Target,
    drafters: dict[str, Drafter],
    measured: list[list[Piece]],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    facts: dict[str, Any] = {"device": "A", "driver": 1}
    monkeypatch.setattr(calibration, "device_facts", lambda _: facts)
    there = Elsewhere(**vars(target))
    model = load_cost_model(there, drafters, ARMS)
    assert model.host["device"] == "A"
    monkeypatch.setattr(calibration, "usable_cores", lambda: 512)
    load_cost_model(there, drafters, ARMS)
    assert len(measured) == 1, "how many cores are free does not decide what a GPU takes"
    facts |= change
    load_cost_model(there, drafters, ARMS)
    load_cost_model(target, drafters, ARMS)
    assert measured[0] == measured[1] == measured[2], "another one, and none at all"


def test_files_of_the_processor_are_still_named_as_before(
    target: Target, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patch in MACHINES.values():
        monkeypatch.setattr(*patch)
    monkeypatch.setattr(calibration.platform, "machine", lambda: "abacus")
    assert calibration._path(replace(target, fingerprint="f"), None).name == "ba64cd7f5c4af467.json"


def test_compiled_passes_are_measured_anew(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    compiled = replace(target, precision=replace(target.precision, compiles=True))
    load_cost_model(target, drafters, ARMS)
    load_cost_model(compiled, drafters, ARMS)
    assert measured[0] == measured[1]


def test_compiled_drafts_are_measured_anew(
    target: Target,
    drafters: dict[str, Drafter],
    measured: list[list[Piece]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_cost_model(target, drafters, ARMS)
    monkeypatch.setattr(drafters["eagle3"], "compiled", object())
    load_cost_model(target, drafters, ARMS)
    assert measured[1] == [piece for piece in measured[0] if piece.drafter == "eagle3"] != []


def test_other_weights_of_the_target_are_measured_anew(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    load_cost_model(target, drafters, ARMS)
    load_cost_model(tiny_target(seed=1), drafters, ARMS)
    assert measured[0] == measured[1]


def test_a_retrained_drafter_is_measured_anew_and_nothing_else(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    load_cost_model(target, drafters, ARMS)
    model = load_cost_model(target, {**drafters, "eagle3": tiny_eagle3(target, seed=9)}, ARMS)
    assert {piece.drafter for piece in measured[1]} == {"eagle3"}
    assert measured[1] == [piece for piece in measured[0] if piece.drafter == "eagle3"]
    assert set(model.draft) == {"eagle3", "dflash", "ngram"}


def test_only_what_arms_ask_for_is_measured(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    load_cost_model(target, drafters, [parse_arm("ngram:4")])
    assert {(piece.kind, piece.drafter) for piece in measured[0]} == {
        (VERIFY, ""),
        (DRAFT, "ngram"),
        (CATCH_UP, "ngram"),
    }
    assert max(piece.at for piece in measured[0] if piece.kind == VERIFY) == (5,)
    assert max(piece.at for piece in measured[0] if piece.kind == DRAFT) == (4,)
    load_cost_model(target, drafters, [parse_arm("ngram:4"), parse_arm("eagle3:2x4")])
    assert {piece.drafter for piece in measured[1]} == {"eagle3"}, "the rest was there"
    assert {piece.at for piece in measured[1] if piece.kind == TREE} == {(1, 4), (2, 4)}
    plain = load_cost_model(target, drafters, [parse_arm("plain")])
    assert len(measured) == 2 and plain.draft == plain.catch_up == {}
    load_cost_model(target, drafters)
    assert {piece.drafter for piece in measured[2]} >= {"dflash", "small"}, "no arms: everything"


def test_environments_and_bandits_measure_their_own_arms(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    told = {"drafters": drafters, "prompts": PROMPTS, "max_new_tokens": 8}
    RouterEnv(numbered_target(target), arms=["ngram:4", "plain"], latency="measured", **told)
    assert {piece.at for piece in measured[0]} == {(1,)}, "a target step is all it needs"
    RouterEnv(numbered_target(target), arms=["ngram:4", "plain"], **told)
    chosen_policies(["ucb-time@dflash:2,plain", "ucb@eagle3:2,plain"], drafters, target)
    asked = [{piece.drafter for piece in pieces} - {""} for pieces in measured]
    assert asked == [set(), {"ngram"}, {"dflash"}]


def test_an_arm_that_nobody_serves_is_refused_before_measuring(
    target: Target, drafters: dict[str, Drafter], measured: list[list[Piece]]
) -> None:
    with pytest.raises(DraftgymError, match="unknown drafter"):
        load_cost_model(target, drafters, [parse_arm("gpt:4")])
    assert not measured


def test_long_texts_add_one_context_of_few() -> None:
    assert contexts_up_to(0) == contexts_up_to(640) == [64, 256, 640]
    assert contexts_up_to(641) == contexts_up_to(1280) == [64, 256, 640, 1280]
    assert contexts_up_to(4000) == [64, 256, 640, 5120]


class Bench:
    """Rounds that take what they are told, on a clock of their own."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.now, self.played, self.seconds = 0.0, [], seconds  # type: ignore[var-annotated]
        self.rounds = {name: self._factory(name) for name in seconds}

    def _factory(self, name: str) -> Callable[[], Callable[[], Callable[[], object]]]:
        def piece() -> None:
            self.now += self.seconds[name]
            self.played.append(name)

        return lambda: lambda: piece


def test_every_piece_comes_once_before_any_comes_twice() -> None:
    bench = Bench({"a": 1.0, "b": 1.0, "c": 1.0})
    times = measure(bench.rounds, {"b"}, 2, clock=lambda: bench.now)
    assert "".join(bench.played) == "bb" + "aa" + "cc" + "bac"  # each behind a warm-up
    assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]}


def test_measuring_ends_with_the_budget_and_coarse_pieces_come_in_any_case() -> None:
    bench = Bench({"a": 1.0, "b": 100.0, "c": 1.0, "d": 1.0})
    times = measure(bench.rounds, {"b", "d"}, 5, 20.0, lambda: bench.now)
    assert times == {"a": [], "b": [100.0], "c": [], "d": [1.0]}
    bench = Bench({"a": 1.0, "b": 1.0})
    times = measure(bench.rounds, {"a"}, 99, 10.0, lambda: bench.now)
    assert sum(map(len, times.values())) == 11 - 2, "no piece begins behind the budget"


def test_a_budget_of_nothing_leaves_the_ends_of_every_curve(
    target: Target,
    drafters: dict[str, Drafter],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DRAFTGYM_CALIBRATION_SECONDS", "0")
    ticks: Iterator[int] = iter(range(10**9))
    model = load_cost_model(target, drafters, ARMS, clock=lambda: float(next(ticks)))
    assert [set(curve.at) for curve in model.target_pass.values()] == [{1.0, 5.0}] * 2
    assert model.draft["dflash"].at == (1.0, 4.0) and model.draft["ngram"].at == (1.0, 4.0)
    assert {depth: curve.at for depth, curve in model.trees["eagle3"].items()} == {
        1: (4.0,),
        2: (4.0,),
    }
    assert model.sureness()["timings"] == [1, 1] and model.sureness()["spread"] is None
    assert model.sureness()["interpolated"] > 0
    capsys.readouterr()
    again = load_cost_model(target, drafters, ARMS, clock=lambda: pytest.fail("measured again"))
    assert again == model
    told = capsys.readouterr().err
    assert "in a hurry" in told and f"delete {cache}" in told


def test_a_curve_without_its_ends_is_left_out(target: Target, drafters: dict[str, Drafter]) -> None:
    pieces = Pieces(target, drafters, everything(drafters))
    known = {piece: [1.0] for piece in pieces.coarse}
    inner = next(p for p in pieces.all if p.kind == TREE and p.at[0] == 2)
    model = pieces.model({**known, inner: [9.0]}, {})
    assert set(model.trees[inner.drafter]) == {1, 16}
    assert all(curve(40) == 1.0 for curve in model.trees[inner.drafter].values())


def test_a_line_tells_how_sure_it_is() -> None:
    def piece(n: int) -> Piece:
        return Piece(VERIFY, "", 64, (n,))

    whole = how_sure({piece(1): [1.0, 1.1, 1.0, 0.9, 1.0], piece(2): [2.0] * 5}, 60)
    assert whole == "measured 2 pieces of a round, 5 times; half of them vary by less than 5%"
    cut = how_sure({piece(1): [1.0], piece(2): [2.0], piece(3): []}, 60)
    assert "once" in cut and "stopped at 60 s (DRAFTGYM_CALIBRATION_SECONDS" in cut
    assert "1 more" in cut and "interpolated" in cut


def test_files_keep_every_timing(
    target: Target, drafters: dict[str, Drafter], cache: Path, measured: list[list[Piece]]
) -> None:
    load_cost_model(target, drafters, ARMS)
    kept = [json.loads(path.read_text()) for path in cache.iterdir()]
    assert len(kept) == 1 + 3
    assert sum(len(body["seconds"]) for body in kept) == len(measured[0])
    assert all(len(times) == 5 for body in kept for times in body["seconds"].values())


@pytest.mark.parametrize("text", ["soon", "-1", "nan", ""])
def test_a_budget_that_is_no_number_is_refused(
    target: Target, measured: list[list[Piece]], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("DRAFTGYM_CALIBRATION_SECONDS", text)
    with pytest.raises(DraftgymError, match="DRAFTGYM_CALIBRATION_SECONDS"):
        load_cost_model(target, {})
    assert not measured


DAMAGED = ["{", "[]", "3", "{}", '{"seconds": []}', '{"seconds": {"verify 64 1": [-1]}}']
DAMAGED += [f'{{"seconds": {{"verify 64 1": {times}}}}}' for times in ("[]", "1", '["x"]', "[NaN]")]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_cache_file_is_named_with_a_remedy(
    target: Target, cache: Path, measured: list[list[Piece]], text: str
) -> None:
    load_cost_model(target, {})
    [file] = cache.iterdir()
    file.write_text(text)
    with pytest.raises(DraftgymError) as caught:
        load_cost_model(target, {})
    assert str(file) in caught.value.problem and "delete" in caught.value.remedy


def test_a_cache_that_cannot_be_written_is_done_without(
    target: Target,
    drafters: dict[str, Drafter],
    measured: list[list[Piece]],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache.write_text("a file in the place of the folder: not even root writes into it")
    model = load_cost_model(target, drafters, [parse_arm("plain")])
    assert model.step_seconds(64) == 1.0 and len(measured) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "cannot write" in line]
    assert str(cache) in line and "DRAFTGYM_CACHE" in line
