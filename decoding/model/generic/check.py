"""Whether transformers' pass can be driven: tried at load, before a text depends on it.

A model is driven when rows that follow, that are rejected and that are replaced give the logits
which the model gives the whole text at once. It verifies trees when their nodes do, too: each node
the logits of the text that its path is. Both run in float32, one layer at a time. Quantised weights
are tried as they are, with a rough tolerance, and for chains alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.comparison import TOLERANCE, distance, outside_of, widened
from draftgym.decoding.model.generic.decoder import GenericDecoder
from draftgym.decoding.model.generic.masks import takes_trees
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.prompts.text import one_line

TEXT, DRAFT = 7, 4
"""Tokens that are cached, and drafted behind them."""

PARENTS = (-1, 0, 0, 1, 2)
"""The tree of the trial: an anchor, two branches, each two deep; rows of parents."""

ROUGH = 0.5
"""Tolerance for quantised weights, whose rounding stays below it."""

WINDOW = 4
"""Narrows sliding windows for the trial, so that the few tokens are more than a window."""


@torch.inference_mode()
def check_drives(decoder: GenericDecoder, limit: int, who: str, exact: bool = True) -> str:
    """Tries the decoder, and lets it draw trees where it verifies them.

    Args:
        decoder: The decoder.
        limit: Most positions it can attend to.
        who: What messages call the model, as in `target 'mine'`.
        exact: Whether its numbers can be widened to float32; quantised ones cannot.

    Returns:
        Why it verifies chains only; empty where it verifies trees.

    Raises:
        DraftgymError: transformers cannot run the model, or continues a text otherwise than it
            reads it.
    """
    if limit < TEXT + 2 * DRAFT:
        return f"its {limit} positions are too few to try its pass, which is trusted as it is"
    parts, tolerance = decoder.parts, TOLERANCE if exact else ROUGH
    wide = [*parts.layers, *outside_of(parts.model, parts.layers)]
    with widened(wide) if exact else nullcontext():
        try:
            differs = _chain_distance(decoder)
            # A forgotten state may differ by little; token by token is right, if slow.
            recurrent = not decoder.new_cache(1).keeps_any_rows
            if not differs <= (TOLERANCE if recurrent else tolerance):
                decoder.one_by_one = True
                differs = _chain_distance(decoder)
        except Exception as error:  # passes raise nearly anything on an impossible configuration
            raise _refusal(who, f"transformers itself cannot run it ({one_line(error)})") from error
        if not differs <= tolerance:
            raise _refusal(
                who,
                f"transformers' passes with a cache give other logits than without (they differ by "
                f"{differs:.1e} of their size, more than rounding does)",
            )
        if not exact:
            return "its weights are quantised, and rounding would hide what the trial looks for"
        decoder.draws_trees = not decoder.one_by_one and _draws_trees(decoder)
    return "" if decoder.draws_trees else "its layers are recurrent, or take no mask of a tree"


def _refusal(who: str, why: str) -> DraftgymError:
    return DraftgymError(
        f"{who} cannot be trusted to speak: {why}",
        "its config.json does not belong to its weights, or asks for a package that is not "
        "installed; check that AutoModelForCausalLM generates with it",
    )


def _chain_distance(decoder: GenericDecoder) -> float:
    """How far logits behind a rejected draft are from those of the whole text."""
    tokens = _tokens(decoder, TEXT + 2 * DRAFT)
    wrong = tokens.flip(0)[:DRAFT]
    cache = decoder.new_cache(len(tokens))
    decoder.forward([NewRows(cache, tokens[:TEXT])])
    cache.keep(TEXT)
    decoder.forward([NewRows(cache, torch.cat([tokens[TEXT : TEXT + 1], wrong[1:]]))])
    cache.keep(1)
    stops = (TEXT + 1, TEXT + 1 + DRAFT, len(tokens))
    ours = []
    for start, stop in pairwise(stops):
        ours.append(decoder.forward([NewRows(cache, tokens[start:stop])])[0].logits)
        cache.keep(stop - start)
    return distance(torch.cat(ours), _whole(decoder, tokens)[stops[0] :])


def _draws_trees(decoder: GenericDecoder) -> bool:
    config = decoder.parts.config
    if not (takes_trees(config) and decoder.new_cache(1).keeps_any_rows):
        return False
    try:
        with _narrowed(config):
            return _tree_distance(decoder) <= TOLERANCE
    except Exception:  # a model that takes no mask of its own may raise anything
        return False


def _tree_distance(decoder: GenericDecoder) -> float:
    """How far the logits of nodes, and behind an accepted path, are from those of their texts."""
    tokens = _tokens(decoder, TEXT + len(PARENTS) + 1)
    text, nodes, following = tokens[:TEXT], tokens[TEXT:-1], tokens[-1:]
    paths = _paths(PARENTS)
    visible = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for node, path in enumerate(paths):
        visible[node, path] = True
    depths = torch.tensor([len(path) - 1 for path in paths])
    visible, depths = visible.to(tokens.device), depths.to(tokens.device)
    *_, branch, accepted = (torch.tensor(path, device=tokens.device) for path in paths)
    cache = decoder.new_cache(len(tokens))
    decoder.forward([NewRows(cache, text)])
    cache.keep(TEXT)
    out = decoder.forward([NewRows(cache, nodes, TEXT + depths, visible)])[0]
    furthest = 0.0
    for rows in (branch, accepted):
        theirs = _whole(decoder, torch.cat([text, nodes[rows]]))[TEXT:]
        furthest = max(furthest, distance(out.logits[rows], theirs))
    cache.keep(accepted)
    behind = decoder.forward([NewRows(cache, following)])[0].logits
    theirs = _whole(decoder, torch.cat([text, nodes[accepted], following]))[-1:]
    return max(furthest, distance(behind, theirs))


def _paths(parents: Sequence[int]) -> list[list[int]]:
    """For each node of a tree, the nodes from the root to it."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return paths


def _tokens(decoder: GenericDecoder, count: int) -> Tensor:
    rows: Any = decoder.parts.table.weight
    numbers = torch.arange(count, device=decoder.device)
    return (numbers * 7919 + 13) % len(rows)


def _whole(decoder: GenericDecoder, tokens: Tensor) -> Tensor:
    """The model's own logits `[n, vocab]` of a text, read at once and without a cache."""
    logits: Tensor = decoder.parts.model(input_ids=tokens[None], use_cache=False).logits
    return logits[0].float()


@contextmanager
def _narrowed(config: Any) -> Iterator[None]:
    """Narrows a model's windows for a while."""
    names = ("sliding_window", "attention_chunk_size")
    before = {name: value for name in names if (value := getattr(config, name, None))}
    try:
        for name in before:
            setattr(config, name, WINDOW)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
