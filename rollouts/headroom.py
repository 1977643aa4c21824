"""What choosing an arm each round could win, read off counterfactual traces.

The *oracle* knows every arm's acceptance at every position. Committed tokens only depend on the
position, so its best sequence of rounds is a shortest path over positions, and no router that
chooses among the same arms can be faster. The prize of routing is the oracle against the best
single arm.

Costs come from the cost model. A switch of drafters costs what the newly chosen one must catch up;
that is left out here (below one per cent of a round), so the oracle is a little too good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from decoding.arms import PLAIN, Arm
from decoding.latency import CostModel
from rollouts.trace import TextTrace

BACKLOG = 2
"""Positions that a drafter encodes in a typical round."""

Cost = Callable[[TextTrace, Arm, int], float]
"""Cost of a round: text, arm, position."""


def seconds_by(model: CostModel) -> Cost:
    """Rounds cost what the cost model says; each is worked out once."""
    known: dict[tuple[int, Arm, int], float] = {}

    def cost(trace: TextTrace, arm: Arm, position: int) -> float:
        key = (id(trace), arm, position)
        if key not in known:
            known[key] = _seconds(trace, arm, position)
        return known[key]

    def _seconds(trace: TextTrace, arm: Arm, position: int) -> float:
        context = trace.prompt_tokens + position
        if not arm.drafts:
            return model.step_seconds(context)
        made = trace.arms[str(arm)]
        drafted, depth = made.drafted[position], made.depth[position]
        backlog = BACKLOG
        return model.round_seconds(arm, drafted, context, backlog, depth if arm.nodes else None)

    return cost


def one_each(trace: TextTrace, arm: Arm, position: int) -> float:
    """Every round costs one target pass: then an oracle maximises the acceptance length."""
    return 1.0


@dataclass(frozen=True)
class Walk:
    """Some rounds that write one text.

    Attributes:
        tokens: Tokens they commit (all of the text's but the first, which the prompt's pass gives).
        rounds: How many there were.
        cost: What they cost in all.
    """

    tokens: int
    rounds: int
    cost: float


def walk_single(trace: TextTrace, arm: Arm, cost: Cost) -> Walk:
    """The rounds of always choosing one arm."""
    position, rounds, total = 0, 0, 0.0
    last = len(trace.tokens) - 1
    while position < last:
        total += cost(trace, arm, position)
        position += _committed(trace, arm, position)
        rounds += 1
    return Walk(last, rounds, total)


def walk_best(trace: TextTrace, arms: Sequence[Arm], cost: Cost) -> Walk:
    """The cheapest rounds that write the text: a shortest path, from the end backwards."""
    last = len(trace.tokens) - 1
    ahead = [0.0] * (last + 1)
    rounds = [0] * (last + 1)
    for position in range(last - 1, -1, -1):
        options = [
            (cost(trace, arm, position) + ahead[position + step], step)
            for arm in arms
            for step in [_committed(trace, arm, position)]
        ]
        ahead[position], step = min(options)
        rounds[position] = rounds[position + step] + 1
    return Walk(last, rounds[0], ahead[0])


def _committed(trace: TextTrace, arm: Arm, position: int) -> int:
    return trace.arms[str(arm)].committed[position] if arm.drafts else 1


def total(walks: Sequence[Walk]) -> Walk:
    """All texts together."""
    return Walk(
        sum(walk.tokens for walk in walks),
        sum(walk.rounds for walk in walks),
        sum(walk.cost for walk in walks),
    )


@dataclass(frozen=True)
class Duel:
    """Two arms at the same positions.

    Attributes:
        first: Share of positions at which the first commits more.
        equal: Share of ties.
        second: Share at which the second commits more.
    """

    first: float
    equal: float
    second: float


def duel(
    traces: Sequence[TextTrace], first: Arm, second: Arm, positions: range | None = None
) -> Duel:
    """How often one arm beats the other, over all texts.

    Args:
        traces: The texts.
        first: An arm.
        second: Another one.
        positions: Only these positions; None for all.
    """
    wins = [0, 0, 0]
    for trace in traces:
        for position in range(len(trace.tokens) - 1):
            if positions is None or position in positions:
                a, b = _committed(trace, first, position), _committed(trace, second, position)
                wins[0 if a > b else 1 if a == b else 2] += 1
    count = max(1, sum(wins))
    return Duel(*(win / count for win in wins))


@dataclass(frozen=True)
class Prize:
    """What perfect choice among some arms would win.

    Attributes:
        arms: The arms.
        best: The single one of them that costs least over all texts.
        best_cost: Its cost per token.
        oracle_cost: The oracle's cost per token.
    """

    arms: tuple[Arm, ...]
    best: Arm
    best_cost: float
    oracle_cost: float

    @property
    def gain(self) -> float:
        """Speed-up of the oracle over the best single arm, minus one."""
        return self.best_cost / self.oracle_cost - 1


def prize(traces: Sequence[TextTrace], arms: Sequence[Arm], cost: Cost) -> Prize:
    """Oracle over `arms` against the best single one."""
    singles: Mapping[Arm, Walk] = {
        arm: total([walk_single(trace, arm, cost) for trace in traces]) for arm in arms
    }
    best = min(singles, key=lambda arm: singles[arm].cost)
    oracle = total([walk_best(trace, arms, cost) for trace in traces])
    tokens = max(1, oracle.tokens)
    return Prize(tuple(arms), best, singles[best].cost / tokens, oracle.cost / tokens)


PLAIN_ARM = Arm(PLAIN, 0)
"""The arm that every set may add: leave the round to the target."""
