"""Whether transformers' pass can be driven: tried at load, before a text depends on it."""

from __future__ import annotations

import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.generic.decoder import GenericDecoder
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.text import one_line

ROWS = 6
"""Tokens of the trial."""


def check_runs(decoder: GenericDecoder, limit: int, who: str) -> None:
    """Runs a few rows, keeps some, and runs more.

    Args:
        decoder: The decoder.
        limit: Most positions it can attend to.
        who: What messages call the model, as in `target 'mine'`.

    Raises:
        DraftgymError: transformers cannot run the model.
    """
    tokens = (torch.arange(ROWS, device=decoder.device) * 7919 + 13) % len(decoder.embedding)
    try:
        cache = decoder.new_cache(2 * ROWS)
        for count in (min(ROWS - 2, limit), 1):
            out = decoder.forward([NewRows(cache, tokens[:count])])[0]
            cache.keep(count if cache.length + count < limit else 0)
        if out.logits.shape[-1] != decoder.shape.vocab:
            raise ValueError(f"{out.logits.shape[-1]} logits for {decoder.shape.vocab} tokens")
    except Exception as error:  # its passes raise nearly anything on an impossible configuration
        raise DraftgymError(
            f"{who} cannot be trusted to speak: transformers itself cannot run it "
            f"({one_line(error)})",
            "its config.json does not belong to its weights, or asks for a package that is not "
            "installed; check that AutoModelForCausalLM generates with it",
        ) from error
