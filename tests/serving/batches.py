"""Batches of tiny models for tests: submitted, played to the end, and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.batcher import Batcher, BatchSettings
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.batching.requests import (
    Event,
    Failed,
    Finished,
    NewTokens,
    PromptRead,
    TextRequest,
    TextStatistics,
)


@dataclass
class Heard:
    """What a text's listener was told."""

    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """New tokens so far."""
        return [t for e in self.events if isinstance(e, NewTokens) for t in e.tokens]

    @property
    def last(self) -> Event:
        """The newest event."""
        return self.events[-1]

    @property
    def statistics(self) -> TextStatistics:
        """Of a finished text."""
        assert isinstance(self.last, Finished), self.last
        return self.last.statistics

    @property
    def prompt(self) -> PromptRead:
        """What was told of the prompt."""
        (told,) = (e for e in self.events if isinstance(e, PromptRead))
        return told

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return bool(self.events) and isinstance(self.last, Finished | Failed)


def batcher(
    target: Target,
    drafters: Mapping[str, Drafter],
    policy: str = "eagle3:3",
    clock: Any = None,
    watch: Any = None,
    **settings: Any,
) -> Batcher:
    """A batch that plays when it is told to (`step`), with the guard off unless asked for."""
    policies = PolicySet(target, drafters, {policy: policy})
    limits = BatchSettings(**{"guard": False, **settings})
    given = {} if clock is None else {"clock": clock}
    return Batcher(target, drafters, policies, limits, watch, **given)


def submit(batch: Batcher, requests: Sequence[TextRequest]) -> list[Heard]:
    """Submits texts; what each hears."""
    heard = [Heard() for _ in requests]
    for request, one in zip(requests, heard, strict=True):
        batch.submit(request, one.events.append)
    return heard


def play(batch: Batcher, most: int = 5000) -> int:
    """Plays until nothing is left to do; how many rounds that took."""
    for played in range(most):
        if not batch.running and not batch.waiting:
            return played
        batch.step()
    raise AssertionError(f"{batch.running} texts are still running behind {most} rounds")


def written(batch: Batcher, requests: Sequence[TextRequest]) -> list[Heard]:
    """Submits texts and plays to the end."""
    heard = submit(batch, requests)
    play(batch)
    return heard


def alone(target: Target, request: TextRequest) -> list[int]:
    """What plain decoding writes for a request."""
    if not request.max_new_tokens:
        return []
    result = SpeculativeDecoder(target, {}, PlainPolicy()).generate(
        request.prompt,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stops=request.stops,
        sampling=request.sampling,
    )
    return result.tokens


def prompt_of(target: Target, length: int, seed: int, begin: Sequence[int] = ()) -> Tensor:
    """Random token ids `[length]` behind a given beginning."""
    drawn = torch.Generator().manual_seed(seed)
    count = length - len(begin)
    return torch.tensor(
        [*begin, *torch.randint(5, target.vocab_size, (count,), generator=drawn).tolist()]
    )
