"""`benchmarks.routers.knowable`: facts are worth what they tell, and nobody beats the optimum."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.report import markdown
from benchmarks.routers.facts import Facts, known_facts
from benchmarks.routers.knowable import KnowableArgs, compare, measure, without_noise
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from draftgym.rollouts.replay.pricing import PricedText, price_traces
from draftgym.rollouts.traces.trace import Drafts, TextTrace
from tests.handmade.texts import handmade_set, handmade_text
from tests.traces import save_traces, tiny_traces

RULE, OTHER = "a:2", "b:4"
LENGTH = 40


def written(count: int, seed: int) -> list[PricedText]:
    """Texts on which the rule always commits 3 tokens, and the other arm 1 or, less often, 5."""
    rng = np.random.default_rng(seed)
    left = LENGTH - np.arange(LENGTH)
    texts = []
    for index in range(count):
        lucky = np.where(rng.random(LENGTH) < 0.3, 5, 1)
        columns = {RULE: np.full(LENGTH, 3), OTHER: lucky}
        cut = {arm: np.minimum(column, left).tolist() for arm, column in columns.items()}
        texts.append(handmade_text(cut, question_id=f"q{index}"))
    return price_traces(handmade_set(texts), [parse_arm(RULE), parse_arm(OTHER)])


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """Of a level that is noise, and of one that gives the outcome away."""
    both = [written(16, 0), written(12, 1)]
    noise = np.random.default_rng(2)

    def facts(texts: list[PricedText]) -> Facts:
        outcome = np.concatenate([text.committed for text in texts]).astype(np.float64)
        return {"noise": noise.random((len(outcome), 3)), "outcome": outcome}

    return compare(*both, *map(facts, both), folds=3)


def test_who_knows_the_outcome_comes_near_the_optimum(figures: dict[str, Any]) -> None:
    level = figures["levels"]["outcome"]
    for found in (level["heldout"]["all"], level["set_aside"]):
        assert 0.7 < found["share_of_possible"] <= 1
    assert level["agreement"][OTHER]["truth"] > 0.9
    assert without_noise({OTHER: level["agreement"][OTHER]}) > 0.9


def test_noise_is_not_ahead_of_the_rule(figures: dict[str, Any]) -> None:
    level = figures["levels"]["noise"]
    for found in (level["set_aside"], *level["heldout"].values()):
        assert found["gain"][0] <= 0.01
    assert abs(level["agreement"][OTHER]["truth"]) < 0.2


def test_nobody_beats_the_optimum(figures: dict[str, Any]) -> None:
    optimum = figures["knowing"]["exact optimum"]
    assert optimum["share_of_possible"] == pytest.approx(1) and optimum["gain"][0] > 0.05
    rows = [one for level in figures["levels"].values() for one in level["heldout"].values()]
    for row in (*rows, *figures["knowing"].values()):
        assert row["tokens_per_second"] <= optimum["tokens_per_second"] + 1e-9


def prompts(first: int, count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "chat", (f"{i}",)) for i in range(first, first + count)]


@pytest.fixture
def args(target: Target, drafters: dict[str, Drafter], tmp_path: Path) -> KnowableArgs:
    arms = ["eagle3:3", "dflash:4x8", "ngram:4"]
    train, heldout = (
        tiny_traces(target, drafters, 0.0, arms, prompts(first, 4), 12) for first in (0, 50)
    )
    return KnowableArgs(
        traces=save_traces(train, tmp_path / "traces"),
        heldout=save_traces(heldout, tmp_path / "heldout"),
        rule="ngram:4>eagle3:3",
        folds=2,
        json=tmp_path / "knowable.json",
    )


@pytest.mark.slow
def test_every_level_is_told(args: KnowableArgs) -> None:
    result = measure(args)
    assert args.json is not None and json.loads(args.json.read_text()) == result
    assert result["arms"] == ["ngram:4>eagle3:3", "eagle3:3", "dflash:4x8", "ngram:4", "plain"]
    counts = [level["facts"] for level in result["levels"].values()]
    assert len(counts) == 6 and counts == sorted(set(counts)), "each level adds to those before"
    text = markdown(args.json)
    assert all(f"| + {level} |" in text for level in result["levels"])


def drafted(tokens: NDArray[np.int64], rng: np.random.Generator) -> TextTrace:
    """A text of zeros and ones, and chains of the same that two drafters guess at random."""
    count, made = len(tokens) - 1, {}
    drafts = {name: rng.integers(0, 2, (count, 4)).astype(np.int32) for name in "ab"}
    for name, rows in drafts.items():
        right = [tokens[place + 1 :][:4] == row[: count - place] for place, row in enumerate(rows)]
        made[f"{name}:4"] = [
            min(1 + int(np.append(one, False).argmin()), count - place)
            for place, one in enumerate(right)
        ]
    logprobs = {name: np.log(rng.random((count, 4))).astype(np.float32) for name in "ab"}
    return replace(
        handmade_text(made),
        tokens=tokens,
        logprobs=logprobs,
        drafts={name: Drafts(rows) for name, rows in drafts.items()},
        matches={"a": rng.integers(0, 5, count)},
    )


def test_facts_at_a_position_do_not_tell_the_text_behind_it() -> None:
    rng = np.random.default_rng(3)
    here, tokens = 12, rng.integers(0, 2, 30)
    other = np.append(tokens[: here + 1], 1 - tokens[here + 1 :])
    traces = [handmade_set([drafted(one, np.random.default_rng(4))]) for one in (tokens, other)]
    one, another = known_facts(*traces, first="b")
    for level in one:
        np.testing.assert_array_equal(one[level][: here + 1], another[level][: here + 1])
    assert not np.array_equal(one["recent rounds"], another["recent rounds"])


def test_mistakes_are_answered(args: KnowableArgs, target: Target, drafters: Any) -> None:
    from dataclasses import replace

    with pytest.raises(DraftgymError, match="make no 9 folds"):
        measure(replace(args, folds=9))
    with pytest.raises(DraftgymError, match="no medusa"):
        measure(replace(args, drafter="medusa"))
    held_out = [Prompt(load_prompts("heldout")[0].question_id, "chat", ("3",))]
    leaked = tiny_traces(target, drafters, 0.0, ["eagle3:3", "ngram:4"], held_out, 12)
    folder = save_traces(leaked, args.traces.parent / "leaked")
    with pytest.raises(DraftgymError, match="held-out prompts"):
        measure(replace(args, traces=folder))
