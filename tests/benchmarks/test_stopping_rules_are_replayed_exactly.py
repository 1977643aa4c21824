"""`benchmarks.routers.stopping`: rules play in replay what they would play live."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from benchmarks.routers.early_stop.acceptance import (
    PATH,
    TOKEN,
    Examples,
    Signal,
    make_signals,
    quality,
    train_head,
)
from benchmarks.routers.early_stop.chains import Chains, collect_chains
from benchmarks.routers.early_stop.rules import (
    RULES,
    SHIPPED,
    Setting,
    play_roc,
    stop,
)
from benchmarks.routers.early_stop.scene import Scene, price_chains, uses
from benchmarks.routers.stopping import compare, tables
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.policies.routers.acceptance import REJECTED
from draftgym.policies.routers.stopping import RocThreshold
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.replay.oracle import total, walk_single
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.traces.trace import TraceSet
from tests.tiny import numbered_target
from tests.traces import tiny_traces

LENGTH, TOKENS = 5, 24
SURE = (0.02, 0.1, 0.3)
"""Probabilities that stop a path of the tiny drafter early, seldom, and nearly always."""
Tiny = tuple[TraceSet, Chains]


def prompts(first: int, count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "chat", (f"{i}",)) for i in range(first, first + count)]


def collected(target: Target, drafters: dict[str, Drafter], first: int = 0, count: int = 4) -> Tiny:
    """Traces, and the chains at their positions."""
    some, drafter = prompts(first, count), drafters["eagle3"]
    assert isinstance(drafter, Eagle3Drafter)
    traces = tiny_traces(target, drafters, 0.0, ["eagle3:3", "ngram:4"], some, TOKENS)
    ids = {one.question_id: numbered_target(target).encode(one.text) for one in some}
    return traces, collect_chains(target, drafter, traces, ids, LENGTH)


@pytest.fixture(scope="module")
def tiny(target: Target, drafters: dict[str, Drafter]) -> Tiny:
    return collected(target, drafters)


def scene_of(tiny: Tiny, first: str | None = None) -> Scene:
    sure = tiny[1].logprobs.astype(np.float64)
    signals = {TOKEN: Signal(sure), PATH: Signal(sure, of_path=True)}
    arm = None if first is None else parse_arm(first)
    return Scene.of(price_chains(*tiny, "eagle3", arm), tiny[1], signals)


def test_chains_are_those_of_the_traces(tiny: Tiny) -> None:
    traces, chains = tiny
    there = np.arange(3) < np.minimum(chains.room, 3)[:, None]
    drafts = np.concatenate([text.drafts["eagle3"].tokens for text in traces.texts])
    logprobs = np.concatenate([text.logprobs["eagle3"] for text in traces.texts])
    np.testing.assert_array_equal(chains.tokens[:, :3][there], drafts[there])
    np.testing.assert_allclose(chains.logprobs[:, :3][there], logprobs[there], atol=1e-5)
    assert chains.accepted.max() > 1, "some tokens are accepted"
    assert (chains.entropies > 0).all() and (chains.entropies <= math.log(40) + 1e-5).all()


@pytest.mark.parametrize("sure", SURE)
def test_replay_plays_the_rounds_of_live_decoding(
    target: Target, drafters: dict[str, Drafter], tiny: Tiny, sure: float
) -> None:
    arm, scene = parse_arm(f"eagle3:{LENGTH}~{sure}"), scene_of(tiny)
    walks = RULES[PATH].play(scene, Setting(LENGTH, math.log(sure), keeps=False))
    drafted, verified = uses(LENGTH)
    for text, mine in zip(tiny[0].texts, walks, strict=True):
        prompt = numbered_target(target).encode(text.question_id[1:])
        session = Session(target, prompt, GreedyRule(), TOKENS, {"eagle3": drafters["eagle3"]})
        session.prefill()
        live = []
        while not session.finished:
            record = play_round(session, arm)
            live.append((record.asked[0].drafted, len(record.drafted)))
        assert session.new_tokens == text.tokens.tolist()
        assert live == [(drafted[use], verified[use]) for use in mine.arms]


@pytest.mark.parametrize("first", [None, "ngram:4"])
@pytest.mark.parametrize("sure", [0.0, *SURE])
def test_rounds_cost_what_the_arm_with_that_threshold_costs(
    tiny: Tiny, first: str | None, sure: float
) -> None:
    name = "eagle3:3" + (f"~{sure}" if sure else "")
    arm = parse_arm(name if first is None else f"{first}>{name}")
    texts = price_traces(tiny[0], [arm])
    wanted = [walk_single(text, arm) for text in texts]
    least = math.log(sure) if sure else -math.inf
    mine = RULES[PATH].play(scene_of(tiny, first), Setting(3, least, keeps=False))
    assert [walk.rounds for walk in mine] == [walk.rounds for walk in wanted]
    # Where there is no room, traces charge a draft that nobody makes.
    over = tiny[0].origin.cost_model.draft["eagle3"](0)
    for one, other in zip(mine, wanted, strict=True):
        gap = other.seconds - one.seconds
        assert gap == pytest.approx(0, abs=1e-9) or gap == pytest.approx(over, abs=1e-9)


@pytest.mark.parametrize("first", [None, "ngram:4"])
def test_texts_side_by_side_are_as_fast_as_one_by_one(tiny: Tiny, first: str | None) -> None:
    scene, rng = scene_of(tiny, first), np.random.default_rng(0)
    chosen = rng.integers(0, 1 + np.minimum(scene.chains.room, LENGTH))
    for use in (chosen, np.where(chosen > 0, chosen + LENGTH, 0)):
        wanted = total(scene.play(use)).tokens_per_second
        assert scene.speed(use) == pytest.approx(wanted)


def test_a_draft_stops_at_the_first_unsure_token() -> None:
    scores = np.array([[-1.0, -9.0, -1.0], [-1.0, -1.0, -1.0], [-9.0, -1.0, -1.0]])
    room, (drafted, verified) = np.array([3, 2, 0]), uses(3)
    for keeps, wanted in ((False, [1, 2, 0]), (True, [2, 2, 0])):
        chosen = stop(scores, room, Setting(3, -5.0, keeps))
        assert drafted[chosen].tolist() == [2, 2, 0]
        assert verified[chosen].tolist() == wanted
    assert drafted[stop(scores, room, Setting(1, -5.0, keeps=False))].tolist() == [1, 1, 0]


def test_who_judges_late_knows_nothing_of_the_newest_token() -> None:
    scores = Signal(np.array([[-1.0, -2.0, -4.0]]), of_path=True, late=True).scores()
    assert scores.tolist() == [[0.0, -1.0, -3.0]]


def test_the_threshold_moves_to_the_cheapest_point_of_the_roc_curve() -> None:
    threshold = RocThreshold(0.4)
    threshold.add([0.9, 0.8, 0.3], accepted=2)
    assert threshold.least == 0.4, "six tokens are too few"
    threshold.add([0.7, 0.5, 0.2], accepted=1)  # behind 0.5, nobody knows
    assert threshold.least == 0.4
    threshold.add([0.6, 0.1], accepted=1)
    # Right: 0.9, 0.8, 0.7, 0.6; wrong: 0.5, 0.3, 0.1. From 0.6 on all are right, none is missed.
    assert threshold.least == 0.6
    threshold.add([0.05], accepted=1)
    # Now 0.6 misses a fifth of the right ones: 0.6. At 0.05 all wrong ones pass: 1.
    assert threshold.least == 0.6
    for _ in range(3):
        threshold.add([0.05], accepted=1)
    # Half of the right ones are missed at 0.6: 1.5.
    assert threshold.least == 0.05


def test_the_threshold_is_that_of_scikit_learns_curve() -> None:
    rng, threshold = np.random.default_rng(0), RocThreshold(0.4)
    scores: list[float] = []
    right: list[bool] = []
    for _ in range(40):
        mine, accepted = rng.integers(1, 20, 4) / 20, int(rng.integers(0, 5))
        threshold.add(mine.tolist(), accepted)
        right += [True] * accepted + [False] * (accepted < 4)
        scores += mine[: accepted + 1].tolist()
        if len(scores) > 5 and len(set(right)) == 2:
            wrong, found, at = roc_curve(right, scores)
            assert threshold.least == at[np.argmin((wrong + 3 * (1 - found)).round(12))]


def test_each_text_begins_with_a_threshold_of_its_own(tiny: Tiny) -> None:
    scene, setting = scene_of(tiny, "ngram:4"), Setting(LENGTH, math.log(0.05), keeps=True)
    alone, across = (play_roc(scene, setting, one) for one in (False, True))
    assert alone[0] == across[0]
    last = replace(scene, texts=scene.texts[-1:])
    rows = slice(len(scene.asked) - len(scene.texts[-1]), None)
    columns = {name: value[rows] for name, value in vars(scene.chains).items()}
    last = replace(last, chains=Chains(**columns), asked=scene.asked[rows])
    assert play_roc(last, setting, across=False) == alone[-1:]


def test_heads_find_what_the_states_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    facts = torch.randn(40_000, 8, generator=generator)
    right = (facts[:, 0] > facts[:, 1]).float()
    head = train_head(facts, right, weight=1.0, seed=0)
    fresh = torch.randn(1000, 8, generator=generator)
    guessed = head(fresh) > 0
    assert (guessed == (fresh[:, 0] > fresh[:, 1])).float().mean() > 0.9
    careful = train_head(facts, right, weight=REJECTED, seed=0)
    assert careful(fresh).mean() < head(fresh).mean()


def test_tokens_behind_a_rejected_one_teach_nothing(tiny: Tiny) -> None:
    known = Examples.of(tiny[1], late=False, knows_all=True).known
    assert (
        known.sum(1) == np.minimum(tiny[1].accepted + 1, np.minimum(tiny[1].room, LENGTH))
    ).all()


def test_a_signal_that_knows_is_told_from_one_that_does_not(tiny: Tiny) -> None:
    chains = tiny[1]
    right = (np.arange(LENGTH) < chains.accepted[:, None]).astype(np.float64)
    noise = np.random.default_rng(1).random(right.shape)
    told = quality(chains, chains, Signal(right), Signal(right))
    assert told["auc"] == told["path"] == 1 and told["log_loss"] < 0.01
    assert abs(quality(chains, chains, Signal(noise), Signal(noise))["auc"] - 0.5) < 0.2


def test_every_rule_is_tuned_and_told(
    target: Target, drafters: dict[str, Drafter], tiny: Tiny
) -> None:
    heldout = collected(target, drafters, first=20)
    result: Any = compare(tiny, heldout, "eagle3", "ngram:4", "ngram:4>eagle3:3~0.1", folds=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["scenes"]) == ["eagle3", "ngram:4>eagle3"]
    for rows in result["scenes"].values():
        best = rows["*knowing what will be accepted*"]["tokens_per_second"]
        chained = [row for row in rows.values() if "setting" in row]
        assert len(chained) == 10
        assert all(row["tokens_per_second"] <= best + 1e-9 for row in chained)
        assert rows[SHIPPED]["over_shipped"] == [0, 0, 0]
    text = "\n".join(table.markdown() for table in tables(result))
    assert text.count("acceptance head") == 3 and "threshold by ROC over all texts" in text


def test_mistakes_are_answered(target: Target, drafters: dict[str, Drafter], tiny: Tiny) -> None:
    traces, drafter = tiny[0], drafters["eagle3"]
    assert isinstance(drafter, Eagle3Drafter)
    with pytest.raises(DraftgymError, match="of no first turn of these prompts"):
        collect_chains(target, drafter, traces, {}, LENGTH)
    sampled = replace(traces, origin=replace(traces.origin, temperature=1.0))
    with pytest.raises(DraftgymError, match="no greedy texts"):
        collect_chains(target, drafter, sampled, {}, LENGTH)
    with pytest.raises(DraftgymError, match="make no 9 folds"):
        compare(tiny, tiny, "eagle3", "ngram:4", "ngram:4>eagle3:3", folds=9)
    assert make_signals(tiny[1], tiny[1], [0, 20, 40, 60], folds=2)[0][PATH].of_path
