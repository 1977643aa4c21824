"""Over real gRPC: whoever plans, comes and goes, every device reads plain decoding's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from draftgym.decoding.model.target import Target
from draftgym.envs.cell.state import CellState
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.envs.scheduler.planners import CellPlanner, LearnedPlanner
from draftgym.policies.multispin.problem import Plan
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LENGTHS,
    SHARES,
    TILTS,
    LearnedScheduler,
    SchedulerHead,
)
from draftgym.serving.edge.devices.writing import Text, Written
from tests.serving.edge.edges import Edge, Gathered, in_threads, plain, serving, text

TEMPERATURES = [0.0, 1.0]


class AtRandom:
    """Plans anything."""

    def __init__(self, cell: CellState) -> None:
        self.cell, self.rng = cell, np.random.default_rng(0)

    def plan(self) -> Plan:
        """Any lengths."""
        return self.cell.best_plan(self.rng.integers(5, size=self.cell.shape))

    def learn(self, played: object) -> None:
        """Nothing."""
        assert played is not None


def untrained(kind: str) -> Callable[[CellState], CellPlanner]:
    """A network as training begins with, of any head."""
    head = SchedulerHead(kind, 4, USER_FEATURES, CELL_FEATURES)
    torch.manual_seed(0)
    return partial(LearnedPlanner, LearnedScheduler(head.network(8), head))


def write(edge: Edge, target: Target, name: str, texts: list[Text]) -> list[Written]:
    """A device that writes some texts, one after the other."""
    device = edge.device(target, name)
    try:
        return [device.write(one) for one in texts]
    finally:
        device.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planner", "temperature"),
    [
        *(("fixed", temperature) for temperature in TEMPERATURES),
        *(("homogeneous", 0.0), ("heterogeneous@average", 1.0), ("random", 1.0)),
    ],
)
def test_every_text_is_plain_decodings(target: Target, planner: str, temperature: float) -> None:
    """More devices than places, with texts of different lengths: they come and go."""
    make = AtRandom if planner == "random" else planner
    asked = [
        [text(10 * device + i, temperature, 8 + 5 * ((device + i) % 4)) for i in range(2)]
        for device in range(5)
    ]
    with serving(target, make, users=3, rounds_of=Gathered) as edge:
        names = ["small", "ngram", "small", "small", "ngram"]
        works = [partial(write, edge, target, *one) for one in zip(names, asked, strict=True)]
        written = in_threads(*works)
        totals = edge.rounds.totals
    for texts, done in zip(asked, written, strict=True):
        for one, its in zip(texts, done, strict=True):
            assert its.tokens == plain(target, one)
            assert its.finish_reason == "length" and its.connections <= 1
    assert totals.texts == 10 and totals.verified > totals.rounds, "passes are shared"
    assert sum(one.accepted for done in written for one in done) > 0


@pytest.mark.parametrize("kind", [BELIEFS, LENGTHS, SHARES, TILTS])
def test_networks_plan_as_rules_do(target: Target, kind: str) -> None:
    asked = [[text(i, 1.0)] for i in range(3)]
    with serving(target, untrained(kind), users=3, rounds_of=Gathered) as edge:
        works = [partial(write, edge, target, "small", one) for one in asked]
        written = in_threads(*works)
    for texts, done in zip(asked, written, strict=True):
        assert done[0].tokens == plain(target, texts[0])
    assert sum(done[0].drafted for done in written) > 0


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_texts_end_where_plain_decoding_ends(target: Target, temperature: float) -> None:
    stopping = replace(target, stop_tokens=frozenset({7, 23, 41}))
    asked = [text(i, temperature) for i in range(6)]
    with serving(stopping, "fixed") as edge:
        written = in_threads(
            *(partial(write, edge, stopping, "small", asked[i::2]) for i in range(2))
        )
    for texts, done in zip((asked[::2], asked[1::2]), written, strict=True):
        for one, its in zip(texts, done, strict=True):
            assert its.tokens == plain(stopping, one)
            ended = its.tokens[-1] in stopping.stop_tokens
            assert its.finish_reason == ("stop" if ended else "length")
    reasons = {its.finish_reason for done in written for its in done}
    assert "stop" in reasons
