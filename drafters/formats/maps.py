"""The vocabulary maps of a stored checkpoint: which target tokens its rows are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.modules import HEAD, DraftConfig
from draftgym.drafters.vocabulary import from_d2t, to_maps

MAPS = ("d2t", "t2d")
MISMATCH = "the config and the weights are not of one drafter; copy the checkpoint again"


def with_checked_maps(
    folder: Path, config: DraftConfig, stored: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The stored tensors with maps as our networks have them: ascending, or none.

    Maps of a drafter of the whole vocabulary, which some trainers save without ever filling them,
    say nothing and are left out. Rows in another order are sorted, those of the LM head with them.

    Args:
        folder: The checkpoint, for messages.
        config: Its sizes.
        stored: Its tensors, by our names.

    Raises:
        DraftgymError: The maps contradict the config, or each other.
    """
    size, vocab = config.draft_vocab_size, config.vocab_size
    tensors = {name: value for name, value in stored.items() if name not in MAPS}
    if "d2t" not in stored:
        if size != vocab:
            raise DraftgymError(
                f"{folder} drafts {size} of {vocab} tokens but has no d2t", MISMATCH
            )
        return tensors
    ids = _ids(folder, stored["d2t"], size, vocab)
    order = ids.argsort()
    ids = ids[order]
    if int(ids[0]) < 0 or int(ids[-1]) >= vocab or not bool((ids.diff() > 0).all()):
        raise DraftgymError(
            f"{folder}: d2t does not list {size} different token ids below {vocab}", MISMATCH
        )
    offsets, covered = to_maps(ids, vocab)
    said = stored.get("t2d", covered)
    if size < vocab and not torch.equal(said.bool(), covered):
        raise DraftgymError(f"{folder}: t2d does not cover the tokens that d2t lists", MISMATCH)
    head = tensors.get(HEAD)
    if head is not None and head.shape[:1] == order.shape:
        tensors[HEAD] = head[order]
    return tensors | ({"d2t": offsets, "t2d": covered} if size < vocab else {})


def _ids(folder: Path, d2t: Tensor, size: int, vocab: int) -> Tensor:
    """The target ids of the rows, in their stored order."""
    if d2t.dtype not in (torch.int32, torch.int64) or d2t.shape != (size,):
        raise DraftgymError(
            f"{folder}: d2t has shape {tuple(d2t.shape)} and dtype {d2t.dtype}, its config says "
            f"{size} offsets",
            MISMATCH,
        )
    offsets, rows = d2t.long(), torch.arange(size)
    return rows if size == vocab and torch.equal(offsets, rows) else from_d2t(offsets)
