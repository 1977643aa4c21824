"""A text that is already written, as drafters see it, and how much of it they would have guessed.

A proposal depends on the committed prefix alone and the target's text is known, so acceptance needs
no pass of the target beyond the one that gives its hidden states. Under greedy and coupled
verification it is a count (`rounds_at_each`), under rejection an expectation (`chances_at_each`).

Notation of the latter: p is the target's distribution after a prefix, q the drafter's, both at the
rule's temperature, y the recorded text, n = m - 1 the positions at which a round can begin. A
sampled chain is accepted token by token with min(1, p / q), so its first k tokens are y with
probability prod q min(1, p / q) = prod min(p, q), and the text begins like that with prod p. Where
the text was sampled from p (plain or coupled decoding), the chance of accepting k tokens *given the
text* is therefore

    prod_{i <= k} min(1, q(y_i | y_<i) / p(y_i | y_<i)),

teacher-forced. What comes behind a round is again sampled from p, so this holds round after round,
and the rounds that decoding is expected to take with that text follow by dynamic programming. A
*deterministic* tree accepts a child with just the share that the target gives it: given the text,
it is accepted if and only if the text goes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape, Place
from draftgym.decoding.model.device import to_host, upload
from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    children_by_edge,
)
from draftgym.decoding.verify.proposal import Proposal


@dataclass
class RecordedText:
    """A finished text (a `DraftContext`).

    Attributes:
        tokens: Prompt and response `[n]`, on the drafter's device.
        prompt_length: How many of them are the prompt.
        taps: The target's concatenated taps `[n, k * d]` (those of the last token are not read),
            there as well.
        tap_layers: The k layers they were taken from.
        rule: How its tokens were chosen, and how drafters choose theirs.
        max_new_tokens: Response tokens that it could have had; None: no more than it has. A draft
            is cut where the limit is, not where the target stopped by itself.
    """

    tokens: Tensor
    prompt_length: int
    taps: Tensor
    tap_layers: tuple[int, ...]
    rule: VerificationRule
    max_new_tokens: int | None = None

    @cached_property
    def token_ids(self) -> list[int]:
        """The tokens for the host."""
        ids: list[int] = to_host(self.tokens).tolist()
        return ids

    def places(self) -> list[Place]:
        """Where its m response tokens but the first are drafted `[m - 1]`.

        The target adds one token by itself, so a draft stops one short of the limit.
        """
        length = len(self.tokens)
        limit = length
        if self.max_new_tokens is not None:
            limit = self.prompt_length + self.max_new_tokens
        return [Place(at, limit - at - 1) for at in range(self.prompt_length + 1, length)]

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps at positions `start .. stop - 1`, as `DraftContext.features`.

        Raises:
            ValueError: Other layers than those that were recorded.
        """
        if tuple(layers) != self.tap_layers:
            raise ValueError(f"layers {tuple(layers)} were not recorded, {self.tap_layers} were")
        return self.taps[start:stop]


@dataclass(frozen=True)
class Rounds:
    """Rounds of one shape of draft, one per entry `[n]`.

    Attributes:
        committed: Tokens that each commits, at least 1.
        drafted: Tokens that were proposed in it.
        depth: Tokens on the longest proposed path.
    """

    committed: NDArray[np.int64]
    drafted: NDArray[np.int64]
    depth: NDArray[np.int64]

    def played(self) -> list[int]:
        """Which of them decoding plays, given one that could begin at each position."""
        at, position = [], 0
        while position < len(self.committed):
            at.append(position)
            position += int(self.committed[position])
        return at

    def walked(self) -> Rounds:
        """Those that decoding plays, given one that could begin at each position."""
        at = self.played()
        return Rounds(self.committed[at], self.drafted[at], self.depth[at])


def rounds_at_each(
    drafter: Drafter, text: RecordedText, shapes: Sequence[DraftShape]
) -> list[Rounds]:
    """The round that could begin at each response position of a text, by shape.

    Args:
        drafter: Who drafts.
        text: A text of m response tokens whose rule commits the path of a proposal that the text
            takes: `greedy` and `coupled`, and for trees under rejection a `ForcedRule`.
        shapes: What to draft.

    Returns:
        Per shape `m - 1` rounds; the anchor of round i is response token i.
    """
    tokens, places = text.token_ids, text.places()
    drawn = drafter.propose_at_each(text, places, shapes)
    facts = [
        [facts_of(proposal, tokens[place.length :]) for proposal in proposals]
        for place, proposals in zip(places, drawn, strict=True)
    ]
    table = np.array(facts, dtype=np.int64).reshape(len(places), len(shapes), 3)
    return [Rounds(*table[:, column].T) for column in range(len(shapes))]


def facts_of(proposal: Proposal, text: Sequence[int]) -> tuple[int, int, int]:
    """Committed and drafted tokens of a round before `text`, and how deep it drafted."""
    depth = proposal.depth if len(proposal) else 0
    return matched(proposal, text), len(proposal), depth


def matched(proposal: Proposal, text: Sequence[int]) -> int:
    """Tokens that a round would commit if the target's text went on like `text` (not empty)."""
    children = children_by_edge(proposal)
    node, accepted = -1, 0
    while accepted < len(text) and (node, text[accepted]) in children:
        node = children[node, text[accepted]]
        accepted += 1
    return min(accepted + 1, len(text))


class ForcedRule(VerificationRule):
    """Drafts a given text, whatever the drafter says, with the drafter's probability of it.

    Trees are ranked as under rejection, by logits / T.

    Args:
        text: Token ids `[m]`, on the host; behind its end the last one is repeated.
        temperature: Above 0.
    """

    name = "forced"

    def __init__(self, text: Tensor, temperature: float = 1.0) -> None:
        self.text, self.temperature = text, temperature

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """The text's tokens at `positions`.

        Their log-probabilities are at the rule's temperature (unlike `VerificationRule.draft`'s);
        a token that the drafter cannot propose has -inf.
        """
        places = torch.tensor(positions).clamp(max=len(self.text) - 1)
        wanted = upload(self.text[places], logits.device)
        ids = torch.arange(logits.shape[-1], device=logits.device) if vocab is None else vocab
        rows = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        scores = self.ranking(logits, positions, vocab).log_softmax(-1)
        logprobs = scores.gather(-1, rows[:, None])[:, 0]
        return wanted, logprobs.masked_fill(ids[rows] != wanted, -torch.inf), None

    def ranking(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Tensor:
        """Logits / T, as under rejection; see `VerificationRule.ranking`."""
        return logits.float() / self.temperature

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """Nothing is ever verified here.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a forced rule only drafts")

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """As `look`."""
        raise TypeError("a forced rule only drafts")


def chances_at_each(
    drafter: Drafter, text: RecordedText, target_logprobs: Tensor, depth: int
) -> NDArray[np.float64]:
    """Chance that rejection accepts the first tokens of a sampled chain, given the text.

    Args:
        drafter: Who drafts.
        text: A text of m response tokens that was sampled from the target at the temperature of
            its rule, which is a `ForcedRule`.
        target_logprobs: The target's log-probability of each response token but the first, at that
            temperature `[m - 1]`, on the host.
        depth: Tokens of the chain, K.

    Returns:
        `[K, m - 1]`: entry `[k - 1, i]` is the chance of accepting k tokens or more behind response
        token i. A round commits one token more than it accepts; tokens that would end the text are
        counted as that one, so the chances are 0 for them.
    """
    places = text.places()
    drawn = drafter.propose_at_each(text, places, [DraftShape(depth)])
    ratios = np.zeros((depth, len(places)))
    for position, (proposal,) in enumerate(drawn):
        count = min(len(proposal), len(places) - 1 - position)
        stop = position + count
        log_ratio = to_host(proposal.logprobs[:count]) - target_logprobs[position:stop]
        ratios[:count, position] = log_ratio.double().clamp(max=0).exp().numpy()
    return ratios.cumprod(axis=0)


def expected_rounds(chances: NDArray[np.float64]) -> float:
    """Rounds that writing a text with rejection is expected to take, given the text.

    E_i = 1 + sum_a P(a accepted at i) E_{i + 1 + a}, from the end of the text to its beginning.

    Args:
        chances: As `chances_at_each` gives them `[K, n]`.
    """
    depth, count = chances.shape
    at_least = np.vstack([np.ones(count), chances, np.zeros(count)])
    exactly = at_least[:-1] - at_least[1:]  # [K + 1, n]
    left = np.zeros(count + depth + 1)
    for position in reversed(range(count)):
        left[position] = 1 + exactly[:, position] @ left[position + 1 : position + depth + 2]
    return float(left[0])
