"""WhiFlash-Neural learns from hidden states which arm commits more, and is priced by time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from draftgym.agents.router.neural import (
    NeuralArgs,
    fit_difference,
    fold_scales,
    predict_rows,
    priced_threshold,
    searched_threshold,
    train_neural,
)
from draftgym.agents.router.regression import Fitting, hold_out
from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.folder import BODY, WEIGHTS
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.neural import DifferenceNetwork, NeuralPolicy, load_neural_policy
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.replay.play import Course, walk_single_arms
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.traces import handmade_traces
from tests.traces import save_traces

PAIR = (Arm("eagle3", 3), Arm("dflash", 4))
WIDTH = 32
FITTING = Fitting(epochs=20, batch_size=128, learning_rate=3e-3, holdout=0.2)


def toy(texts: int = 120) -> TraceSet:
    """The sign of one hidden entry decides: EAGLE-3 commits 4, or DFlash 5, the other 1."""
    return handmade_traces(
        {
            "eagle3:3": lambda signals, hidden: np.where(hidden[:, 2] > 0, 4, 1),
            "dflash:4": lambda signals, hidden: np.where(hidden[:, 2] > 0, 1, 5),
        },
        texts,
        length=40,
        width=WIDTH,
    )


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    return toy()


@pytest.fixture(scope="module")
def network(traces: TraceSet) -> DifferenceNetwork:
    train, validation = hold_out(traces, 0.2)
    fitted_network, fitted = fit_difference(train, validation, PAIR, FITTING)
    assert fitted.r2 > 0.5
    return fitted_network


def test_the_network_is_the_papers() -> None:
    sizes = {
        hidden: sum(p.numel() for p in DifferenceNetwork(hidden).parameters())
        for hidden in (2560, 4096)
    }
    assert sizes == {2560: 819_841, 4096: 2_098_177}


def test_it_tells_who_accepts_more(network: DifferenceNetwork) -> None:
    unseen = np.random.default_rng(99).normal(size=(500, WIDTH)).astype(np.float32)
    policy = NeuralPolicy(network, PAIR, 0.0)
    actions, _ = policy.predict({"hidden": unseen})
    wanted = np.where(unseen[:, 2] > 0, 0, 1)
    clear = np.abs(unseen[:, 2]) > 0.3
    assert (actions == wanted)[clear].mean() > 0.95


def test_folded_scales_change_nothing() -> None:
    torch.manual_seed(0)
    network, hidden = DifferenceNetwork(16).eval(), 5 + 3 * torch.randn(9, 16)
    mean, spread = hidden.mean(0), hidden.std(0)
    wanted = 2.5 * network((hidden - mean) / spread) - 1
    fold_scales(network, mean, spread, torch.tensor(-1.0), torch.tensor(2.5))
    torch.testing.assert_close(network(hidden), wanted, rtol=1e-4, atol=1e-4)


def test_the_priced_threshold_agrees_with_the_speed_it_gives(
    traces: TraceSet, network: DifferenceNetwork
) -> None:
    found = priced_threshold(traces, PAIR, network)
    single = walk_single_arms(traces, PAIR)
    assert found.speed > 1.1 * single.speeds.max()
    first, second = single.seconds / single.rounds.sum(1)
    course = Course(traces, PAIR)
    again = np.where(predict_rows(course, network) > found.speed * (first - second), 0, 1)
    assert course.walk(again[None]).speeds[0] == pytest.approx(found.speed, rel=0.01)


def test_a_search_finds_no_less_than_the_price(
    traces: TraceSet, network: DifferenceNetwork
) -> None:
    searched = searched_threshold(traces, PAIR, network, count=400)
    assert searched.speed >= 0.999 * priced_threshold(traces, PAIR, network).speed
    assert searched.speed >= walk_single_arms(traces, PAIR).speeds.max()


@pytest.fixture(scope="module")
def made(target: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[NeuralPolicy, Path]:
    """A policy as the command trains it, and its folder."""
    folder = tmp_path_factory.mktemp("neural")
    traces = handmade_traces(
        {
            "eagle3:3": lambda signals, hidden: np.where(hidden[:, 2] > 0, 4, 1),
            "dflash:4": lambda signals, hidden: np.where(hidden[:, 2] > 0, 1, 5),
        },
        width=target.hidden_size,
    )
    origin = replace(traces.origin, target=target.name, target_fingerprint=target.fingerprint)
    args = NeuralArgs(
        traces=save_traces(replace(traces, origin=origin), folder / "traces"),
        first="eagle3:3",
        second="dflash:4",
        out=folder / "mine",
        fitting=Fitting(epochs=2, batch_size=32, holdout=0.2),
    )
    return train_neural(args), args.out


def test_a_loaded_policy_is_the_saved_one_bit_for_bit(
    target: Target, drafters: dict[str, Drafter], made: tuple[NeuralPolicy, Path]
) -> None:
    policy, folder = made
    loaded = make_policy(str(folder), drafters, target)
    assert isinstance(loaded, NeuralPolicy)
    assert (loaded.arms, loaded.threshold, loaded.name) == (PAIR, policy.threshold, "mine")
    for name, value in policy.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(100, target.hidden_size)).astype(np.float32)
    assert (
        loaded.predict({"hidden": hidden})[0].tolist()
        == policy.predict({"hidden": hidden})[0].tolist()
    )
    report = json.loads((folder / BODY).read_text())["provenance"]
    assert {"validation_r2", "settings", "host", "validation_tokens_per_second"} <= report.keys()


def test_the_same_seed_trains_the_same_policy(traces: TraceSet) -> None:
    parts = hold_out(traces, 0.2)
    how = replace(FITTING, epochs=2)
    first, again, other = (
        fit_difference(*parts, PAIR, how, seed=seed)[0].narrow.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def change(**keys: object) -> Callable[[Path], object]:
    """Changes keys of policy.json."""

    def spoil(folder: Path) -> None:
        body = json.loads((folder / BODY).read_text())
        (folder / BODY).write_text(json.dumps(body | keys))

    return spoil


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda folder: (folder / BODY).unlink(), "not a policy folder"),
    "damaged json": (lambda folder: (folder / BODY).write_text("{"), "not JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot read"),
    "damaged weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * 40), "cannot read"),
    "other kind": (change(kind="router"), "kind 'router'"),
    "other target": (change(target_fingerprint="0" * 32), "was trained for"),
    "other width": (change(hidden_size=8), "narrow.weight"),
    "three arms": (change(arms=["eagle3:3", "dflash:4", "plain"]), "3 arms"),
    "no number": (change(threshold="high"), "policy.json"),
    "not a number": (change(threshold=float("nan")), "give it a number|threshold nan"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_folder_is_refused_with_a_remedy(
    target: Target, made: tuple[NeuralPolicy, Path], tmp_path: Path, mistake: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    load_neural_policy(folder, target)
    spoil, words = MISTAKES[mistake]
    spoil(folder)
    with pytest.raises(DraftgymError, match=words) as caught:
        load_neural_policy(folder, target)
    assert caught.value.remedy and str(folder) in caught.value.problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"second": "eagle3:3"}, "both arms"),
        ({"first": "ngram:8"}, "not in these traces"),
        ({"fitting": Fitting(epochs=0)}, "fitting.epochs"),
        ({"fitting": Fitting(holdout=1.0)}, "fitting.holdout"),
    ],
)
def test_wrong_settings_are_answered_with_a_remedy(
    traces: TraceSet, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    args = NeuralArgs(
        traces=save_traces(traces, tmp_path / "traces"),
        first="eagle3:3",
        second="dflash:4",
        out=tmp_path / "out",
    )
    with pytest.raises(DraftgymError, match=says) as caught:
        train_neural(replace(args, **changes))
    assert caught.value.remedy and not (tmp_path / "out" / BODY).exists()


def test_held_out_prompts_are_never_trained_on(traces: TraceSet) -> None:
    name = load_prompts("heldout")[0].question_id
    texts = [replace(traces.texts[0], question_id=name), *traces.texts[1:]]
    with pytest.raises(DraftgymError, match="held-out"):
        hold_out(replace(traces, texts=texts), 0.2)


def test_no_text_is_on_both_sides(traces: TraceSet) -> None:
    train, validation = (
        {text.question_id for text in part.texts} for part in hold_out(traces, 0.2)
    )
    assert len(validation) == 24 and len(train) == 96 and not train & validation
