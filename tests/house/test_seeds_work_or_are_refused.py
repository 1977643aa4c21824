"""Sampling takes any whole number as its seed; training refuses the few that it cannot take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from draftgym.agents.router.args import RouterArgs, check_args
from draftgym.agents.router.neural import NeuralArgs
from draftgym.agents.router.tune import TuneArgs, tune
from draftgym.agents.scheduler.evaluation import EvaluateSchedulersArgs, evaluate_schedulers
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.loop.progress import TrainerConfig, check_trainer
from draftgym.policies.registry import make_policy

STRANGE = (-1, 2**31, 10**30)


@pytest.mark.parametrize("seed", [-1, -(2**80), 2**63 - 1, 10**30])
def test_any_whole_number_seeds_a_text(
    target: Target, drafters: dict[str, Drafter], seed: int
) -> None:
    policy = make_policy("random", drafters, target, seed)
    decoder = SpeculativeDecoder(target, drafters, policy)
    plain = SpeculativeDecoder(target, {}, make_policy("plain", {}, target))
    texts = [
        one.generate([3, 4, 5], 8, temperature=1.0, seed=seed).tokens for one in (decoder, plain)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("seed", STRANGE)
@pytest.mark.parametrize(
    "check",
    [
        lambda seed, out: check_args(RouterArgs(traces=out, run=out, seed=seed)),
        lambda seed, out: check_trainer(TrainerConfig(seed=seed)),
        lambda seed, out: tune(TuneArgs(traces=out, run=out, seed=seed)),
        lambda seed, out: NeuralArgs(traces=out, out=out, seed=seed).check(),
        lambda seed, out: evaluate_schedulers(EvaluateSchedulersArgs(traces=out, seed=seed)),
    ],
    ids=["router", "drafter", "tune", "neural", "scheduler"],
)
def test_training_refuses_a_seed_before_any_work(
    check: Callable[[int, Path], object], tmp_path: Path, seed: int
) -> None:
    with pytest.raises(DraftgymError, match="seed is") as caught:
        check(seed, tmp_path / "out")
    assert "whole number" in caught.value.remedy
    assert not (tmp_path / "out").exists()
