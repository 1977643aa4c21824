"""The E-step: draft paths as deployment would, and have the target verify all of them in one pass.

At each anchor the drafter draws chains token by token (as under rejection sampling at T = 1) and
its tree (as under any rule). Their union is a trie; the target scores the tries of all anchors of a
text in one pass, every trie behind the same text, as verification does for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape, Place
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.recorded import RecordedText

TokenPath = tuple[int, ...]
Paths = dict[TokenPath, tuple[float, ...]]
"""Distinct paths behind one anchor: tokens to their log-probabilities under the drafter."""


@dataclass(frozen=True)
class VerifiedPaths:
    """Paths behind A anchors, at most P each and K deep; what is not there is 0 or False.

    Attributes:
        tokens: `[A, P, K]`.
        real: Which tokens exist, bool, same shape.
        log_q: The drafter's log-probability of each token, at T = 1.
        log_p: The target's.
        best: Whether it is the target's argmax, bool.
        hidden: The target's final hidden state before each token `[A, P, K, d]`.
    """

    tokens: Tensor
    real: Tensor
    log_q: Tensor
    log_p: Tensor
    best: Tensor
    hidden: Tensor


def draw_paths(
    drafter: Drafter,
    text: RecordedText,
    anchors: Sequence[int],
    count: int,
    depth: int,
    tree: DraftShape | None,
) -> list[Paths]:
    """Distinct draft paths behind each anchor.

    Args:
        drafter: As deployed.
        text: The text; its rule draws the chains' tokens.
        anchors: Positions, ascending.
        count: Chains drawn at each.
        depth: Their length.
        tree: Tree whose root-to-leaf paths join them, or None.
    """
    places = [Place(anchor + 1, depth) for anchor in anchors]
    chains = [place for place in places for _ in range(count)]
    drawn = iter(drafter.propose_at_each(text, chains, [DraftShape(depth)]))
    found: list[Paths] = []
    trees = drafter.propose_at_each(text, places, [tree]) if tree else [[]] * len(places)
    for grown in trees:
        proposals = [proposal for _ in range(count) for proposal in next(drawn)] + list(grown)
        found.append(_distinct([path for one in proposals for path in root_to_leaf(one)]))
    return found


def root_to_leaf(proposal: Proposal) -> list[tuple[TokenPath, tuple[float, ...]]]:
    """Every path of a proposal: tokens and log-probabilities."""
    tokens, logprobs = proposal.tokens.tolist(), proposal.logprobs.tolist()
    parents = proposal.parents.tolist()
    paths = []
    for leaf in sorted(set(range(len(tokens))) - set(parents)):
        nodes = [leaf]
        while parents[nodes[-1]] >= 0:
            nodes.append(parents[nodes[-1]])
        nodes.reverse()
        paths.append((tuple(tokens[n] for n in nodes), tuple(logprobs[n] for n in nodes)))
    return paths


def _distinct(paths: Sequence[tuple[TokenPath, tuple[float, ...]]]) -> Paths:
    """Without repeats, and without beginnings of longer paths."""
    beginnings = {path[:stop] for path, _ in paths for stop in range(1, len(path))}
    return {path: logprobs for path, logprobs in paths if path not in beginnings}


def verify_paths(
    target: Target, tokens: Tensor, anchors: Sequence[int], found: Sequence[Paths]
) -> VerifiedPaths:
    """One pass of the target over a text and the tries behind its anchors.

    Args:
        target: The target.
        tokens: The text `[n]`.
        anchors: Positions in it, ascending.
        found: Paths behind each.
    """
    tries = [_trie(paths) for paths in found]
    proposals = [proposal for proposal, _ in tries]
    shape = (len(found), max(map(len, found)), max(len(p) for paths in found for p in paths))
    verified = VerifiedPaths(
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(*shape, target.decoder.shape.hidden),
    )
    passes = _score_tries(target, tokens, anchors, proposals)
    for anchor, ((_, rows), (logits, hidden)) in enumerate(zip(tries, passes, strict=True)):
        log_p, best = logits.log_softmax(-1), logits.argmax(-1)
        for column, (path, logprobs) in enumerate(found[anchor].items()):
            at = (anchor, column, slice(len(path)))
            ids = torch.tensor(path)
            before = [rows[path[:stop]] for stop in range(len(path))]
            verified.tokens[at] = ids
            verified.real[at] = True
            verified.log_q[at] = torch.tensor(logprobs)
            verified.log_p[at] = log_p[before, ids]
            verified.best[at] = best[before] == ids
            verified.hidden[at] = hidden[before].float()
    return verified


def _trie(paths: Paths) -> tuple[Proposal, dict[TokenPath, int]]:
    """The union of some paths, and the row of its logits behind every beginning of a path."""
    rows: dict[TokenPath, int] = {(): 0}
    tokens: list[int] = []
    parents: list[int] = []
    for path in paths:
        for stop in range(1, len(path) + 1):
            if path[:stop] not in rows:
                rows[path[:stop]] = len(tokens) + 1
                tokens.append(path[stop - 1])
                parents.append(rows[path[: stop - 1]] - 1)
    proposal = Proposal(torch.tensor(tokens), torch.tensor(parents), torch.zeros(len(tokens)))
    return proposal, rows


def _score_tries(
    target: Target, tokens: Tensor, anchors: Sequence[int], tries: Sequence[Proposal]
) -> list[tuple[Tensor, Tensor]]:
    """Logits `[n + 1, V]` and hidden states `[n + 1, d]` of each trie, its anchor first."""
    text = tokens[: max(anchors)]
    sizes = [len(trie) + 1 for trie in tries]
    total = len(text) + sum(sizes)
    visible = torch.zeros(total, total, dtype=torch.bool)
    visible[: len(text), : len(text)] = torch.ones(len(text), len(text)).tril()
    all_tokens, positions = [text], [torch.arange(len(text))]
    start = len(text)
    for anchor, trie, size in zip(anchors, tries, sizes, strict=True):
        visible[start : start + size, :anchor] = True
        visible[start : start + size, start : start + size] = trie.ancestor_mask()
        all_tokens += [tokens[anchor : anchor + 1], trie.tokens]
        positions.append(anchor + torch.cat([torch.zeros(1, dtype=torch.long), trie.depths()]))
        start += size
    rows = NewRows(
        target.decoder.new_cache(total),
        torch.cat(all_tokens),
        torch.cat(positions),
        visible,
        logits_from=len(text),
    )
    (output,) = target.decoder.forward([rows])
    pairs = zip(output.logits.split(sizes), output.hidden.split(sizes), strict=True)
    return [(logits.clone(), hidden.clone()) for logits, hidden in pairs]
