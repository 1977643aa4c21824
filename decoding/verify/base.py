"""Verification: which drafted tokens the target keeps, and which token it adds.

The contract of a rule, and what rules share. Two of them walk the proposal along the target's own
choices: under `greedy` and `coupled` the committed text *is* plain decoding's text, token for
token, whatever was proposed. The third, `rejection`, promises only its law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import read_together
from draftgym.decoding.verify.best import best_places
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.sampling import Shaping

Choose = Callable[[int, int], tuple[int, float]]
"""The target's choice: row of the logits, depth of its node -> token, margin."""
Drafted = tuple[Tensor, Tensor, Tensor | None]
"""Token ids `[n]`, log-probabilities `[n]`, draft distributions `[n, vocab]` or None."""


@dataclass(frozen=True)
class Candidates:
    """The best few tokens after each of several prefixes, from which the host draws trees.

    Attributes:
        tokens: Ids in the target's vocabulary, best first `[n, k]`.
        logprobs: Log-probability that the drafter gives each, at temperature 1 `[n, k]`.
        scores: How likely the rule is to commit each, as a log-probability `[n, k]`, at most 0.
    """

    tokens: Tensor
    logprobs: Tensor
    scores: Tensor


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
        shaping: What narrows or bends the target's distribution before the rule sees it; None where
            nothing does.
    """

    name: str
    temperature: float
    shaping: Shaping | None = None
    places_together = 128
    """Places of a text that are drafted at in one pass; more gain nothing and take memory."""

    @property
    def picks_best(self) -> bool:
        """Whether `draft` takes the first of the `candidates` and samples nothing of its own."""
        return False

    @property
    def unit(self) -> float:
        """What makes logits of `ranking`: only there is an error of the drafter's of known size."""
        return 1.0

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

    def narrowed(self, logits: Tensor) -> Tensor:
        """Draft logits without the tokens that sampling settings surely exclude, if any do."""
        return logits if self.shaping is None else self.shaping.guess(logits)

    def ranking(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Tensor:
        """What a tree's tokens are ranked by: float32 `[n, draft_vocab]`; arguments as `draft`.

        softmax(unit * ranking) is the chance that the target picks each token if its own logits
        differ from these by independent Gumbel errors. That is the drafter's distribution itself
        for sampling, and a fair guess at how sure an argmax is.
        """
        return logits.float()

    def candidates(
        self, logits: Tensor, positions: Sequence[int], count: int, vocab: Tensor | None = None
    ) -> Candidates:
        """The `count` best tokens of each row (all of them in a smaller draft vocabulary).

        They are a function of the logits, never sampled: a tree of sampled tokens would need
        another verification. Where `draft` does not sample, the first one is its pick. They are
        returned on the host, in one read: what a tree grows by is decided there.

        Args:
            logits: Draft logits `[n, draft_vocab]`.
            positions: Absolute position of each token being drafted, length n.
            count: How many per row.
            vocab: Target id of each row of the draft vocabulary; None if they are the same.

        Raises:
            DraftgymError: A row holds NaN.
        """
        ranking = self.ranking(logits, positions, vocab)
        rows, given = best_places(ranking, count), logits.float()
        guess = ranking if self.unit == 1 else ranking * self.unit
        logprobs = scores = guess.log_softmax(-1).gather(-1, rows)
        if ranking is not given:
            logprobs = given.log_softmax(-1).gather(-1, rows)
        tokens = rows if vocab is None else vocab.to(rows.device)[rows]
        tokens, logprobs, scores = read_together([tokens, logprobs, scores])
        check_finite(float(scores[:, 0].sum()), "drafter")
        # Rounding may lift a sure token above 0, but no child may outrank its parent.
        return Candidates(tokens, logprobs, scores.clamp(max=0))

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
        return verify_together([(self, proposal, logits, position)], with_margins)[0]

    @abstractmethod
    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """The first half of `verify`: what the verdict needs of the logits, where they lie.

        Arguments and errors as `verify`'s, but that nothing is read here.
        """

    @abstractmethod
    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """The second half: the verdict, from what `look` gave, once the host has it."""


Question = tuple[VerificationRule, Proposal, Tensor, int]
"""A rule, and what it is to verify: proposal, logits and position, as `VerificationRule.verify`."""


def verify_together(questions: Sequence[Question], with_margins: bool = False) -> list[Verdict]:
    """The verdicts on several sequences: the one read of a round, tokens included.

    Args:
        questions: Their logits lie on one device.
        with_margins: Whether to fill `Verdict.margins`.
    """
    seen = [
        (proposal.tokens, *rule.look(proposal, logits, position, with_margins))
        for rule, proposal, logits, position in questions
    ]
    read = iter(read_together([one for some in seen for one in some]))
    verdicts = []
    for (rule, proposal, _, position), some in zip(questions, seen, strict=True):
        tokens, *mine = [next(read) for _ in some]
        proposal.read_as(tokens)
        verdicts.append(rule.decide(proposal, position, with_margins, *mine))
    return verdicts


def best_of(scores: Tensor, with_margins: bool) -> tuple[Tensor, ...]:
    """What `choices_of` reads: per row the top score, its token and, for margins, the top two."""
    top, token = scores.max(dim=-1)
    return (top, token, scores.float().topk(2).values) if with_margins else (top, token)


def choices_of(top: Tensor, token: Tensor, two: Tensor | None = None) -> Choose:
    """The target's choices on the host, for `walk`; rows that are not finite are refused there."""
    tops, tokens = top.tolist(), token.tolist()
    firsts = [[math.nan, 0.0]] * len(tokens) if two is None else two.tolist()

    def choose(row: int, depth: int) -> tuple[int, float]:
        check_finite(tops[row])
        return tokens[row], firsts[row][0] - firsts[row][1]

    return choose


def walk(proposal: Proposal, choose: Choose, with_margins: bool) -> Verdict:
    """Follows the target's choices down the tree until one is not among the children.

    Args:
        proposal: The tree.
        choose: Maps (row of the logits, depth of its node) to (token, margin).
        with_margins: Whether the margins are kept.
    """
    children = children_by_edge(proposal)
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


def children_by_edge(proposal: Proposal) -> dict[tuple[int, int], int]:
    """(parent, token) -> node, in node order; of siblings with the same token the first."""
    children: dict[tuple[int, int], int] = {}
    nodes = zip(proposal.parents.tolist(), proposal.token_ids, strict=True)
    for node, edge in enumerate(nodes):
        children.setdefault(edge, node)
    return children


def chosen_tokens(logits: Tensor, rows: Tensor, vocab: Tensor | None) -> tuple[Tensor, Tensor]:
    """Target ids and temperature-1 log-probabilities of the chosen draft rows, each `[n]`."""
    logprobs = logits.float().log_softmax(-1).gather(-1, rows[:, None])[:, 0]
    return (rows if vocab is None else vocab.to(rows.device)[rows]), logprobs


def check_finite(top: float, who: str = "target") -> None:
    """Checks a row by its maximum, which is NaN if any entry is."""
    if not math.isfinite(top):
        what = "NaN" if math.isnan(top) else "infinite"
        raise DraftgymError(
            f"the {who} produced {what} logits",
            "use --dtype float32, and check that the weights are complete",
        )


def check_rows(proposal: Proposal, logits: Tensor, vocab_size: int | None = None) -> None:
    """Checks that there is one row of logits per node and one for the anchor."""
    wanted = (len(proposal) + 1, logits.shape[-1] if vocab_size is None else vocab_size)
    if tuple(logits.shape) != wanted:
        raise ValueError(f"target logits must have shape {wanted}, got {tuple(logits.shape)}")


def check_draft(logits: Tensor, vocab: Tensor | None, vocab_size: int) -> None:
    """Checks that a drafter's logits fit its vocabulary and the target's."""
    if vocab is not None and vocab.shape[0] != logits.shape[1]:
        raise ValueError(f"{logits.shape[1]} draft logits, but {vocab.shape[0]} target ids")
    if logits.shape[1] > vocab_size:
        raise DraftgymError(
            f"the drafter scores {logits.shape[1]} tokens, the target only {vocab_size}",
            "use a drafter that was made for this target's vocabulary",
        )
