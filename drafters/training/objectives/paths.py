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
from draftgym.decoding.model.device import read_together
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import read_images

TokenPath = tuple[int, ...]
Paths = dict[TokenPath, tuple[float, ...]]
"""Distinct paths behind one anchor: tokens to their log-probabilities under the drafter."""


@dataclass(frozen=True)
class VerifiedPaths:
    """Paths behind A anchors, at most P each and K deep; what is not there is 0 or False.

    All of it lies on the target's device.

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
    tokens, logprobs, parents = (
        one.tolist()
        for one in read_together((proposal.tokens, proposal.logprobs, proposal.parents))
    )
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
    target: Target,
    tokens: Tensor,
    anchors: Sequence[int],
    found: Sequence[Paths],
    text: Text | None = None,
) -> VerifiedPaths:
    """One pass of the target over a text and the tries behind its anchors.

    Args:
        target: The target.
        tokens: The text `[n]`, on its device.
        anchors: Positions in it, ascending.
        found: Paths behind each.
        text: What the tokens are of, where its prompt may show images.
    """
    tries = [_trie(paths) for paths in found]
    drafts = [proposal for proposal, _ in tries]
    logits, hidden = _score_tries(target, tokens, anchors, drafts, text)
    # What stands where is written down on the host, and looked up on the device all at once.
    shape = (len(found), max(map(len, found)), max(len(p) for paths in found for p in paths))
    tokens, real = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    log_q, rows = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    start = 0
    for anchor, (trie, row_behind) in enumerate(tries):
        for column, (path, logprobs) in enumerate(found[anchor].items()):
            at = (anchor, column, slice(len(path)))
            before = [start + row_behind[path[:stop]] for stop in range(len(path))]
            tokens[at], real[at] = torch.tensor(path), True
            log_q[at], rows[at] = torch.tensor(logprobs), torch.tensor(before)
        start += len(trie) + 1
    tokens, real, log_q, rows = (x.to(logits.device) for x in (tokens, real, log_q, rows))
    return VerifiedPaths(
        tokens,
        real,
        log_q,
        log_p=torch.where(real, logits.log_softmax(-1)[rows, tokens], 0.0),
        best=real & (logits.argmax(-1)[rows] == tokens),
        hidden=hidden[rows].float() * real[..., None],
    )


def _trie(paths: Paths) -> tuple[Proposal, dict[TokenPath, int]]:
    """The union of some paths, and the row of its logits behind every beginning of a path.

    It lies on the host.
    """
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
    target: Target,
    tokens: Tensor,
    anchors: Sequence[int],
    tries: Sequence[Proposal],
    read: Text | None,
) -> tuple[Tensor, Tensor]:
    """Logits `[N, V]` and hidden states `[N, d]` of all tries in turn, each behind its anchor's.

    Masks and positions are made on the host and moved as a whole. A prompt that shows images is
    read before, and then seen by all.
    """
    sizes = [len(trie) + 1 for trie in tries]
    cache = target.decoder.new_cache(max(anchors) + sum(sizes))
    if read is not None:
        read_images(target, read, cache)
    known = cache.length
    text, device = tokens[known : max(anchors)], target.device
    total = len(text) + sum(sizes)
    visible = torch.zeros(total, total, dtype=torch.bool)
    visible[: len(text), : len(text)] = torch.ones(len(text), len(text)).tril()
    all_tokens, positions = [text], [known + torch.arange(len(text))]
    start = len(text)
    for anchor, trie, size in zip(anchors, tries, sizes, strict=True):
        visible[start : start + size, : anchor - known] = True
        visible[start : start + size, start : start + size] = trie.ancestor_mask()
        all_tokens += [tokens[anchor : anchor + 1], trie.tokens.to(device)]
        positions.append(anchor + torch.cat([torch.zeros(1, dtype=torch.long), trie.depths()]))
        start += size
    rows = NewRows(
        cache,
        torch.cat(all_tokens),
        torch.cat(positions).to(device),
        visible.to(device),
        logits_from=len(text),
    )
    (output,) = target.decoder.forward([rows])
    # Clones: autograd cannot save tensors that were made in inference mode.
    return output.logits.clone(), output.hidden.clone()
