"""Reading and writing drafter checkpoints in their native published form.

A checkpoint is a folder with `config.json` and `model.safetensors`: EAGLE-3 as SafeAILab, SpecForge
and SGLang write it, DFlash as z-lab writes it. Our own additions sit under the config key
`draftgym` (the fingerprint of the target, the tap layers), which other loaders ignore.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from decoding.drafting import Drafter
from decoding.errors import DraftgymError
from decoding.target import Target
from drafters import dflash
from drafters.dflash import DFlashDrafter, DFlashNetwork
from drafters.eagle3 import Eagle3Drafter, Eagle3Network
from drafters.formats import (
    DFLASH_ARCHITECTURES,
    EAGLE3_ARCHITECTURES,
    dflash_config,
    dflash_json,
    eagle3_config,
    eagle3_json,
)
from drafters.vocabulary import from_d2t

IGNORED_TENSORS = ("embed_tokens.weight",)  # a copy of the target's, which is used instead


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk.

    Attributes:
        network: The weights, float32 or as stored.
        fingerprint: The target it was trained for, where it says so.
    """

    network: Eagle3Network | DFlashNetwork
    fingerprint: str | None


def save_checkpoint(
    network: Eagle3Network | DFlashNetwork, folder: Path, target: Target | None = None
) -> None:
    """Writes a network as a bfloat16 checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors.partial", metadata={"format": "pt"})
    (folder / "model.safetensors.partial").replace(folder / "model.safetensors")
    body = (
        eagle3_json(network.config)
        if isinstance(network, Eagle3Network)
        else dflash_json(network.config)
    )
    ours: dict[str, Any] = {"tap_layers": list(network.config.tap_layers)}
    if target is not None:
        ours |= {"target": target.name, "target_fingerprint": target.fingerprint}
    (folder / "config.json").write_text(json.dumps(body | {"draftgym": ours}, indent=2) + "\n")


def load_drafter(folder: Path, target: Target) -> Drafter:
    """Loads a checkpoint as a drafter for `target`.

    Raises:
        DraftgymError: Missing or damaged files, NaN weights, or a drafter of another target.
    """
    checkpoint = read_checkpoint(folder, target.decoder.shape.layers)
    network = checkpoint.network
    check_fits(folder, checkpoint, target)
    network.to(target.decoder.dtype).requires_grad_(False)
    # Published drafters name the length of their training texts; rotary angles go on beyond it.
    longest = max(network.config.max_position_embeddings, target.context_limit)
    network.config = replace(network.config, max_position_embeddings=longest)
    embedding, head = target.decoder.embedding, target.decoder.head
    if isinstance(network, Eagle3Network):
        return Eagle3Drafter(network, embedding, checkpoint.fingerprint)
    return DFlashDrafter(network, embedding, head, checkpoint.fingerprint)


def read_checkpoint(folder: Path, target_layers: int) -> Checkpoint:
    """Reads a checkpoint without a target.

    Args:
        folder: Holds `config.json` and `model.safetensors`.
        target_layers: Layers of the target, for configs that leave the default taps unsaid.
    """
    body = _read_json(folder)
    tensors = _read_tensors(folder / "model.safetensors")
    kind = (body.get("architectures") or ["none"])[0]
    if kind not in EAGLE3_ARCHITECTURES + DFLASH_ARCHITECTURES:
        raise DraftgymError(
            f"{folder}: the architecture {kind!r} is not a drafter's",
            f"expected one of {', '.join(EAGLE3_ARCHITECTURES + DFLASH_ARCHITECTURES)}",
        )
    ids = _draft_ids(folder, body, tensors)
    try:
        network = _build(kind, body, ids, target_layers)
    except KeyError as error:
        raise DraftgymError(
            f"{folder / 'config.json'} lacks {error}",
            "copy the config.json of that checkpoint again",
        ) from error
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # Whatever is wrong with a size or a rotary setting shows when the network is built.
        raise DraftgymError(
            f"{folder / 'config.json'} does not describe a drafter: {error}",
            "copy the config.json of that checkpoint again",
        ) from error
    _load_weights(network, tensors, folder)
    return Checkpoint(network, body.get("draftgym", {}).get("target_fingerprint"))


def _build(
    kind: str, body: dict[str, Any], ids: Tensor | None, target_layers: int
) -> Eagle3Network | DFlashNetwork:
    if kind in EAGLE3_ARCHITECTURES:
        return Eagle3Network(eagle3_config(body, target_layers), ids)
    return DFlashNetwork(dflash_config(body, ids), ids)


def _draft_ids(folder: Path, body: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor | None:
    """Target ids of the draft vocabulary; None when it is the whole vocabulary."""
    remedy = "the config and the weights are not of one drafter; copy the checkpoint again"
    vocab = body.get("vocab_size")
    size = body.get("draft_vocab_size") or vocab
    if "d2t" not in tensors:
        if size != vocab:
            raise DraftgymError(f"{folder} drafts {size} of {vocab} tokens but has no d2t", remedy)
        return None
    ids = from_d2t(tensors["d2t"])
    ascending = bool((ids.diff() > 0).all()) and int(ids[0]) >= 0
    if len(ids) != body.get("draft_vocab_size", len(ids)) or not ascending:
        raise DraftgymError(f"{folder}: d2t does not list {size} ascending token ids", remedy)
    if isinstance(vocab, int) and int(ids[-1]) >= vocab > 0:
        raise DraftgymError(f"{folder}: d2t names token {int(ids[-1])} of {vocab}", remedy)
    return ids


def _load_weights(network: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = network.state_dict()
    given = {name: value for name, value in tensors.items() if name not in IGNORED_TENSORS}
    given = {name: wanted[name] for name in ("d2t", "t2d") if name in wanted} | given
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise DraftgymError(
            f"{folder}: missing tensors {missing or 'none'}, unexpected tensors {extra or 'none'}",
            "the config and the weights are not of one drafter; copy the checkpoint again",
        )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise DraftgymError(
                f"{folder}: {name} has shape {tuple(value.shape)}, "
                f"its config says {tuple(wanted[name].shape)}",
                "the config and the weights are not of one drafter; copy the checkpoint again",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DraftgymError(
                f"{folder}: {name} holds NaN or infinite weights",
                "use an earlier checkpoint, or train again with a lower --trainer.lr",
            )
    network.load_state_dict(given)


def check_fits(folder: Path, checkpoint: Checkpoint, target: Target) -> None:
    """Refuses a drafter of another target, by fingerprint first, by shape where it has none."""
    remedy = f"name the target it was trained for, or train one with --target {target.name}"
    if checkpoint.fingerprint not in (None, target.fingerprint):
        raise DraftgymError(
            f"drafter {folder} was trained for another target (fingerprint "
            f"{checkpoint.fingerprint}, {target.name!r} has {target.fingerprint})",
            remedy,
        )
    config, shape = checkpoint.network.config, target.decoder.shape
    width = getattr(config, "target_hidden_size", config.hidden_size)
    facts = [
        ("hidden size", width, shape.hidden),
        ("embedding width", config.hidden_size, shape.hidden),
        ("vocabulary", config.vocab_size, shape.vocab),
    ]
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
    mask = getattr(config, "mask_token_id", 0)
    if not 0 <= mask < shape.vocab:
        raise DraftgymError(
            f"drafter {folder} has mask token {mask}, target {target.name!r} has {shape.vocab}",
            remedy,
        )


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        body: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise DraftgymError(
            f"no drafter checkpoint at {folder}", "train one with train_drafter.py"
        ) from None
    except (OSError, ValueError) as error:
        raise DraftgymError(f"cannot read {path}: {error}", "copy the checkpoint again") from error
    if not isinstance(body, dict):
        raise DraftgymError(f"{path} is not a JSON object", "copy the checkpoint again")
    return body


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise DraftgymError(
            f"cannot read {path}: {error}", "the file is damaged or missing; copy it again"
        ) from error


def default_dflash_taps(target_layers: int) -> tuple[int, ...]:
    """Five taps, the published number."""
    return dflash.default_taps(target_layers, 5)
