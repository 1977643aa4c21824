"""Reading and writing drafter checkpoints: from a folder to a network and back.

Which words a folder uses is the business of `draftgym.drafters.formats`; here its contents become
a network that is checked against its config and against the target. Training writes the native
formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.products import Products, pack_linears
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.loading import all_finite
from draftgym.decoding.model.target import Target
from draftgym.drafters.compiled import NetworkDrafter, compile_drafter
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.eagle3.image_drafter import eagle3_drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.fitting import check_fits, for_target, note_differences, widen
from draftgym.drafters.formats import find_format, recognise
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, Origin
from draftgym.drafters.formats.files import (
    read_json,
    read_tensors,
    tensor_names,
    write_contents,
)
from draftgym.drafters.formats.maps import MISMATCH, with_checked_maps
from draftgym.drafters.formats.others import REMEDY, first_architecture, other_kind
from draftgym.drafters.modules import DraftNetwork, rotary_table
from draftgym.drafters.vocabulary import from_d2t

NEURAL: dict[str, type[Any]] = {"eagle3": Eagle3Network, "dflash": DFlashNetwork}
"""The network of each kind that `draftgym.drafters.formats` reads."""
UNKNOWN_PARTS = "use a drafter without these parts: draftgym does not know what they compute"


class Checkpoint(NamedTuple):
    """A network (float32) and the target it was trained for, as far as its folder says so."""

    network: DraftNetwork
    origin: Origin


def save_checkpoint(network: DraftNetwork, folder: Path, target: Target | None = None) -> None:
    """Writes a network as a bfloat16 checkpoint folder in its native format."""
    config = network.config
    tensors = {
        name: to_host(value.to(torch.bfloat16) if value.is_floating_point() else value)
        for name, value in network.state_dict().items()
        if name not in ("d2t", "t2d") or config.draft_vocab_size < config.vocab_size
    }
    origin = Origin() if target is None else Origin.of(target)
    write_contents(Contents(config, tensors, origin), folder, find_format(config.kind, config.kind))


def load_drafter(folder: Path, target: Target) -> Drafter:
    """Loads a checkpoint of any format as a drafter for `target`.

    Raises:
        DraftgymError: Missing or damaged files, NaN weights, settings that we do not support, or a
            drafter of another target.
    """
    network, origin = read_checkpoint(folder, target)
    check_fits(folder, network, origin, target)
    note_differences(folder, network, target)
    network.to(target.device, target.decoder.dtype).requires_grad_(False)
    widen(network, target)
    if target.precision.packed:
        pack_linears(network, Products(target.precision.packed))
    drafter: NetworkDrafter = _drafter_of(network, target, origin.fingerprint)
    if target.precision.compiles:
        compile_drafter(drafter, target)
    return drafter


def _drafter_of(network: DraftNetwork, target: Target, needs_target: str | None) -> NetworkDrafter:
    embedding = target.decoder.embedding
    if isinstance(network, Eagle3Network):
        return eagle3_drafter(network, embedding, target.image_tokens, needs_target)
    assert isinstance(network, DFlashNetwork)
    return DFlashDrafter.of(network, target, needs_target)


def read_checkpoint(folder: Path, target: Target | None = None) -> Checkpoint:
    """Reads a checkpoint of any format.

    Args:
        folder: Holds `config.json` and `model.safetensors` (or `pytorch_model.bin`).
        target: Tells the default taps where a config leaves them unsaid, and which tables of the
            checkpoint are only copies of its own.
    """
    contents = read_contents(folder, target.decoder.shape.layers if target else None)
    if target is not None:
        contents = for_target(contents, target)
    return Checkpoint(build_network(contents, folder), contents.origin)


def read_contents(folder: Path, target_layers: int | None = None) -> Contents:
    """Reads a folder of any format, without building a network.

    Args:
        folder: The checkpoint.
        target_layers: Layers of the target, for configs that leave the default taps unsaid.
    """
    body = read_json(folder)
    names = tensor_names(folder)
    form = recognise(body, names)
    if form is None:
        other = other_kind(body, names) or f"the architecture {_named(body)}, which is no drafter's"
        raise DraftgymError(f"{folder} holds {other}", REMEDY)
    stored = _by_our_names(folder, form, read_tensors(folder))
    if "d2t" in stored:
        body = {"draft_vocab_size": stored["d2t"].numel()} | body
    try:
        origin = form.origin(body)
        config = form.read(body, target_layers or origin.layers)
        angles = rotary_table(config.rope_parameters, config.head_dim, 2)
        if not bool(torch.isfinite(angles.cos).all()):
            raise ValueError("its rotary angles are not finite")
        carried = form.carried(body)
    except DraftgymError as error:
        raise DraftgymError(f"{folder / 'config.json'}: {error.problem}", error.remedy) from error
    except KeyError as error:
        raise DraftgymError(
            f"{folder / 'config.json'} lacks {error}", "copy the config.json of it again"
        ) from error
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # transformers says in many ways that rotary settings make no sense.
        raise DraftgymError(
            f"{folder / 'config.json'} does not describe a drafter: {error}",
            "copy the config.json of that checkpoint again",
        ) from error
    return Contents(config, with_checked_maps(folder, config, stored), origin, carried)


def build_network(contents: Contents, folder: Path) -> DraftNetwork:
    """The network of some contents, its weights loaded in float32.

    Raises:
        DraftgymError: Tensors are missing, unexpected, misshapen or not finite.
    """
    config, tensors = contents.config, contents.tensors
    ids = from_d2t(tensors["d2t"]) if "d2t" in tensors else None
    network: DraftNetwork = NEURAL[config.kind](config, ids, tensors.keys())
    wanted = network.state_dict()
    given = {name: wanted[name] for name in ("d2t", "t2d")} | tensors
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise DraftgymError(
            f"{folder}: missing tensors {missing or 'none'}, unexpected tensors {extra or 'none'}",
            MISMATCH if missing else UNKNOWN_PARTS,
        )
    for name, value in given.items():
        _check_tensor(folder, name, value, wanted[name])
    network.load_state_dict(given)
    return network


def _by_our_names(
    folder: Path, form: CheckpointFormat, stored: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a drafter: not what its trainer kept of the target, nor tables of angles."""
    named: dict[str, Tensor] = {}
    for name, value in stored.items():
        ours = form.inner(name)
        if ours.startswith("verifier_") or ours.endswith("rotary_emb.inv_freq"):
            continue
        if ours in named:
            raise DraftgymError(f"{folder} holds {ours} twice, once as {name}", MISMATCH)
        named[ours] = value
    return named


def _check_tensor(folder: Path, name: str, value: Tensor, wanted: Tensor) -> None:
    if value.shape != wanted.shape:
        raise DraftgymError(
            f"{folder}: {name} has shape {tuple(value.shape)}, "
            f"its config says {tuple(wanted.shape)}",
            MISMATCH,
        )
    if (
        value.is_floating_point() != wanted.is_floating_point()
        or value.element_size() < wanted.element_size() // 2
    ):
        raise DraftgymError(
            f"{folder}: {name} is stored as {value.dtype}",
            "use a checkpoint that is not quantised (float32, float16 or bfloat16)",
        )
    if value.is_floating_point() and not all_finite(value):
        raise DraftgymError(
            f"{folder}: {name} holds NaN or infinite weights",
            "use an earlier checkpoint, or train again with a lower --trainer.lr",
        )


def _named(body: dict[str, Any]) -> str:
    kind = body.get("speculators_model_type")
    return repr(kind if kind is not None else first_architecture(body) or "none")
