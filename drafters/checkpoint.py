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
from draftgym.decoding.model.products import Products, pack_linears
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.fitting import check_fits, note_differences, widen, without_copies
from draftgym.drafters.formats import FORMATS, find_format, recognise
from draftgym.drafters.formats.contents import Contents, Origin
from draftgym.drafters.formats.files import read_json, read_tensors, write_contents
from draftgym.drafters.modules import DraftConfig, DraftNetwork, rotary_table
from draftgym.drafters.vocabulary import from_d2t, to_maps

NEURAL: dict[str, tuple[type[Any], type[Any]]] = {
    "eagle3": (Eagle3Network, Eagle3Drafter),
    "dflash": (DFlashNetwork, DFlashDrafter),
}
"""Network and drafter of each kind that `draftgym.drafters.formats` reads."""
MISMATCH = "the config and the weights are not of one drafter; copy the checkpoint again"


class Checkpoint(NamedTuple):
    """A network (float32) and the target it was trained for, as far as its folder says so."""

    network: DraftNetwork
    origin: Origin


def save_checkpoint(network: DraftNetwork, folder: Path, target: Target | None = None) -> None:
    """Writes a network as a bfloat16 checkpoint folder in its native format."""
    config = network.config
    tensors = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
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
    network.to(target.decoder.dtype).requires_grad_(False)
    widen(network, target)
    if target.precision.packed:
        pack_linears(network, Products(target.precision.packed))
    drafter: Drafter = NEURAL[network.config.kind][1].of(network, target, origin.fingerprint)
    return drafter


def read_checkpoint(folder: Path, target: Target | None = None) -> Checkpoint:
    """Reads a checkpoint of any format.

    Args:
        folder: Holds `config.json` and `model.safetensors` (or `pytorch_model.bin`).
        target: Tells the default taps where a config leaves them unsaid, and which tables of the
            checkpoint are only copies of its own.
    """
    contents = read_contents(folder, target.decoder.shape.layers if target else None)
    if target is not None:
        contents = without_copies(contents, target)
    return Checkpoint(build_network(contents, folder), contents.origin)


def read_contents(folder: Path, target_layers: int | None = None) -> Contents:
    """Reads a folder of any format, without building a network.

    Args:
        folder: The checkpoint.
        target_layers: Layers of the target, for configs that leave the default taps unsaid.
    """
    body = read_json(folder)
    form = recognise(body)
    if form is None:
        raise DraftgymError(
            f"{folder}: the architecture {_named(body)} is not a drafter's",
            f"draftgym reads {', '.join(f'{form.name} ({form.kind})' for form in FORMATS)}",
        )
    stored = {form.inner(name): value for name, value in read_tensors(folder).items()}
    if "d2t" in stored:
        body = {"draft_vocab_size": stored["d2t"].numel()} | body
    try:
        origin = form.origin(body)
        config = form.read(body, target_layers or origin.layers)
        rotary_table(config.rope_parameters, config.head_dim, 2)
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
    maps = _maps(folder, config, stored)
    floats = {name: value for name, value in stored.items() if name not in ("d2t", "t2d")}
    return Contents(config, floats | maps, origin, carried)


def build_network(contents: Contents, folder: Path) -> DraftNetwork:
    """The network of some contents, its weights loaded in float32.

    Raises:
        DraftgymError: Tensors are missing, unexpected, misshapen or not finite.
    """
    config, tensors = contents.config, contents.tensors
    ids = from_d2t(tensors["d2t"]) if "d2t" in tensors else None
    network: DraftNetwork = NEURAL[config.kind][0](config, ids, tensors.keys())
    wanted = network.state_dict()
    given = {name: wanted[name] for name in ("d2t", "t2d")} | tensors
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise DraftgymError(
            f"{folder}: missing tensors {missing or 'none'}, unexpected tensors {extra or 'none'}",
            MISMATCH,
        )
    for name, value in given.items():
        _check_tensor(folder, name, value, wanted[name])
    network.load_state_dict(given)
    return network


def _maps(folder: Path, config: DraftConfig, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """`d2t` and `t2d`, checked; empty when the whole vocabulary is drafted."""
    size, vocab = config.draft_vocab_size, config.vocab_size
    if "d2t" not in stored:
        if size != vocab:
            raise DraftgymError(
                f"{folder} drafts {size} of {vocab} tokens but has no d2t", MISMATCH
            )
        return {}
    d2t = stored["d2t"]
    if d2t.dtype not in (torch.int32, torch.int64) or d2t.shape != (size,):
        raise DraftgymError(
            f"{folder}: d2t has shape {tuple(d2t.shape)} and dtype {d2t.dtype}, its config says "
            f"{size} offsets",
            MISMATCH,
        )
    ids = from_d2t(d2t.long())
    if not bool((ids.diff() > 0).all()) or int(ids[0]) < 0 or int(ids[-1]) >= vocab:
        raise DraftgymError(
            f"{folder}: d2t does not list {size} ascending token ids below {vocab}", MISMATCH
        )
    offsets, covered = to_maps(ids, vocab)
    if not torch.equal(stored.get("t2d", covered).bool(), covered):
        raise DraftgymError(f"{folder}: t2d does not cover the tokens that d2t lists", MISMATCH)
    return {"d2t": offsets, "t2d": covered} if size < vocab else {}


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
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise DraftgymError(
            f"{folder}: {name} holds NaN or infinite weights",
            "use an earlier checkpoint, or train again with a lower --trainer.lr",
        )


def _named(body: dict[str, Any]) -> str:
    kind = body.get("speculators_model_type")
    return repr(kind if kind is not None else (body.get("architectures") or ["none"])[0])
