"""From decoded texts to figures: one row per policy and category, and every text that differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation
from draftgym.decoding.round import RoundRecord
from draftgym.rollouts.decode.interleaved import DecodedText
from draftgym.rollouts.report.stalls import Stall

ALL = "all"
"""The category of a policy's row over all prompts."""

SecondsPredictor = Callable[[RoundRecord], float]
"""Seconds of a round as a cost model predicts them, the decision left out."""


@dataclass(frozen=True)
class Row:
    """One policy on one category.

    Attributes:
        policy: Its name.
        category: Category of the prompts, or `all`.
        prompts: How many.
        tokens: Tokens written by rounds (each text's first token belongs to prefill).
        seconds: Decode seconds: all rounds, decisions included, prefill not.
        tokens_per_second: `tokens / seconds`.
        acceptance_length: Committed tokens per round, the target's own token included.
        speedup: `tokens_per_second` over plain decoding's on the same prompts of the same run.
        identical_texts: Prompts whose tokens are plain decoding's, all of them.
        prefill_seconds: Prompts and first tokens.
        rounds: How many.
        decision_share: Part of `seconds` spent on observing and choosing.
        arm_shares: Part of the rounds that each arm got.
        speedup_p10: 10th percentile of the single prompts' speed-ups.
        speedup_p50: Their median.
        speedup_p90: Their 90th percentile.
        predicted_seconds: `seconds` as the cost model predicts them; None without one.
    """

    policy: str
    category: str
    prompts: int
    tokens: int
    seconds: float
    tokens_per_second: float
    acceptance_length: float
    speedup: float
    identical_texts: int
    prefill_seconds: float
    rounds: int
    decision_share: float
    arm_shares: dict[str, float]
    speedup_p10: float
    speedup_p50: float
    speedup_p90: float
    predicted_seconds: float | None = None


@dataclass(frozen=True)
class Difference:
    """A text that is not plain decoding's.

    Attributes:
        policy: Who wrote it.
        question_id: Its prompt.
        category: The prompt's category.
        index: First differing token, counted from 0 within the new tokens.
        plain_token: Plain decoding's token there; None where its text has ended.
        policy_token: The policy's token there; None where its text has ended.
        margin: How far plain decoding's choice at `index` was ahead of the runner-up (logits, or
            scores with noise under `coupled`); None where that is not defined (`rejection`).
    """

    policy: str
    question_id: str
    category: str
    index: int
    plain_token: int | None
    policy_token: int | None
    margin: float | None


@dataclass(frozen=True)
class ArmCost:
    """What the rounds of one arm took, and what a cost model says they should take.

    Attributes:
        arm: The arm.
        rounds: Rounds of every policy that chose it.
        measured_seconds: All of them, decisions left out.
        predicted_seconds: The same by the cost model.
    """

    arm: str
    rounds: int
    measured_seconds: float
    predicted_seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A finished comparison.

    Attributes:
        environment: Where and how it was measured.
        rows: One per policy and category, `all` last.
        differences: Texts that are not plain decoding's.
        texts: The texts themselves, with their rounds; those of peers stand apart.
        choices: The arms that each policy chooses from, policies in the order of the tables.
        arm_costs: Measured and predicted seconds by arm; empty without a cost model.
        stalls: Texts at which the machine stood still.
        peer_texts: What other engines wrote.
        weights: In which numbers each of all who wrote holds the weights; empty without peers.
    """

    environment: dict[str, Any]
    rows: list[Row]
    differences: list[Difference]
    texts: list[DecodedText]
    choices: dict[str, list[str]]
    arm_costs: list[ArmCost]
    stalls: list[Stall]
    peer_texts: list[DecodedText] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)


Texts = dict[tuple[str, str], DecodedText]
"""Texts by (policy, question id)."""


def index_texts(texts: Sequence[DecodedText]) -> Texts:
    """Texts by (policy, question id)."""
    return {(text.policy, text.prompt.question_id): text for text in texts}


def make_rows(
    texts: Sequence[DecodedText],
    policies: Sequence[str],
    predict_seconds: SecondsPredictor | None = None,
) -> list[Row]:
    """All rows: category by category (in the order of their first prompt), then `all`.

    Args:
        texts: Every prompt with every policy, `plain` among them.
        policies: Order of the rows within a category.
        predict_seconds: Fills `Row.predicted_seconds`.
    """
    by_key = index_texts(texts)
    prompts = list({text.prompt.question_id: text.prompt for text in texts}.values())
    categories = [*dict.fromkeys(prompt.category for prompt in prompts), ALL]
    rows = []
    for category in categories:
        ids = [p.question_id for p in prompts if category in (p.category, ALL)]
        plain = [by_key[PLAIN, one].generation for one in ids]
        for policy in policies:
            mine = [by_key[policy, one].generation for one in ids]
            rows.append(_row(policy, category, mine, plain, predict_seconds))
    return rows


def make_arm_costs(
    texts: Sequence[DecodedText], predict_seconds: SecondsPredictor
) -> list[ArmCost]:
    """One entry per arm that was played, the most played first."""
    records: dict[str, list[RoundRecord]] = {}
    for text in texts:
        for item in text.generation.rounds:
            records.setdefault(str(item.record.arm), []).append(item.record)
    return [
        ArmCost(
            arm,
            len(played),
            sum(record.times.total for record in played),
            sum(map(predict_seconds, played)),
        )
        for arm, played in sorted(records.items(), key=lambda item: -len(item[1]))
    ]


def find_differences(
    texts: Sequence[DecodedText], margins: Callable[[DecodedText], Sequence[float]]
) -> list[Difference]:
    """Every text that is not plain decoding's, in the order of `texts`.

    Args:
        texts: Every prompt with every policy, `plain` among them.
        margins: Margins of a plain text, called at most once per prompt and only for prompts with
            a difference: recording margins costs time that must not count.
    """
    by_key = index_texts(texts)
    known: dict[str, Sequence[float]] = {}
    differences = []
    for text in texts:
        question = text.prompt.question_id
        plain = by_key[PLAIN, question]
        index = first_difference(text.generation.tokens, plain.generation.tokens)
        if index is None:
            continue
        if question not in known:
            known[question] = margins(plain)
        differences.append(_difference(text, plain, index, known[question]))
    return differences


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, or where the shorter text ends; None if equal."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def _row(
    policy: str,
    category: str,
    mine: Sequence[Generation],
    plain: Sequence[Generation],
    predict_seconds: SecondsPredictor | None,
) -> Row:
    tokens, seconds = _tokens(mine), sum(one.decode_seconds for one in mine)
    speed, plain_speed = _ratio(tokens, seconds), _speed(plain)
    played = [item for one in mine for item in one.rounds]
    chosen = Counter(str(item.record.arm) for item in played)
    pairs = zip(mine, plain, strict=True)
    ratios = [
        one.tokens_per_second / ref.tokens_per_second
        for one, ref in pairs
        if one.rounds and ref.rounds  # a text of one token says nothing about speed
    ]
    p10, p50, p90 = np.percentile(ratios or [0.0], [10, 50, 90]).tolist()
    return Row(
        policy=policy,
        category=category,
        prompts=len(mine),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=speed,
        acceptance_length=_ratio(sum(len(i.record.committed) for i in played), len(played)),
        speedup=_ratio(speed, plain_speed),
        identical_texts=sum(a.tokens == b.tokens for a, b in zip(mine, plain, strict=True)),
        prefill_seconds=sum(one.prefill_seconds for one in mine),
        rounds=len(played),
        decision_share=_ratio(sum(item.decide_seconds for item in played), seconds),
        arm_shares={arm: count / len(played) for arm, count in chosen.most_common()},
        speedup_p10=p10,
        speedup_p50=p50,
        speedup_p90=p90,
        predicted_seconds=(
            sum(predict_seconds(item.record) for item in played) if predict_seconds else None
        ),
    )


def _difference(
    text: DecodedText, plain: DecodedText, index: int, margins: Sequence[float]
) -> Difference:
    def at(values: Sequence[Any]) -> Any:
        return values[index] if index < len(values) else None

    margin = at(margins)
    return Difference(
        policy=text.policy,
        question_id=text.prompt.question_id,
        category=text.prompt.category,
        index=index,
        plain_token=at(plain.generation.tokens),
        policy_token=at(text.generation.tokens),
        margin=margin if margin is not None and np.isfinite(margin) else None,
    )


def _tokens(texts: Sequence[Generation]) -> int:
    return sum(len(item.record.committed) for one in texts for item in one.rounds)


def _speed(texts: Sequence[Generation]) -> float:
    return _ratio(_tokens(texts), sum(one.decode_seconds for one in texts))


def _ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0 where nothing was measured (texts of a single token)."""
    return part / whole if whole else 0.0
