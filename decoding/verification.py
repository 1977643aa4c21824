"""Verification rules: which drafted tokens the target keeps, and which token it adds.

All three rules are lossless: the committed text has exactly the law that plain decoding under the
same rule has. `greedy` and `coupled` promise more: the committed text *is* plain decoding's text,
token for token, whatever was proposed.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decoding.errors import DraftgymError
from decoding.noise import NoiseCache
from decoding.proposal import Proposal

RULE_NAMES = ("greedy", "coupled", "rejection")

Drafted = tuple[Tensor, Tensor, Tensor | None]
"""Token ids `[n]`, log-probabilities `[n]`, draft distributions `[n, vocab]` or None."""


@dataclass(frozen=True)
class Verdict:
    """What one verification commits.

    Attributes:
        path: Accepted nodes of the proposal, root to leaf; may be empty.
        next_token: The bonus or correction token, committed after the path.
        margins: Per committed token, top-1 minus top-2 of the score it was chosen by (logits for
            greedy, logits / T + noise for coupled, nan for rejection); empty unless asked for.
    """

    path: list[int]
    next_token: int
    margins: list[float]


class VerificationRule(ABC):
    """How tokens are chosen, by the drafter and by the target.

    Attributes:
        name: Name on the command line.
        temperature: Sampling temperature; 0 for greedy.
    """

    name: str
    temperature: float

    @abstractmethod
    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Picks a drafter's tokens.

        Args:
            logits: Draft logits, shape `[n, draft_vocab]`.
            positions: Absolute position of each token being drafted, length n.
            vocab: Target id of each row of the draft vocabulary, shape `[draft_vocab]`, sorted;
                None if draft and target ids are the same.

        Returns:
            Token ids in the target's vocabulary `[n]`; their log-probability under
            softmax(logits), at temperature 1, `[n]`; the distributions that they were sampled from
            over the target's vocabulary `[n, vocab]`, or None if they were not sampled.
        """

    @abstractmethod
    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Decides what to commit.

        Args:
            proposal: n drafted nodes; an empty proposal is plain decoding.
            logits: The target's logits, shape `[n + 1, vocab]`; row 0 follows the anchor, row
                i + 1 follows node i.
            position: Absolute position of the anchor, so that the token after a node of depth d
                sits at `position + d + 1`.
            with_margins: Whether to fill `Verdict.margins`.

        Raises:
            DraftgymError: If a row that is needed holds NaN.
            ValueError: If shapes do not fit together.
        """


class GreedyRule(VerificationRule):
    """Temperature 0: every token is the argmax."""

    name = "greedy"
    temperature = 0.0

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Argmax of each row; see `VerificationRule.draft`."""
        return *_chosen(logits, logits.argmax(-1), vocab), None

    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Walks the tree along the target's argmaxes; see `VerificationRule.verify`."""
        _check_rows(proposal, logits)
        # One reduction over all rows: a single wait for the accelerator instead of one per token.
        tops, choices = (values.tolist() for values in logits.max(dim=-1))

        def choose(row: int, depth: int) -> tuple[int, float]:
            _check_finite(tops[row])
            return choices[row], _margin(logits[row]) if with_margins else math.nan

        return _walk(proposal, choose, with_margins)


class CoupledRule(VerificationRule):
    """Sampling by argmax of logits / T + Gumbel noise shared between drafter and target.

    The noise depends on (seed, position, token id) only, so the target's own choice after a prefix
    is a function of that prefix: verification is the same walk as greedy's.

    Args:
        temperature: Above 0.
        seed: Seed of the text.
        vocab_size: Size of the target's vocabulary (width of its logits).
    """

    name = "coupled"

    def __init__(self, temperature: float, seed: int, vocab_size: int) -> None:
        self.temperature = temperature
        self.noise = NoiseCache(seed, vocab_size)

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Argmax with the target's noise; see `VerificationRule.draft`."""
        _check_draft(logits, vocab, self.noise.vocab_size)
        noise = self.noise.rows(positions, logits.device)
        # Draft rows without a map are the first target ids (some models pad their vocabulary).
        noise = noise[:, : logits.shape[1]] if vocab is None else noise[:, vocab.to(noise.device)]
        return *_chosen(logits, self._scores(logits, noise).argmax(-1), vocab), None

    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Walks the tree along the target's own samples; see `VerificationRule.verify`."""
        _check_rows(proposal, logits, self.noise.vocab_size)

        def choose(row: int, depth: int) -> tuple[int, float]:
            # Row by row: noise for rows off the path would be made for nothing.
            noise = self.noise.row(position + depth + 1, logits.device)
            scores = self._scores(logits[row], noise)
            top, choice = scores.max(dim=-1)
            _check_finite(float(top))
            return int(choice), _margin(scores) if with_margins else math.nan

        return _walk(proposal, choose, with_margins)

    def _scores(self, logits: Tensor, noise: Tensor) -> Tensor:
        return logits.float() / self.temperature + noise


class Coins:
    """The random decisions of rejection sampling.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed & ((1 << 128) - 1)))

    def accept(self, mass: float, out_of: float) -> bool:
        """True with probability min(1, mass / out_of).

        The product avoids 0 / 0, and the strict comparison never accepts a token without mass.
        """
        return float(self._generator.random()) * out_of < mass

    def pick(self, weights: Tensor) -> int:
        """Index drawn in proportion to `weights`, shape `[vocab]`, non-negative, sum above 0."""
        sums = weights.double().cumsum(0)
        drawn = sums[-1] * float(self._generator.random())
        return int(torch.searchsorted(sums, drawn, right=True))


class RejectionRule(VerificationRule):
    """The textbook rule: accept with min(1, p / q), else sample from the residual.

    Deterministic proposals (no `draft_probs`: argmax or n-gram chains, top-k trees) are accepted
    child by child with the probability that the target gives them. Its texts have plain sampling's
    law but, unlike the coupled rule's, depend on what was proposed.

    Args:
        temperature: Above 0; applies to draft and target.
        seed: Seed of the coins.
        vocab_size: Size of the target's vocabulary (width of its logits).
        coins: Source of the random decisions instead of the seeded one.
    """

    name = "rejection"

    def __init__(
        self, temperature: float, seed: int, vocab_size: int, coins: Coins | None = None
    ) -> None:
        self.temperature = temperature
        self.vocab_size = vocab_size
        self.coins = coins if coins is not None else Coins(seed)

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Samples from softmax(logits / T); see `VerificationRule.draft`."""
        _check_draft(logits, vocab, self.vocab_size)
        _check_finite(float(logits.max()) if logits.numel() else 0.0, "drafter")
        # In float32 from here on: verification must divide by the very numbers sampled from.
        probs = (logits.float() / self.temperature).softmax(-1)
        rows = [self.coins.pick(row) for row in probs.cpu()]
        ids = torch.tensor(rows, dtype=torch.long, device=logits.device)
        full = probs.new_zeros(probs.shape[0], self.vocab_size)
        if vocab is None:
            full[:, : probs.shape[1]] = probs
        else:
            full[:, vocab.to(full.device)] = probs
        return *_chosen(logits, ids, vocab), full

    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Accepts or rejects child by child; see `VerificationRule.verify`.

        Raises:
            DraftgymError: Also if a sampled proposal branches.
        """
        _check_rows(proposal, logits, self.vocab_size)
        if proposal.draft_probs is None:
            path, next_token = self._verify_tree(proposal, logits)
        else:
            path, next_token = self._verify_chain(proposal, proposal.draft_probs, logits)
        return Verdict(path, next_token, [math.nan] * (len(path) + 1) if with_margins else [])

    def _verify_chain(
        self, proposal: Proposal, draft_probs: Tensor, logits: Tensor
    ) -> tuple[list[int], int]:
        """Sampled chain: node i was drawn from `draft_probs[i]`."""
        if not proposal.is_chain:
            raise DraftgymError(
                "rejection verification got a tree of sampled tokens",
                "draft a chain, draft the tree by top-k (no draft_probs), or use the coupled rule",
            )
        for node, token in enumerate(proposal.tokens.tolist()):
            p = self._probs(logits[node])
            q = draft_probs[node].cpu().double()
            q = q / q.sum()
            if not self.coins.accept(float(p[token]), float(q[token])):
                residual = (p - q).clamp_(min=0)
                return list(range(node)), self.coins.pick(residual if residual.sum() > 0 else p)
        return list(range(len(proposal))), self.coins.pick(self._probs(logits[-1]))

    def _verify_tree(self, proposal: Proposal, logits: Tensor) -> tuple[list[int], int]:
        """Deterministic tree: each child in turn is accepted with its share of what is left."""
        children: dict[int, dict[int, int]] = {}
        for (parent, token), node in _children(proposal).items():
            children.setdefault(parent, {})[token] = node
        path: list[int] = []
        while True:
            parent = path[-1] if path else -1
            p = self._probs(logits[parent + 1])
            residual = p.clone()
            for token, node in children.get(parent, {}).items():
                if self.coins.accept(float(residual[token]), float(residual.sum())):
                    path.append(node)
                    break
                residual[token] = 0.0
            else:
                return path, self.coins.pick(residual if residual.sum() > 0 else p)

    def _probs(self, row: Tensor) -> Tensor:
        """softmax(row / T) on the CPU in float64, shape `[vocab]`."""
        row = row.float().cpu()
        _check_finite(float(row.max()))
        return (row.double() / self.temperature).softmax(-1)


def make_rule(name: str | None, temperature: float, seed: int, vocab_size: int) -> VerificationRule:
    """Builds a rule by name.

    Args:
        name: One of `RULE_NAMES`; None is greedy at temperature 0 and coupled above.
        temperature: Sampling temperature.
        seed: Seed of the text; greedy ignores it.
        vocab_size: Size of the target's vocabulary (width of its logits).

    Raises:
        DraftgymError: If the name is unknown or does not go with the temperature.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DraftgymError(
            f"temperature {temperature} is not possible", "use 0 (greedy) or a positive number"
        )
    name = name or ("coupled" if temperature else "greedy")
    if name not in RULE_NAMES:
        near = difflib.get_close_matches(name, RULE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DraftgymError(
            f"unknown verification rule {name!r}", f"{hint}choose from {', '.join(RULE_NAMES)}"
        )
    if name == "greedy":
        if temperature:
            raise DraftgymError(
                f"the greedy rule does not sample, but the temperature is {temperature}",
                "set the temperature to 0, or use the coupled or rejection rule",
            )
        return GreedyRule()
    if not temperature:
        raise DraftgymError(
            f"the {name} rule samples, but the temperature is 0",
            "set a temperature above 0, or use the greedy rule",
        )
    rule = CoupledRule if name == "coupled" else RejectionRule
    return rule(temperature, seed, vocab_size)


def _walk(
    proposal: Proposal, choose: Callable[[int, int], tuple[int, float]], with_margins: bool
) -> Verdict:
    """Follows the target's choices down the tree until one is not among the children.

    Args:
        proposal: The tree.
        choose: Maps (row of the logits, depth of its node) to (token, margin).
        with_margins: Whether the margins are kept.
    """
    children = _children(proposal)
    path: list[int] = []
    margins: list[float] = []
    node = -1
    while True:
        token, margin = choose(node + 1, len(path))
        margins.append(margin)
        child = children.get((node, token))
        if child is None:
            return Verdict(path, token, margins if with_margins else [])
        path.append(child)
        node = child


def _children(proposal: Proposal) -> dict[tuple[int, int], int]:
    """(parent, token) -> node, in node order; of siblings with the same token the first."""
    children: dict[tuple[int, int], int] = {}
    nodes = zip(proposal.parents.tolist(), proposal.tokens.tolist(), strict=True)
    for node, edge in enumerate(nodes):
        children.setdefault(edge, node)
    return children


def _chosen(logits: Tensor, rows: Tensor, vocab: Tensor | None) -> tuple[Tensor, Tensor]:
    """Target ids and temperature-1 log-probabilities of the chosen draft rows, each `[n]`."""
    logprobs = logits.float().log_softmax(-1).gather(-1, rows[:, None])[:, 0]
    return (rows if vocab is None else vocab.to(rows.device)[rows]), logprobs


def _margin(scores: Tensor) -> float:
    """Top-1 minus top-2 of `scores`, shape `[vocab]`."""
    top = scores.float().topk(2).values.tolist()
    return float(top[0] - top[1])


def _check_finite(top: float, who: str = "target") -> None:
    """Checks a row by its maximum, which is NaN if any entry is."""
    if not math.isfinite(top):
        what = "NaN" if math.isnan(top) else "infinite"
        raise DraftgymError(
            f"the {who} produced {what} logits",
            "use --dtype float32, and check that the weights are complete",
        )


def _check_rows(proposal: Proposal, logits: Tensor, vocab_size: int | None = None) -> None:
    wanted = (len(proposal) + 1, logits.shape[-1] if vocab_size is None else vocab_size)
    if tuple(logits.shape) != wanted:
        raise ValueError(f"target logits must have shape {wanted}, got {tuple(logits.shape)}")


def _check_draft(logits: Tensor, vocab: Tensor | None, vocab_size: int) -> None:
    if vocab is not None and vocab.shape[0] != logits.shape[1]:
        raise ValueError(f"{logits.shape[1]} draft logits, but {vocab.shape[0]} target ids")
    if logits.shape[1] > vocab_size:
        raise DraftgymError(
            f"the drafter scores {logits.shape[1]} tokens, the target only {vocab_size}",
            "use a drafter that was made for this target's vocabulary",
        )
