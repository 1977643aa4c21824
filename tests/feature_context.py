"""Drafting over recorded target features, without a session."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.base import Drafted, VerificationRule
from draftgym.drafters.positions.recorded import ForcedRule
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import FeatureBatch, target_features


class HeardRule(ForcedRule):
    """Drafts a given text, whatever the drafter says, and records what it said.

    Attributes:
        heard: Draft logits `[draft_vocab]` in the order in which they were asked about.
    """

    def __init__(self, text: Tensor) -> None:
        super().__init__(text)
        self.heard: list[Tensor] = []

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """The text's tokens at `positions`."""
        self.heard += list(logits)
        return super().draft(logits, positions, vocab)


class FeatureContext:
    """The first `length` tokens of one text of a batch, as a drafter sees a session."""

    def __init__(self, batch: FeatureBatch, row: int, length: int, rule: VerificationRule) -> None:
        self.batch, self.row, self.length, self.rule = batch, row, length, rule

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return int(self.batch.prompt_lengths[self.row])

    @property
    def tokens(self) -> Tensor:
        """Committed token ids `[length]`."""
        return self.batch.tokens[self.row, : self.length]

    @property
    def token_ids(self) -> list[int]:
        """The same for the host."""
        ids: list[int] = self.tokens.tolist()
        return ids

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """The batch's taps, which must be of `layers`; none exist at the newest position."""
        assert stop <= self.length - 1
        return self.batch.taps[self.row, start:stop]


def random_texts(sizes: Sequence[tuple[int, int]], vocab: int, seed: int = 0) -> list[Text]:
    """Random token ids, one text per (prompt tokens, response tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Text(torch.randint(vocab, (prompt + response,), generator=generator), prompt)
        for prompt, response in sizes
    ]


def random_batch(
    target: Target, tap_layers: Sequence[int], sizes: Sequence[tuple[int, int]], seed: int = 0
) -> FeatureBatch:
    """Features of random texts."""
    return target_features(target, random_texts(sizes, target.vocab_size, seed), tap_layers)
