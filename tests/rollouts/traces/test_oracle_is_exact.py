"""The exact optimum is the cheapest of all sequences of choices, whatever catching up costs."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from draftgym.decoding.arms import Arm, Asking, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.replay import pricing
from draftgym.rollouts.replay.oracle import (
    greedy_price,
    total,
    walk,
    walk_greedy,
    walk_optimal,
    walk_single,
)
from draftgym.rollouts.replay.pricing import PLAIN_ARM, PricedText, one_each, price_traces
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.joint import asked_of, made_by
from draftgym.rollouts.traces.trace import ArmTrace, Drafts, TextTrace, TraceSet
from tests.handmade.texts import (
    LAGS,
    handmade_costs,
    handmade_set,
    handmade_text,
    random_text,
)

NAMES = ("a:1", "a:3", "b:2", "c:4")
ARMS = [*map(parse_arm, NAMES), PLAIN_ARM]


def random_costs(rng: np.random.Generator, kind: str) -> CostModel:
    """Costs with catch-up tables of a kind."""
    tables = {name: rng.uniform(0, 2, 40) for name in LAGS}
    if kind == "rising":
        tables = {name: np.sort(table) for name, table in tables.items()}
    elif kind == "falling":
        tables = {name: -np.sort(-table) for name, table in tables.items()}
    elif kind == "spikes":  # what two backlogs cost now says nothing of what they cost later
        tables = {name: rng.choice([0.0, 0.0, 3.0], 40) for name in LAGS}
    known = {name: table.tolist() for name, table in tables.items()}
    return handmade_costs(1.0, 0.2, known)


def cheapest(traces: TraceSet, arms: list[Arm]) -> float:
    """The optimum over the whole state, in the terms of a live round."""
    (text,), model = traces.texts, traces.origin.cost_model

    @cache
    def from_here(position: int, encoded: tuple[tuple[str, int], ...]) -> float:
        """Seconds to the end, when each drafter has encoded that many positions."""
        if position == len(text):
            return 0.0
        context, known, options = text.prompt_tokens + position, dict(encoded), []
        drafting = traces.origin.max_new_tokens - (position + 1) > 1
        for arm in arms:
            after, asked, whole = dict(known), [], made_by(text, arm)
            for part in asked_of(text, arm):
                if not part.where[position]:
                    continue
                caught_up = 0
                if drafting:
                    name = part.arm.drafter
                    after[name] = context + 1 - LAGS[name]
                    caught_up = after[name] - known[name]
                drafted, depth = (
                    int(x[position]) for x in (part.drafted.drafted, part.drafted.depth)
                )
                asked.append(Asking(part.arm, drafted, depth, caught_up))
            now = model.round_seconds(asked, int(whole.drafted[position]), context)
            reached = position + int(whole.committed[position])
            options.append(now + from_here(reached, tuple(sorted(after.items()))))
        return min(options)

    return from_here(0, tuple(sorted(dict.fromkeys(LAGS, 0).items())))


def with_drafts(rng: np.random.Generator, text: TextTrace) -> TextTrace:
    """The text with drafted tokens, and with places where nothing is drafted."""
    arms, drafts = {}, {}
    for name, made in text.arms.items():
        idle = rng.random(len(text)) < 0.4
        arms[name] = ArmTrace(
            np.where(idle, 1, made.committed), np.where(idle, 0, made.drafted), made.depth
        )
        longest = 1 + int(made.drafted.max())
        tokens = rng.integers(0, 3, (len(text), longest)).astype(np.int32)
        drafts[parse_arm(name).drafter] = Drafts(tokens)
    logprobs = {name: np.zeros(draft.tokens.shape, np.float32) for name, draft in drafts.items()}
    return replace(text, arms=arms, drafts=drafts, logprobs=logprobs)


@pytest.mark.parametrize("kind", ["rising", "any", "spikes"])
@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_knows_arms_of_several_drafters(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_costs(rng, kind)
    text = with_drafts(rng, random_text(rng, NAMES, int(rng.integers(3, 10))))
    arms = [*map(parse_arm, ("a:3>b:2", "b:2>a:1>c:4", "a:1+c:4", "c:4")), PLAIN_ARM]
    traces = handmade_set([text], model, len(text) + 1 + seed % 2 * 9)
    (priced,) = price_traces(traces, arms)
    found = walk_optimal(priced)
    assert found.seconds == pytest.approx(cheapest(traces, arms), rel=1e-12)
    assert found.seconds == paid(priced, found.arms)


def paid(text: PricedText, arms: tuple[int, ...]) -> float:
    """What a sequence of choices costs."""
    chosen = iter(arms)
    return walk(text, lambda position, costs: next(chosen)).seconds


@pytest.mark.parametrize("kind", ["rising", "falling", "any", "spikes"])
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_the_cheapest_of_all_sequences(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_costs(rng, kind)
    length = int(rng.integers(1, 13))
    traces = handmade_set([random_text(rng, NAMES, length)], model, length + 1 + seed % 2 * 9)
    (text,) = price_traces(traces, ARMS)
    found = walk_optimal(text)
    assert found.seconds == pytest.approx(cheapest(traces, ARMS), rel=1e-12)
    assert found.seconds == paid(text, found.arms)
    assert found.tokens == length


@pytest.mark.parametrize("seed", range(4))
def test_no_way_of_choosing_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    traces = handmade_set([random_text(rng, NAMES, 80)], random_costs(rng, "rising"))
    (text,) = price_traces(traces, ARMS)
    others = [walk_single(text, arm) for arm in ARMS]
    others += [walk_greedy(text, price) for price in (0.0, 0.5, 1.0, 2.0, 9.0)]
    others += [walk(text, lambda p, costs: int(rng.integers(len(ARMS)))) for _ in range(50)]
    others += [walk(text, lambda p, costs: int(np.argmin(costs)))]
    assert walk_optimal(text).seconds <= min(other.seconds for other in others)


def test_a_drafter_that_must_catch_up_much_is_not_worth_a_visit() -> None:
    """A round of b saves two of a's, but b has three positions of the prompt to encode first."""
    committed = {"a:3": [1, 1, 1, 1, 1, 1], "b:2": [3, 1, 1, 1, 1, 1]}
    arms = [Arm("a", 3), Arm("b", 2)]
    for per_position, visits in [(0.0, True), (1.0, False)]:
        model = handmade_costs(1.0, 0.0, {"b": [per_position * waited for waited in range(40)]})
        (text,) = price_traces(handmade_set([handmade_text(committed)], model), arms)
        assert (1 in walk_optimal(text).arms) == visits


def test_a_way_that_pays_only_later_is_kept() -> None:
    """Using a at 0 helps nobody at 1, but spares the price of a backlog of 6 at 2."""
    model = handmade_costs(1.0, 0.0, {"a": [0.0, 3.0, 0.0, 3.0, 0.1, 3.0, 3.0, 3.0]})
    traces = handmade_set([handmade_text({"a:3": [1, 1, 4, 1, 1, 1]}, prompt_tokens=4)], model)
    (text,) = price_traces(traces, [Arm("a", 3), PLAIN_ARM])
    found = walk_optimal(text)
    assert found.arms == (0, 1, 0)
    assert found.seconds == pytest.approx(3.1)


def test_walks_of_one_arm_pay_for_its_own_backlog() -> None:
    model = handmade_costs(1.0, 0.25, {"b": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]})
    traces = handmade_set([handmade_text({"b:2": [3, 1, 1, 1, 2, 1]}, prompt_tokens=5)], model)
    (text,) = price_traces(traces, [PLAIN_ARM, Arm("b", 2)])
    found = walk_single(text, Arm("b", 2))
    # Rounds begin at 0, 3 and 4; of the prompt's 5 positions b leaves one to its first draft.
    assert found.arms == (1, 1, 1)
    assert found.seconds == pytest.approx(3 * 1.5 + 0.4 + 0.3 + 0.1)
    assert walk_single(text, PLAIN_ARM).seconds == pytest.approx(6 * 1.0)


def test_with_one_token_left_nobody_catches_up() -> None:
    model = handmade_costs(1.0, 0.0, {"a": [0.0] + [0.5] * 20})
    committed = handmade_text({"a:3": [1, 1, 1]})
    for limit, caught_up in [(4, 2), (50, 3)]:
        (text,) = price_traces(handmade_set([committed], model, limit), [Arm("a", 3)])
        assert walk_single(text, Arm("a", 3)).seconds == pytest.approx(3 + 0.5 * caught_up)


@pytest.mark.parametrize("seed", range(4))
def test_replaying_the_same_choices_costs_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = {name: [0.0, *rng.uniform(0, 2, 40)] for name in LAGS}
    model = handmade_costs(1.0, 0.2, tables)
    traces = handmade_set([random_text(rng, NAMES, 30)], model, 31 if seed % 2 else 90)
    (text,) = price_traces(traces, ARMS)
    replay, seconds, chosen, done = Replay(traces, ARMS), 0.0, [], False
    while not done:
        chosen.append(int(rng.integers(len(ARMS))))
        played = replay.step(np.array(chosen[-1:]))
        seconds, done = seconds + float(played.seconds[0]), bool(played.done[0])
    assert paid(text, tuple(chosen)) == pytest.approx(seconds)


def test_the_greedy_price_is_the_rate_it_brings() -> None:
    rng = np.random.default_rng(0)
    model = random_costs(rng, "rising")
    texts = price_traces(handmade_set([random_text(rng, NAMES, 40) for _ in range(5)], model), ARMS)
    price = greedy_price(texts)
    rate = total([walk_greedy(text, price) for text in texts]).tokens_per_second
    assert rate == pytest.approx(price)
    single = max(
        total([walk_single(text, arm) for text in texts]).tokens_per_second for arm in ARMS
    )
    best = total([walk_optimal(text) for text in texts]).tokens_per_second
    assert single < rate <= best


def test_where_rounds_cost_the_same_the_optimum_has_the_fewest() -> None:
    text = handmade_text({"a:3": [3, 1, 1, 2, 1, 1, 1], "b:2": [1, 2, 1, 3, 1, 1, 1]})
    arms = [Arm("a", 3), Arm("b", 2)]
    (priced,) = price_traces(handmade_set([text], handmade_costs(catch_up={"b": [9] * 9})), arms)
    found = walk_optimal(one_each(priced))
    assert (found.rounds, found.seconds) == (3, 3.0)  # a to 3, b to 6, then either
    assert found.arms[:2] == (0, 1)


def test_a_text_of_one_token_needs_no_round() -> None:
    traces = handmade_set([handmade_text({"a:3": []})])
    (text,) = price_traces(traces, [Arm("a", 3)])
    for found in (walk_optimal(text), walk_single(text, Arm("a", 3)), walk_greedy(text, 1.0)):
        assert (found.tokens, found.rounds, found.seconds) == (0, 0, 0.0)


def test_costs_that_are_not_known_are_refused() -> None:
    traces = handmade_set([handmade_text({"a:3": [1]})])
    with pytest.raises(DraftgymError, match="'b:2' is not in these traces"):
        price_traces(traces, [Arm("b", 2)])
    model = CostModel({}, traces.origin.cost_model.target_pass, {}, {})
    with pytest.raises(DraftgymError, match="knows no costs of a"):
        price_traces(traces, [Arm("a", 3)], model)


@pytest.mark.parametrize("kept", [1, 3, 128])
@pytest.mark.parametrize("kind", ["rising", "falling", "any", "spikes"])
def test_what_a_backlog_can_cost_more_is_the_largest_of_all_later_differences(
    kind: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing._Suffixes, "ROWS", kept)
    rng = np.random.default_rng(1)
    model = random_costs(rng, kind)
    tables = np.stack([pricing.catch_up_table(model, name, 45) for name in LAGS])
    costs = pricing.CatchUps(tables)
    size = tables.shape[1]
    for _ in range(40):
        drafter, backlog = int(rng.integers(len(tables))), int(rng.integers(size))
        others = rng.integers(size, size=int(rng.integers(1, 9)))
        expected = [
            max(
                0.0,
                *(
                    tables[drafter, backlog + s] - tables[drafter, other + s]
                    for s in range(size - max(backlog, other))
                ),
            )
            for other in others.tolist()
        ]
        assert costs.most_extra(drafter, backlog, others).tolist() == expected


def test_the_optimum_of_a_long_text_needs_no_square_of_it() -> None:
    """A table over pairs of backlogs would be 3 x 6,000 x 6,000 numbers, 864 MB."""
    rng = np.random.default_rng(2)
    text = replace(random_text(rng, NAMES, 300), prompt_tokens=5700)
    model = handmade_costs(
        1.0, 0.2, {name: [0.0, *np.sort(rng.uniform(0, 2, 40))] for name in "abc"}
    )
    (priced,) = price_traces(handmade_set([text], model), ARMS)
    tracemalloc.start()
    try:
        found = walk_optimal(priced)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    assert found.seconds == paid(priced, found.arms)
    assert found.seconds <= min(walk_single(priced, arm).seconds for arm in ARMS)
