"""The guard costs little where speculation does not pay, and little where it does.

Rounds are made up here: their seconds follow a cost model with noise, acceptance is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from draftgym.serving.batching.guard import MOST_KEYS, PAUSES, Guard

ROUNDS = 2000
SEEDS = range(3)


@dataclass(frozen=True)
class Costs:
    """What rounds take: a pass is `base + row * rows`, and `draft` for each text that drafts."""

    base: float
    row: float
    draft: float
    length: int

    def seconds(self, texts: int, speculates: bool) -> float:
        """Of a round."""
        each = 1 + self.length * speculates
        return self.base + texts * (self.row * each + self.draft * speculates)

    def gain(self, texts: int, accepted: float) -> float:
        """Goodput with speculation over goodput without."""
        tokens = sum(accepted**depth for depth in range(self.length + 1))
        return tokens * self.seconds(texts, False) / self.seconds(texts, True)


FEW_ROWS = Costs(1, 0.02, 0.1, 3)
LONG_DRAFTS = Costs(1, 0.02, 0.0, 16)
DEAR_DRAFTS = Costs(1, 0.3, 1.0, 4)
DEAR_ROWS = Costs(1, 1, 0.5, 3)
FAIR = Costs(1, 0.1, 0.2, 6)


class Server:
    """Plays rounds as the guard wants them.

    Attributes:
        speculated: For every round, whether it was allowed to speculate.
    """

    def __init__(
        self, costs: Costs, texts: int, accepted: Callable[[int], float], seed: int
    ) -> None:
        self.costs, self.texts, self.accepted = costs, texts, accepted
        self.random = random.Random(seed)
        self.guard, self.key = Guard(), (texts, ("mine",))
        self.speculated: list[bool] = []

    def play(self, rounds: int, stalls: frozenset[int] = frozenset()) -> Server:
        """Some rounds more; those that stall take a hundred times as long."""
        for _ in range(rounds):
            at, speculates = len(self.speculated), self.guard.allows(self.key)
            seconds = self.costs.seconds(self.texts, speculates)
            seconds *= self.random.lognormvariate(0, 0.05) * (100 if at in stalls else 1)
            tokens = sum(self._tokens(at) if speculates else 1 for _ in range(self.texts))
            self.guard.tell(self.key, speculates, seconds, tokens)
            self.speculated.append(speculates)
        return self

    def share(self, last: int) -> float:
        """Of the last rounds, those that speculated."""
        return sum(self.speculated[-last:]) / last

    def goodput(self) -> float:
        """Expected, over plain decoding's: the noise of these very rounds is left out."""
        speculative = sum(self.speculated)
        plain = len(self.speculated) - speculative
        accepted = self.accepted(0)
        fast = sum(accepted**depth for depth in range(self.costs.length + 1))
        cost, plainly = (self.costs.seconds(self.texts, how) for how in (True, False))
        return (speculative * fast + plain) / (speculative * cost / plainly + plain)

    def _tokens(self, at: int) -> int:
        accepted, committed = self.accepted(at), 1
        while committed <= self.costs.length and self.random.random() < accepted:
            committed += 1
        return committed


def server(costs: Costs, texts: int, accepted: float, seed: int = 0) -> Server:
    """One whose drafter is always as good."""
    return Server(costs, texts, lambda _: accepted, seed)


@pytest.mark.parametrize("accepted", [0.0, 0.05])
@pytest.mark.parametrize("texts", [1, 2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("costs", [FEW_ROWS, LONG_DRAFTS, DEAR_DRAFTS, DEAR_ROWS, FAIR])
def test_a_useless_drafter_costs_less_than_two_hundredths(
    costs: Costs, texts: int, accepted: float
) -> None:
    assert costs.gain(texts, accepted) < 0.95
    for seed in SEEDS:
        assert server(costs, texts, accepted, seed).play(ROUNDS).goodput() > 0.98


@pytest.mark.parametrize(
    ("costs", "texts", "accepted"),
    [
        (FAIR, 1, 0.65),
        (FAIR, 2, 0.73),
        (FEW_ROWS, 1, 0.4),
        (FEW_ROWS, 4, 0.62),
        (FEW_ROWS, 8, 0.8),
        (LONG_DRAFTS, 4, 0.7),
        (DEAR_DRAFTS, 1, 0.95),
        (Costs(1, 0.01, 0.02, 3), 32, 0.8),
    ],
)
def test_a_useful_drafter_keeps_its_gain(costs: Costs, texts: int, accepted: float) -> None:
    gain = costs.gain(texts, accepted)
    assert 1.2 < gain < 1.7
    for seed in SEEDS:
        kept = (server(costs, texts, accepted, seed).play(ROUNDS).goodput() - 1) / (gain - 1)
        assert kept > 0.97


@pytest.mark.parametrize("texts", [1, 4])
@pytest.mark.parametrize("useless", [300, 2000, 10_000])
def test_a_drafter_that_becomes_useful_is_found_again(texts: int, useless: int) -> None:
    for seed in SEEDS:
        one = Server(FEW_ROWS, texts, lambda at: 0.0 if at < useless else 0.8, seed)
        one.play(useless)
        assert one.share(min(useless, 100)) < 0.5
        assert one.play(4096 + 200).share(100) > 0.98


@pytest.mark.parametrize("texts", [1, 8])
def test_a_drafter_that_becomes_useless_is_left_out(texts: int) -> None:
    for seed in SEEDS:
        one = Server(FEW_ROWS, texts, lambda at: 0.85 if at < 1000 else 0.0, seed).play(1000)
        assert one.share(500) > 0.98
        assert one.play(400).share(50) == 0


@pytest.mark.parametrize("texts", [1, 8])
@pytest.mark.parametrize("at", [0, 2, 4, 5, 6, 20, 150, 1000])
def test_a_stall_does_not_stop_speculation(texts: int, at: int) -> None:
    for seed in SEEDS:
        one = server(FEW_ROWS, texts, 0.85, seed).play(ROUNDS, frozenset({at}))
        assert one.share(ROUNDS) > 0.97


@pytest.mark.parametrize("at", [0, 2, 20, 1000])
def test_a_stall_does_not_begin_speculation(at: int) -> None:
    for seed in SEEDS:
        assert server(FAIR, 4, 0.0, seed).play(ROUNDS, frozenset({at})).goodput() > 0.98


def test_trials_become_rare_while_they_fail() -> None:
    one = server(Costs(1, 0.02, 0.02, 2), 8, 0.0).play(20_000)
    pairs = enumerate(pairwise(one.speculated))
    starts = [at for at, pair in pairs if pair == (False, True)]
    pauses = [after - before for before, after in pairwise(starts)]
    assert max(pauses[:3]) < 400
    assert 3500 < min(pauses[-3:]) < max(pauses) < 4300


def test_kinds_of_batches_are_judged_apart() -> None:
    good, bad = server(FEW_ROWS, 4, 0.8), server(FEW_ROWS, 32, 0.0)
    bad.guard = good.guard
    for _ in range(300):
        good.play(1)
        bad.play(1)
    assert good.share(100) > 0.98 and bad.share(100) < 0.1
    few, many = good.guard.describe()
    assert (few.fewest, few.most, few.policies, few.speculates) == (3, 4, ("mine",), True)
    assert (many.fewest, many.most, many.speculates) == (17, 32, False)
    assert few.gain is not None and few.gain > 1.2
    assert many.gain is not None and many.gain < 0.9


def test_sizes_are_taken_together_by_doubling() -> None:
    guard = Guard()
    for texts in (17, 9, 8, 1, 2, 5, 3, 4, 16):
        guard.tell((texts, ("a",)), False, 1.0, texts)
    sizes = [(one.fewest, one.most) for one in guard.describe()]
    assert sizes == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]


def test_a_round_that_is_not_told_tries_nothing_out() -> None:
    one = server(FEW_ROWS, 4, 0.0)
    assert not one.guard.allows(one.key, told=False)  # nobody knows yet
    assert not one.guard.allows(one.key)  # plain rounds are measured first
    for _ in range(ROUNDS):
        one.play(1)
        if len(one.speculated) > 100:
            assert not one.guard.allows(one.key, told=False)


def test_a_round_that_is_not_told_goes_by_what_is_known() -> None:
    one = server(FEW_ROWS, 4, 0.8).play(ROUNDS)
    assert one.guard.allows(one.key, told=False)


def test_what_does_not_pay_in_a_small_batch_is_not_begun_with_in_a_larger_one() -> None:
    one = server(DEAR_ROWS, 4, 0.1).play(100)
    key = (16, one.key[1])
    one.guard.tell(key, False, 1.0, 16)
    assert not one.guard.allows(key)
    one.guard.tell((16, ("another",)), False, 1.0, 16)
    for _ in range(2 * PAUSES[0]):
        if one.guard.allows(key):
            return  # it is tried there, too, later
        one.guard.tell(key, False, 1.0, 16)
    raise AssertionError("never tried")


def test_a_change_of_verdict_is_told_once() -> None:
    guard, key = Guard(), (8, ("a",))
    changes = []
    for _ in range(1000):
        allowed = guard.allows(key)
        if guard.tell(key, allowed, 3.0 if allowed else 1.0, 8):
            changes.append(guard.describe()[0].speculates)
    assert changes == [False]


def test_little_is_remembered() -> None:
    guard = Guard()
    for number in range(2 * MOST_KEYS):
        guard.tell((1, (f"policy {number}",)), False, 1.0, 1)
    assert len(guard.describe()) == MOST_KEYS
