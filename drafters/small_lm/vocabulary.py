"""The draft vocabulary of a small LM: the rows of its head that a step reads.

For a small model with a large vocabulary the head is more than half of a step (49,152 rows of 576
numbers against six layers of 3.5 million), and nearly all of what a target says is a few thousand
tokens. The ids lie in a file of their own beside the whole model, which transformers does not read:
to it the folder stays the ordinary language model that it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.drafters.vocabulary import from_d2t, to_maps

FILE = "draft_vocab.safetensors"
"""Holds `d2t`, as in published drafters."""
SIZE = "draft_vocab_size"
"""Under `draftgym` in `config.json`; without it all rows of the head are read."""


def write_draft_ids(folder: Path, ids: Tensor, vocab: int) -> None:
    """Writes the file.

    Args:
        folder: Where to.
        ids: Token ids, ascending `[Vd]`.
        vocab: Rows of the whole head.
    """
    offsets, _ = to_maps(ids.cpu(), vocab)
    with replacing(folder / FILE) as partial:
        save_file({"d2t": offsets}, partial)


def read_draft_ids(folder: Path, config: Any) -> Tensor | None:
    """The token ids, ascending `[Vd]`; None where the whole head is read.

    Args:
        folder: A small LM.
        config: Its configuration.

    Raises:
        DraftgymError: The file is missing or damaged, or is not that of the configuration.
    """
    size = getattr(config, "draftgym", {}).get(SIZE)
    if size is None:
        return None
    path, remedy = folder / FILE, "copy the checkpoint again, all its files"
    try:
        ids = from_d2t(load_file(path)["d2t"])
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise DraftgymError(
            f"cannot read {path}: {(str(error) or repr(error)).splitlines()[0]}", remedy
        ) from error
    ascending = ids.ndim == 1 and len(ids) == size and bool((ids.diff() > 0).all())
    if not ascending or not 0 <= int(ids[0]) <= int(ids[-1]) < config.vocab_size:
        raise DraftgymError(
            f"{path} does not hold {size} ascending ids of a vocabulary of {config.vocab_size}",
            remedy,
        )
    return ids


def with_rows(decoder: Decoder, ids: Tensor, products: Products) -> Decoder:
    """The same decoder with a head of some rows alone; it shares all other weights.

    Args:
        decoder: A decoder without a compiled pass.
        ids: Which rows `[Vd]`.
        products: How rows are multiplied with its weights.
    """
    return Decoder(
        replace(decoder.shape, vocab=len(ids)),
        decoder.layers,
        decoder.embedding,
        decoder.final_norm,
        decoder.head[ids.to(decoder.device)],
        decoder.rotaries,
        products,
        decoder.embedding_scale,
    )


def among(ids: Tensor | None, rows: int, vocab: int) -> Tensor | None:
    """Which ids both a small LM and its target have, None for all of the target's.

    Args:
        ids: The draft vocabulary; None for all rows.
        rows: Tokens of the small LM.
        vocab: Tokens of the target.
    """
    ids = torch.arange(rows) if ids is None else ids
    known = ids[ids < min(rows, vocab)]
    return None if len(known) == vocab else known
