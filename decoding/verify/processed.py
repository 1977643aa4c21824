"""Verification that chooses as transformers' `generate` does: processors, choice, criteria.

Logits processors and stopping criteria may be anybody's code, and may remember what they have seen.
So they are asked along the accepted path alone, once for every token of the text and in its order,
with the very ids and scores that `generate`'s own loop would hand them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.verify.base import Verdict, VerificationRule, check_finite, check_rows, walk
from draftgym.decoding.verify.coupled import CoupledRule, NoiseCache
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.sampling import SamplingSettings, Shaping

Processors = Callable[[Tensor, Tensor], Tensor]
"""Ids `[b, n]` and scores `[b, vocab]` to scores: transformers' `LogitsProcessorList`."""
Criteria = Callable[[Tensor, Any], Tensor]
"""Ids `[1, n]` and past scores to whether the text ends `[1]`: `StoppingCriteriaList`."""


class TextEnds(Exception):
    """Leaves the round in the middle: the criteria have ended the text at its newest token."""


@dataclass
class ProcessedText:
    """One row of `generate`'s batch, as far as it is written.

    Attributes:
        ids: Room for the whole row `[1, most]`, the prompt with its padding written.
        length: How much of it is written.
        padding: How much of it is padding, all of it in front.
        batch: Rows that `generate` was given; processors may know this one by its place.
        place: Its place among them.
        processors: What `generate` does to the scores.
        criteria: What ends the text.
        put: Takes each new token `[1]`.
        noise: What samples are drawn with; None takes the likeliest token.
        keeps: What is kept of every step: `scores`, `logits`.
        kept: That: per step `[1, vocab]`.
    """

    ids: Tensor
    length: int
    padding: int
    batch: int
    place: int
    processors: Processors
    criteria: Criteria
    put: Callable[[Tensor], Any] = lambda token: None
    noise: NoiseCache | None = None
    keeps: tuple[str, ...] = ()
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = {what: [] for what in self.keeps}

    def choose(self, logits: Tensor) -> int:
        """The next token, which is then written.

        Args:
            logits: The target's `[vocab]` behind what is written.

        Raises:
            DraftgymError: The target produced NaN.
            TextEnds: The token is the text's last one.
        """
        check_finite(float(logits.max()))
        logits = logits[None].to(self.ids.device, torch.float32, copy=True)
        ids = self.ids[:, : self.length].expand(self.batch, -1)
        scores = self.processors(ids, logits.repeat(self.batch, 1))[self.place, None]
        choices = scores[0]
        if self.noise is not None:
            choices = choices + self.noise.row(self.length - self.padding, choices.device)
        token = choices.argmax()
        for what, kept in self.kept.items():
            kept.append(scores if what == "scores" else logits)
        self.ids[0, self.length] = token
        self.length += 1
        past = tuple(self.kept["scores"]) if "scores" in self.kept else None
        ends = bool(self.criteria(self.ids[:, : self.length], past)[0])
        self.put(token[None].cpu())
        if ends:
            raise TextEnds
        return int(token)


class _Processed(VerificationRule):
    """Walks a proposal along the choices of a text; rows off the path are never processed."""

    text: ProcessedText

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """Nothing is read ahead: what a row becomes depends on the tokens before it."""
        check_rows(proposal, logits)
        self._logits = logits
        return ()

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """Chooses token by token; margins are nan. See `VerificationRule.decide`."""

        def choose(row: int, depth: int) -> tuple[int, float]:
            return self.text.choose(self._logits[row]), math.nan

        return walk(proposal, choose, with_margins)


class ProcessedGreedy(_Processed, GreedyRule):
    """The likeliest token of the processed scores.

    Args:
        text: The text that is written.
    """

    def __init__(self, text: ProcessedText) -> None:
        self.text = text


class ProcessedCoupled(_Processed, CoupledRule):
    """A sample of the processed scores, by noise that drafters share.

    Args:
        text: The text that is written.
        temperature: What the processors divide by; drafters do the same.
        seed: Seed of the text.
        vocab_size: Width of the target's logits.
        settings: What the processors narrow, for drafters to guess by.
    """

    def __init__(
        self,
        text: ProcessedText,
        temperature: float,
        seed: int,
        vocab_size: int,
        settings: SamplingSettings,
    ) -> None:
        super().__init__(temperature, seed, vocab_size)
        self.text = text
        text.noise = self.noise
        if settings.shaping(temperature) is not None:
            self.shaping = _ForDrafters(settings, temperature)


class _ForDrafters(Shaping):
    """Narrows what is drafted; the target's logits are left to the processors."""

    def scores(self, text: Tensor, proposal: Proposal, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits
