"""Whether a drafter fits a target, and what of its checkpoint is the target's anyway."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.network import DFlashConfig, DFlashNetwork
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.formats.contents import EMBEDDING, HEAD, Contents, Origin
from draftgym.drafters.vocabulary import from_d2t

Network = Eagle3Network | DFlashNetwork


def without_copies(contents: Contents, target: Target) -> Contents:
    """Leaves out tables that are copies of the target's: those are read from the target itself."""
    decoder, config = target.decoder, contents.config
    tables = {EMBEDDING: decoder.embedding}
    if isinstance(config, DFlashConfig):
        tables[HEAD] = decoder.head
        if "d2t" in contents.tensors and config.vocab_size == decoder.shape.vocab:
            tables[HEAD] = decoder.head[from_d2t(contents.tensors["d2t"])]
    copies = {
        name
        for name, table in tables.items()
        if name in contents.tensors and _same(contents.tensors[name], table)
    }
    kept = {name: value for name, value in contents.tensors.items() if name not in copies}
    return replace(contents, tensors=kept)


def check_fits(folder: Path, network: Network, origin: Origin, target: Target) -> None:
    """Refuses a drafter of another target, by fingerprint first, by shape where it has none."""
    remedy = f"name the target it was trained for, or train one with --target {target.name}"
    if origin.fingerprint not in (None, target.fingerprint):
        raise DraftgymError(
            f"drafter {folder} was trained for another target (fingerprint "
            f"{origin.fingerprint}, {target.name!r} has {target.fingerprint})",
            remedy,
        )
    config, shape = network.config, target.decoder.shape
    width = getattr(config, "target_hidden_size", config.hidden_size)
    facts = [
        ("hidden size", width, shape.hidden),
        ("vocabulary", config.vocab_size, shape.vocab),
    ]
    if network.embed_tokens is None:
        facts.append(("embedding width", config.hidden_size, shape.hidden))
    for label, drafter_has, target_has in facts:
        if drafter_has != target_has:
            raise DraftgymError(
                f"drafter {folder} expects {label} {drafter_has}, "
                f"target {target.name!r} has {target_has}",
                remedy,
            )
    if min(config.tap_layers) < 0 or max(config.tap_layers) >= shape.layers:
        raise DraftgymError(
            f"drafter {folder} taps layers {list(config.tap_layers)}, "
            f"target {target.name!r} has {shape.layers} layers",
            remedy,
        )
    if origin.layers not in (None, shape.layers):
        raise DraftgymError(
            f"drafter {folder} was trained for a target of {origin.layers} layers, "
            f"target {target.name!r} has {shape.layers} layers",
            remedy,
        )
    mask = getattr(config, "mask_token_id", 0)
    if not 0 <= mask < shape.vocab:
        raise DraftgymError(
            f"drafter {folder} has mask token {mask}, target {target.name!r} has {shape.vocab}",
            remedy,
        )


def note_differences(folder: Path, network: Network, target: Target) -> None:
    """Says on stderr what is legal but often a mistake; the text is exact in any case."""
    its, theirs = _plain(network.config.rope_parameters), _plain(target.rope_parameters)
    if its != theirs:
        print(
            f"note: {folder} has rotary settings {its}, target {target.name!r} has {theirs}. If "
            "the drafter was trained with the target's, put rope_theta and rope_scaling into its "
            "config.json; otherwise all is well",
            file=sys.stderr,
        )
    if network.embed_tokens is not None:
        print(
            f"note: {folder} brings an input embedding that differs from that of target "
            f"{target.name!r}; its own is used",
            file=sys.stderr,
        )


def widen(network: Network, target: Target) -> None:
    """Lets a drafter work as far as its target does.

    Published drafters name the length of their training texts; rotary angles go on beyond it.
    """
    longest = max(network.config.max_position_embeddings, target.context_limit)
    if isinstance(network, Eagle3Network):
        network.config = replace(network.config, max_position_embeddings=longest)
    else:
        network.config = replace(network.config, max_position_embeddings=longest)


def _plain(rope: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type": "default"} | {k: v for k, v in rope.items() if v is not None}


def _same(table: Tensor, of_target: Tensor) -> bool:
    """Whether two tables are equal but for the rounding of their dtypes."""
    if table.shape != of_target.shape:
        return False
    return torch.allclose(table.float(), of_target.float(), rtol=2**-7, atol=1e-6)
