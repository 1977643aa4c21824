"""The regressed router takes the arm that is worth most in the long run, its backlog included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from draftgym.agents.router.advantage import (
    AdvantageArgs,
    as_examples,
    fit_router,
    roll_out,
    train_advantage,
)
from draftgym.agents.router.regression import Fitting, hold_out
from draftgym.decoding.arms import PLAIN, Arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.folder import BODY
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.learned import LearnedPolicy
from draftgym.policies.routers.rules import FixedPolicy, RandomPolicy
from draftgym.rollouts.replay.play import walk_single_arms
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.traces import handmade_traces
from tests.traces import save_traces

ARMS = (Arm("eagle3", 3), Arm("dflash", 4), Arm(PLAIN, 0))
FITTING = Fitting(epochs=15, batch_size=64, learning_rate=3e-3, holdout=0.2)


def toy(width: int = 16) -> TraceSet:
    """One hidden entry says who accepts: EAGLE-3, DFlash, or nobody."""
    return handmade_traces(
        {
            "eagle3:3": lambda signals, hidden: np.where(hidden[:, 2] > 0.5, 4, 1),
            "dflash:4": lambda signals, hidden: np.where(hidden[:, 2] < -0.5, 5, 1),
        },
        texts=40,
        length=40,
        width=width,
    )


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    return toy()


def test_options_are_what_each_arm_then_does(traces: TraceSet) -> None:
    rng, count = np.random.default_rng(0), len(traces.texts)
    past: list[np.ndarray] = []
    for _ in range(6):
        replays = [Replay(traces, ARMS, count) for _ in ARMS]
        for replay in replays:
            for actions in past:
                replay.step(actions)
        committed, seconds = replays[0].options()
        for index, replay in enumerate(replays):
            played = replay.step(np.full(count, index))
            np.testing.assert_array_equal(played.committed, committed[:, index])
            np.testing.assert_allclose(played.seconds, seconds[:, index])
        past.append(rng.integers(len(ARMS), size=count))


def test_the_router_beats_every_single_arm_on_unseen_texts(traces: TraceSet) -> None:
    train, validation = hold_out(traces, 0.2)
    args = AdvantageArgs(sweeps=1, walks=2, width=16, dropout=0.0, fitting=FITTING)
    trained = fit_router(train, validation, ARMS, args)
    assert trained.fitted.r2 > 0.6
    routed = roll_out(validation, LearnedPolicy(trained.network, ARMS)).speed
    assert routed > 1.2 * walk_single_arms(validation, ARMS).speeds.max()
    assert trained.price == pytest.approx(trained.speeds[-1], rel=0.1)


def test_advantages_are_tokens_less_priced_seconds_around_zero(traces: TraceSet) -> None:
    rolled = roll_out(traces, RandomPolicy(ARMS))
    examples = as_examples([rolled, rolled], traces, price=0.7)
    assert len(examples) == 2 * len(rolled.rows)
    worth = rolled.committed[5] - 0.7 * rolled.seconds[5]
    assert examples.targets[5].numpy() == pytest.approx(worth - worth.mean(), abs=1e-5)
    assert examples.targets.mean(1).abs().max() < 1e-5
    signals, hidden = examples.inputs(torch.tensor([5]))
    rows = np.concatenate([text.hidden for text in traces.texts])
    assert hidden[0].numpy().tolist() == rows[rolled.rows[5]].tolist()
    assert signals[0].numpy().tolist() == rolled.signals[5].tolist()


def test_a_rollout_writes_every_text_once(traces: TraceSet) -> None:
    alone = walk_single_arms(traces, ARMS)
    for index, arm in enumerate(ARMS):
        rolled = roll_out(traces, FixedPolicy(arm))
        assert rolled.speed == pytest.approx(alone.speeds[index])
        assert len(rolled.rows) == alone.rounds[index].sum()


def test_the_export_is_an_ordinary_router(
    target: Target, drafters: dict[str, Drafter], tmp_path: Path
) -> None:
    traces = toy(target.hidden_size)
    origin = replace(traces.origin, target=target.name, target_fingerprint=target.fingerprint)
    args = AdvantageArgs(
        traces=save_traces(replace(traces, origin=origin), tmp_path / "traces"),
        out=tmp_path / "mine",
        sweeps=1,
        walks=1,
        width=8,
        fitting=Fitting(epochs=1, holdout=0.2),
    )
    policy = train_advantage(args)
    loaded = make_policy(str(args.out), drafters, target)
    assert isinstance(loaded, LearnedPolicy) and loaded.arms == ARMS
    for name, value in policy.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    report = json.loads((args.out / BODY).read_text())["provenance"]
    assert {"validation_r2", "price_tokens_per_second", "settings", "host"} <= report.keys()
    again = train_advantage(replace(args, out=tmp_path / "again"))
    for name, value in policy.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ("eagle3:3",)}, "nothing to choose"),
        ({"arms": ("eagle3:3", "ngram:8")}, "not in these traces"),
        ({"walks": 0}, "walks"),
        ({"stray": 2.0}, "--stray"),
        ({"fitting": Fitting(patience=0)}, "patience"),
    ],
)
def test_wrong_settings_are_answered_with_a_remedy(
    traces: TraceSet, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    args = AdvantageArgs(traces=save_traces(traces, tmp_path / "traces"), out=tmp_path / "out")
    with pytest.raises(DraftgymError, match=says) as caught:
        train_advantage(replace(args, **changes))
    assert caught.value.remedy
