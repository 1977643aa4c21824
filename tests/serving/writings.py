"""Texts of a batch without the batch: sessions behind their prompts, and rounds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import RoundRecord, play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.serving.batching.choosing import BatchPolicy, Writing
from draftgym.serving.batching.requests import TextRequest, TextStatistics

PATTERN = [5, 6, 7, 8]


def writing(
    target: Target, drafters: Mapping[str, Drafter], prompt: Sequence[int], new: int = 40
) -> Writing:
    """A text whose prompt has been read."""
    ids = torch.tensor(prompt)
    session = Session(target, ids, GreedyRule(), new, drafters)
    session.prefill()
    return Writing(TextRequest(ids, new), session, TextStatistics())


def some_writings(target: Target, drafters: Mapping[str, Drafter], count: int) -> list[Writing]:
    """Texts with different prompts of different lengths."""
    return [writing(target, drafters, range(4 + i, 10 + 2 * i)) for i in range(count)]


def play(
    policy: BatchPolicy, texts: Sequence[Writing], played: Sequence[Arm] | None = None
) -> list[RoundRecord]:
    """A round as the batch plays it.

    Args:
        policy: Chooses for all.
        texts: The batch.
        played: What is drafted instead of what was chosen.
    """
    arms = policy.choose(texts, texts)
    records = play_rounds([text.session for text in texts], played or arms)
    for text, arm, record in zip(texts, arms, records, strict=True):
        policy.learn(text, arm, record)
    return records
