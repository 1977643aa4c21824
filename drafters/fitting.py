"""Whether a drafter fits a target, and what of its checkpoint is the target's anyway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.fingerprint import fits, other_target
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.network import DFlashConfig
from draftgym.drafters.formats.contents import Contents, Origin
from draftgym.drafters.modules import EMBEDDING, HEAD, DraftNetwork
from draftgym.drafters.vocabulary import from_d2t, to_maps


def for_target(contents: Contents, target: Target) -> Contents:
    """What a checkpoint means for its target: its vocabulary, and the tables that it leaves out.

    Raises:
        DraftgymError: It has no LM head, and the target's does not fit it.
    """
    return without_copies(_with_head(_with_rows_of(contents, target), target), target)


def only_padding_differs(rows: int, target: Target) -> bool:
    """Whether a table of so many token ids differs from the target's by padding alone.

    Models of one tokenizer are published with different numbers of rows behind its last token,
    which no text holds. Without the tokenizer there is no telling.
    """
    if rows == target.vocab_size or target.tokenizer is None:
        return rows == target.vocab_size
    last = max(target.tokenizer.get_vocab().values(), default=-1)
    return last < min(rows, target.vocab_size)


def _with_rows_of(contents: Contents, target: Target) -> Contents:
    """Gives a drafter whose vocabulary is padded otherwise as many token ids as the target has.

    Ids that it lacks are never drafted, and have an embedding of zeros; ids that the target lacks
    are left out.
    """
    config, vocab = contents.config, target.vocab_size
    rows, tensors = config.vocab_size, dict(contents.tensors)
    if rows == vocab or not only_padding_differs(rows, target):
        return contents
    ids = from_d2t(tensors["d2t"]) if "d2t" in tensors else torch.arange(config.draft_vocab_size)
    known = ids < vocab
    for name in {HEAD} & tensors.keys():
        tensors[name] = tensors[name][: len(ids)][known]
    for name in {EMBEDDING} & tensors.keys():
        table = tensors[name][:vocab]
        tensors[name] = torch.cat([table, table.new_zeros(vocab - len(table), table.shape[1])])
    kept = ids[known]
    if len(kept) < vocab:
        tensors["d2t"], tensors["t2d"] = to_maps(kept, vocab)
    else:
        tensors = {name: value for name, value in tensors.items() if name not in ("d2t", "t2d")}
    config = replace(config, vocab_size=vocab, draft_vocab_size=len(kept))
    return replace(contents, config=config, tensors=tensors)


def _with_head(contents: Contents, target: Target) -> Contents:
    """Gives an EAGLE-3 head that was saved without its LM head the target's rows."""
    config, tensors, table = contents.config, contents.tensors, target.decoder.head
    if config.kind != "eagle3" or HEAD in tensors or "fc.weight" not in tensors:
        return contents
    if table.shape != (config.vocab_size, config.hidden_size):
        raise DraftgymError(
            f"the drafter has no {HEAD}, and that of target {target.name!r} has shape "
            f"{tuple(table.shape)}, not {(config.vocab_size, config.hidden_size)}",
            "name the target that it was trained for",
        )
    rows = _draft_rows(table, tensors).to(tensors["fc.weight"].dtype, copy=True)
    return replace(contents, tensors=tensors | {HEAD: rows})


def without_copies(contents: Contents, target: Target) -> Contents:
    """Leaves out tables that are copies of the target's: those are read from the target itself."""
    decoder, config = target.decoder, contents.config
    tables = {EMBEDDING: decoder.embedding}
    if isinstance(config, DFlashConfig):
        tables[HEAD] = decoder.head
        if config.vocab_size == decoder.shape.vocab:
            tables[HEAD] = _draft_rows(decoder.head, contents.tensors)
    copies = {
        name
        for name, table in tables.items()
        if name in contents.tensors and _same(contents.tensors[name], table)
    }
    kept = {name: value for name, value in contents.tensors.items() if name not in copies}
    return replace(contents, tensors=kept)


def _draft_rows(head: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The rows of the target's head that are in a draft vocabulary, where files are read."""
    rows = to_host(head)
    return rows[from_d2t(tensors["d2t"])] if "d2t" in tensors else rows


def check_fits(folder: Path, network: DraftNetwork, origin: Origin, target: Target) -> None:
    """Refuses a drafter of another target, by fingerprint first, by shape where it has none."""
    remedy = f"name the target it was trained for, or train one with --target {target.name}"
    if origin.fingerprint is not None and not fits(origin.fingerprint, target):
        key = "draftgym.target_fingerprint in its config.json"
        raise other_target(f"drafter {folder}", origin.fingerprint, target, key, remedy)
    config, shape, layers = (
        network.config,
        target.decoder.shape,
        f"{target.decoder.shape.layers} layers",
    )
    width, mask = (getattr(config, key, 0) for key in ("target_hidden_size", "mask_token_id"))
    width = width or config.hidden_size
    own = network.embed_tokens is not None
    facts = [
        (width == shape.hidden, f"expects hidden size {width}", shape.hidden),
        (config.vocab_size == shape.vocab, f"expects vocabulary {config.vocab_size}", shape.vocab),
        (
            own or config.hidden_size == shape.hidden,
            f"expects embedding width {config.hidden_size}",
            shape.hidden,
        ),
        (
            min(config.tap_layers) >= 0 and max(config.tap_layers) < shape.layers,
            f"taps layers {list(config.tap_layers)}",
            layers,
        ),
        (
            origin.layers in (None, shape.layers),
            f"was trained for a target of {origin.layers} layers",
            layers,
        ),
        (0 <= mask < shape.vocab, f"has mask token {mask}", shape.vocab),
    ]
    for agrees, drafter_says, target_has in facts:
        if not agrees:
            raise DraftgymError(
                f"drafter {folder} {drafter_says}, target {target.name!r} has {target_has}", remedy
            )


def note_differences(folder: Path, network: DraftNetwork, target: Target) -> None:
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


def widen(network: DraftNetwork, target: Target) -> None:
    """Lets a drafter work as far as its target does.

    Published drafters name the length of their training texts; rotary angles go on beyond it.
    """
    longest = max(network.config.max_position_embeddings, target.context_limit)
    network.config = replace(network.config, max_position_embeddings=longest)


def _plain(rope: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type": "default"} | {k: v for k, v in rope.items() if v is not None}


def _same(table: Tensor, of_target: Tensor) -> bool:
    """Whether two tables are equal but for the rounding of their dtypes."""
    if table.shape != of_target.shape:
        return False
    return torch.allclose(table.float(), to_host(of_target).float(), rtol=2**-7, atol=1e-6)
