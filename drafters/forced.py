"""Rejection verification along a recorded text, in expectation: no coins, no pass of the target.

Notation: p is the target's distribution after a prefix, q the drafter's, both at the rule's
temperature, y the recorded text, n = m - 1 the positions at which a round can begin.

A sampled chain is accepted token by token with min(1, p / q), so its first k tokens are y with
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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.verify.base import Drafted, Verdict, VerificationRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.recorded import RecordedText


class ForcedRule(VerificationRule):
    """Drafts a given text, whatever the drafter says, with the drafter's probability of it.

    Trees are ranked as under rejection, by logits / T.

    Args:
        text: Token ids `[m]`; behind its end the last one is repeated.
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
        wanted = self.text[torch.tensor(positions).clamp(max=len(self.text) - 1)]
        ids = torch.arange(logits.shape[-1]) if vocab is None else vocab
        rows = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        scores = self.ranking(logits, positions, vocab).log_softmax(-1)
        logprobs = scores.gather(-1, rows[:, None])[:, 0]
        return wanted, logprobs.masked_fill(ids[rows] != wanted, -torch.inf), None

    def ranking(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Tensor:
        """Logits / T, as under rejection; see `VerificationRule.ranking`."""
        return logits.float() / self.temperature

    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Nothing is ever verified here.

        Raises:
            TypeError: Always.
        """
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
            temperature `[m - 1]`.
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
        log_ratio = proposal.logprobs[:count] - target_logprobs[position:stop]
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
