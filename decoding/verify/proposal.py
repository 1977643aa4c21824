"""A proposal is a token tree: what a drafter hands to the target for verification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.model.device import read_together, to_host


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens as a tree below the anchor (the last committed token).

    Nodes are ordered so that a parent always comes before its children. A chain is a tree without
    branches; an empty proposal is plain decoding.

    Attributes:
        tokens: Drafted token ids, shape `[n]`, int64; where they were drawn, on the host or on the
            target's device.
        parents: Index of each node's parent, shape `[n]`, int64, on the host; -1 is the anchor.
        logprobs: Log-probability that the drafter gave each token after its parent, shape `[n]`.
        draft_probs: Full draft distribution each token was *sampled* from, shape `[n, vocab]`, or
            None when the tokens were chosen deterministically (argmax, top-k, n-gram). Only
            rejection verification reads it.
        scores: How likely the rule is to commit each after its parent, as a log-probability `[n]`,
            on the host; None where that is its log-probability.
        match: Newest tokens of the text that agree with where it was copied from; 0 where it was
            not copied.
    """

    tokens: Tensor
    parents: Tensor
    logprobs: Tensor
    draft_probs: Tensor | None = None
    match: int = 0
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.tokens.shape[0]
        if self.parents.shape != (n,) or self.logprobs.shape != (n,):
            raise ValueError(
                "tokens, parents and logprobs must all have shape [n]; got "
                f"{tuple(self.tokens.shape)}, {tuple(self.parents.shape)}, "
                f"{tuple(self.logprobs.shape)}"
            )
        if not all(-1 <= parent < node for node, parent in enumerate(self.parents.tolist())):
            raise ValueError("every parent must come before its child (-1 is the anchor)")

    @cached_property
    def token_ids(self) -> list[int]:
        """`tokens` for the host, read once: verification reads them along with its verdict."""
        ids: list[int] = to_host(self.tokens).tolist()
        return ids

    def read_as(self, tokens: Tensor) -> None:
        """Takes in `tokens` as somebody has read them, so that they need not be read again."""
        self.__dict__["token_ids"] = tokens.tolist()

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @classmethod
    def empty(cls) -> Proposal:
        """The proposal of an arm that does not draft."""
        none = torch.empty(0, dtype=torch.long)
        return cls(none, none, torch.empty(0))

    @classmethod
    def chain(
        cls,
        tokens: Tensor,
        logprobs: Tensor,
        draft_probs: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Proposal:
        """A tree without branches: node i hangs below node i - 1."""
        parents = torch.arange(-1, tokens.shape[0] - 1)
        return cls(tokens, parents, logprobs, draft_probs, scores=scores)

    @property
    def is_chain(self) -> bool:
        """Whether every node hangs below the node before it."""
        above: list[int] = self.parents.tolist()
        return above == list(range(-1, len(above) - 1))

    @property
    def depth(self) -> int:
        """Tokens on the longest path; 0 of none."""
        return len(self) if self.is_chain else int(self.depths().max())

    def depths(self) -> Tensor:
        """Distance of each node from the anchor, shape `[n]`; the anchor's children have 1."""
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return torch.tensor(depths, dtype=torch.long)

    def path_scores(self) -> list[float]:
        """The score of each node's path from the anchor on, as a log-probability."""
        sums: list[float] = []
        told = to_host(self.logprobs) if self.scores is None else self.scores
        for parent, own in zip(self.parents.tolist(), told.tolist(), strict=True):
            sums.append(own + (sums[parent] if parent >= 0 else 0.0))
        return sums

    def first_score(self) -> float:
        """The score of the likeliest first token; there must be one."""
        paths = zip(self.parents.tolist(), self.path_scores(), strict=True)
        return max(score for parent, score in paths if parent < 0)

    def surer_than(self, least: float) -> Proposal:
        """The paths whose score is at least this, as a probability.

        What is left no longer says what it was sampled from: to verify a sampled token or not by
        its own probability, and then to accept it as one that was sampled, would change the law of
        the text. A token that anybody chose is verified with the chance that the target gives it.
        """
        kept = [node for node, sum_ in enumerate(self.path_scores()) if sum_ >= math.log(least)]
        place = {-1: -1} | {node: index for index, node in enumerate(kept)}
        above: list[int] = self.parents.tolist()
        parents = torch.tensor([place[above[node]] for node in kept], dtype=torch.long)
        rows = torch.tensor(kept, dtype=torch.long)
        tokens, logprobs = (one[rows.to(one.device)] for one in (self.tokens, self.logprobs))
        scores = None if self.scores is None else self.scores[rows]
        return replace(
            self, tokens=tokens, parents=parents, logprobs=logprobs, draft_probs=None, scores=scores
        )

    def ancestor_mask(self) -> Tensor:
        """Who may attend to whom, anchor first: bool `[n + 1, n + 1]`, True = may see.

        Row i sees itself, its ancestors and the anchor (row 0).
        """
        mask = np.eye(len(self) + 1, dtype=np.bool_)  # numpy: its row operations cost far less
        mask[:, 0] = True
        for node, parent in enumerate(self.parents.tolist(), start=1):
            mask[node] |= mask[parent + 1]
        return torch.from_numpy(mask)


def grafted(proposals: Sequence[Proposal]) -> Proposal:
    """One tree of all paths of some proposals; what several propose stands there once.

    A token that was sampled is then verified like any other: with the chance that the target gives
    it. That is lossless, whoever chose it.
    """
    drafted = [one for one in proposals if len(one)]
    if len(drafted) < 2:
        return drafted[0] if drafted else Proposal.empty()
    nodes: dict[tuple[int, int], int] = {}  # by parent and token
    logprobs: list[float] = []
    for one in drafted:
        own: list[int] = []  # where its nodes are
        for token, parent, logprob in zip(
            one.token_ids, one.parents.tolist(), to_host(one.logprobs).tolist(), strict=True
        ):
            edge = (own[parent] if parent >= 0 else -1, token)
            if edge not in nodes:
                nodes[edge] = len(nodes)
                logprobs.append(logprob)
            own.append(nodes[edge])
    parents, tokens = (torch.tensor(column) for column in zip(*nodes, strict=True))
    return Proposal(tokens, parents, torch.tensor(logprobs))


def on_host(proposals: Sequence[Proposal]) -> list[Proposal]:
    """The same proposals in the processor's memory, in one read, without draft distributions."""
    if all(each.tokens.device.type == "cpu" and each.draft_probs is None for each in proposals):
        return list(proposals)
    read = read_together([one for each in proposals for one in (each.tokens, each.logprobs)])
    return [
        replace(each, tokens=tokens, logprobs=logprobs, draft_probs=None)
        for each, tokens, logprobs in zip(proposals, read[::2], read[1::2], strict=True)
    ]
