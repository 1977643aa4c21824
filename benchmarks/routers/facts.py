"""What could be known at a position of a text before a round begins there, level by level.

Each level adds to those before it. What only shows after the round is in none of them.

Notation: R = positions of all texts, text behind text; n = positions of one text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.replay.pricing import contexts
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace, TraceSet

Facts = dict[str, NDArray[np.float64]]
"""Columns that each level adds `[R, k]`, by its name."""
TEXT, HIDDEN, LOOKUPS, PAST = "the text", "hidden state", "lookups", "recent rounds"
PAID, EVERYTHING = "first drafter", "all drafters"
COMPONENTS = 24
"""Principal components of the hidden state."""
NODES = 8
"""Nodes of a draft whose probabilities are told."""
RECENT = 8
"""Positions behind, in the record of a drafter."""


def known_facts(train: TraceSet, heldout: TraceSet, first: str) -> tuple[Facts, Facts]:
    """What is known in training and in held-out texts, by the same levels.

    - `TEXT`: signals of the text, the context, the position.
    - `HIDDEN`: principal components, found on training texts, of the target's hidden state.
    - `LOOKUPS`: what drafters that look up propose, which is free: match, length, probabilities,
      whether they agree, and how they would have done lately.
    - `PAST`: how the other drafters would have done lately. Routers know it of rounds they played.
    - `PAID`: what one drafter proposes and thinks. Who knows that has paid for it.
    - `EVERYTHING`: the same of all, and whether they agree.

    Args:
        train: Traces of training prompts.
        heldout: Traces of other prompts, with the same arms.
        first: The drafter that `PAID` is about.

    Raises:
        DraftgymError: Traces of an older version, or without that drafter.
    """
    for traces in (train, heldout):
        traces.require_states("who predicts rounds")
    names = {key.partition(":")[0] for key in train.texts[0].logprobs}
    if first not in names:
        raise DraftgymError(f"these traces have no {first}", f"choose from {', '.join(names)}")
    both = [[text for text in traces.texts if len(text)] for traces in (train, heldout)]
    if not all(text.drafts for texts in both for text in texts):
        raise DraftgymError(
            "these traces of an older version do not hold the drafted tokens",
            "collect them again with draftgym collect",
        )
    learned, tested = (_of_texts(texts, first) for texts in both)
    if min(learned[HIDDEN].shape) > COMPONENTS:
        components = PCA(COMPONENTS, random_state=0)
        learned[HIDDEN] = components.fit_transform(learned[HIDDEN])
        tested[HIDDEN] = components.transform(tested[HIDDEN])
    return learned, tested


def _of_texts(texts: Sequence[TextTrace], first: str) -> Facts:
    told = [dict(_of_text(text, first)) for text in texts]
    return {level: np.concatenate([one[level] for one in told]) for level in told[0]}


def _of_text(text: TextTrace, first: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Columns by level `[n, k]`."""
    free = list(text.matches)
    paid = [key for key in text.logprobs if key not in free]
    mine = [key for key in paid if key.partition(":")[0] == first]
    others = [key for key in paid if key not in mine]
    yield TEXT, np.column_stack([text.signals[:-1], contexts(text), np.arange(len(text))])
    hidden = text.hidden[:-1].astype(np.float64)
    spread = hidden.std(1, keepdims=True)
    yield HIDDEN, (hidden - hidden.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    found = [np.column_stack([text.matches[key], _thoughts(text, key)]) for key in free]
    yield LOOKUPS, np.column_stack([*found, _agreement(text, free, []), _record(text, free)])
    yield PAST, _record(text, paid)
    yield PAID, _proposed(text, mine, free)
    yield EVERYTHING, _proposed(text, others, [*free, *mine])


def _proposed(text: TextTrace, keys: Sequence[str], known: Sequence[str]) -> NDArray[np.float64]:
    """What some drafts say, and whether they agree with each other and with those known."""
    thoughts = [_thoughts(text, key) for key in keys]
    return np.column_stack([*thoughts, _agreement(text, keys, known)])


def _made(text: TextTrace, key: str) -> ArmTrace:
    """What the arm did that a draft is of: a tree, or the drafter's longest chain."""
    return text.arms[key if ":" in key else f"{key}:{text.logprobs[key].shape[1]}"]


def _thoughts(text: TextTrace, key: str) -> NDArray[np.float64]:
    """Length of a draft, what its drafter expects of it, and probabilities of nodes and paths."""
    drafted, own = _made(text, key).drafted, text.logprobs[key].astype(np.float64)
    rows, paths, parents = np.arange(len(own)), own.copy(), text.drafts[key].parents
    for node in range(1, own.shape[1]):
        if parents is None:
            paths[:, node] += paths[:, node - 1]
        else:
            above = parents[:, node].astype(np.int64)
            paths[:, node] += np.where(above >= 0, paths[rows, above], 0)
    there = np.arange(own.shape[1]) < drafted[:, None]
    own, paths = (np.where(there, np.exp(one), 0) for one in (own, paths))
    return np.column_stack([drafted, paths.sum(1), own[:, :NODES], paths[:, :NODES]])


def _agreement(text: TextTrace, keys: Sequence[str], known: Sequence[str]) -> NDArray[np.float64]:
    """Whether drafts begin with the same token, for pairs with at least one of `keys` `[n, k]`."""
    firsts = {
        key: np.where(_made(text, key).drafted > 0, text.drafts[key].tokens[:, 0], -1)
        for key in (*keys, *known)
    }
    pairs = [pair for pair in combinations(firsts, 2) if set(pair) & set(keys)]
    agree = [(firsts[a] == firsts[b]) & (firsts[a] >= 0) for a, b in pairs]
    return np.array(agree, dtype=np.float64).reshape(len(pairs), len(text)).T


def _record(text: TextTrace, keys: Sequence[str]) -> NDArray[np.float64]:
    """What rounds at the last positions would have committed, as far as it shows by now `[n, k]`.

    A round that began b tokens ago is known to have committed b + 1 at most.
    """
    columns = []
    for key in keys:
        committed = _made(text, key).committed.astype(np.float64)
        past = np.full((RECENT, len(text)), np.nan)
        for back in range(1, min(RECENT, len(text) - 1) + 1):
            past[back - 1, back:] = np.minimum(committed[:-back], back + 1)
        count = np.maximum(1, (~np.isnan(past)).sum(0))
        columns += [past[0], past[1], np.nansum(past, 0) / count]
    return np.array(columns).reshape(3 * len(keys), len(text)).T
