"""A model that lies on several devices, as transformers' `device_map` loads it.

accelerate's hooks run it: each module is given its input on its own device. The weights of a module
may also be kept in the processor's memory (beside accelerators) or on disk. Such a module has them
for the time of its pass, and empty (`meta`) tensors otherwise: who reads weights does so while they
are `present`. So he does where processes share the model (`shared`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, user_path
from draftgym.decoding.model.device import KINDS, choose_device
from draftgym.decoding.model.generic.shared import (
    TENSOR_PARALLEL,
    check_together,
    is_part,
    is_shared,
    sharing_options,
    whole,
)

WAYS = ("balanced", "balanced_low_0", "sequential", TENSOR_PARALLEL)
"""How transformers divides a model by itself."""
DISK, FETCHED = "disk", "fetched"
DeviceMap = Mapping[str, int | str]
"""Where modules lie, by their names in the model: a device, an accelerator's index, or `disk`."""

SHOWN = (
    'give every module of the model a place, as in {"model.embed_tokens": 0, "model.layers.0": 0, '
    '"model.layers.1": 1, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}, or say balanced'
)


def device_map(device: str | DeviceMap) -> str | dict[str, int | str] | None:
    """What transformers is told of the places of a model; None where it lies on one device.

    Args:
        device: As `load_target` takes it.

    Raises:
        DraftgymError: A file that cannot be read, or that maps no names of modules to places.
    """
    if isinstance(device, str):
        if device in WAYS:
            return device
        if not device.endswith(".json"):
            return None
        device = read_json(user_path(device), SHOWN)
    if not device:
        raise DraftgymError("the map of devices is empty", SHOWN)
    for name, place in device.items():
        if type(place) is not int and not isinstance(place, str):
            raise DraftgymError(f"the map of devices puts {name!r} on {place!r}", SHOWN)
        if (named := _named(place)).partition(":")[0] in KINDS[1:]:
            choose_device(named)  # which refuses those that are not there
    return dict(device)


def first_device(places: str | Mapping[str, int | str]) -> str:
    """The device that decides in which numbers a divided model computes, as `--device` names it.

    Args:
        places: From `device_map`.

    Raises:
        DraftgymError: There is nothing to divide over.
    """
    kind = choose_device()[0].type
    if places == TENSOR_PARALLEL:
        check_together()
        return kind if kind == "cpu" else f"{kind}:{torch.accelerator.current_device_index()}"
    if isinstance(places, str):
        if kind == "cpu":
            raise DraftgymError(
                f"--device {places} divides a target over accelerators, and torch finds none",
                "leave it out, or name a .json file that says where each module lies",
            )
        return kind
    return next((_named(one) for one in places.values() if one not in ("cpu", DISK)), "cpu")


def _named(place: int | str) -> str:
    """A place as `--device` names it."""
    return f"{choose_device()[0].type}:{place}" if isinstance(place, int) else place


def is_spread(model: Any) -> bool:
    """Whether a model lies in several places, or on disk, or processes share it."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return len(places) > 1 or DISK in places or is_shared(model)


def loading_options(places: str | dict[str, int | str], scratch: str) -> dict[str, Any]:
    """What `from_pretrained` is told.

    Args:
        places: From `device_map`.
        scratch: A folder for what stays on disk and is not stored as it is read.
    """
    if places == TENSOR_PARALLEL:
        return sharing_options()
    return {"device_map": places, "offload_folder": scratch}


def describe_spread(model: Any, layers: nn.ModuleList) -> str:
    """Where its layers lie, as in `layers: 16 on cuda:0, 16 on cuda:1`."""
    if is_shared(layers):
        return f"layers: {len(layers)}, each among {dist.get_world_size()} processes"
    places = Counter(_place(layer) for layer in layers)
    return "layers: " + ", ".join(f"{count} {place}" for place, count in places.items())


def _place(layer: nn.Module) -> str:
    first = next(part for part in layer.modules() if part._parameters)
    where, kept = computes_on(first), any(True for _ in _fetching(first))
    return f"{FETCHED} to {where} at every pass" if kept else f"on {where}"


def computes_on(module: nn.Module) -> torch.device:
    """The device where a module that has a weight computes, wherever that is kept."""
    for hook in _fetching(module):
        return torch.device(hook.execution_device)
    device: torch.device = next(module.parameters()).device
    return device


def weight_on(module: nn.Module, device: torch.device) -> Tensor:
    """The weight of a module on a device: its own, where that lies there, else a copy."""
    with present(module):
        weight: Any = module.weight
        found: Tensor = weight.detach().to(device)
        return found


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Has all weights of a module and its parts where it computes, for a while."""
    with ExitStack() as stack:
        for part in module.modules():
            found = {name: one for name, one in part._parameters.items() if one is not None}
            wholes = {name: whole(one) for name, one in found.items() if is_part(one)}
            stack.enter_context(patch.dict(part._parameters, wholes))
            for hook in _fetching(part):
                hook.pre_forward(part)
                stack.callback(hook.post_forward, part, None)
        yield


def parameters_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters by name, each with its numbers while it is the newest one."""
    for name, parameter in model.named_parameters():
        yield name, _present_one(model, name, parameter)


def state_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` has, each with its numbers."""
    for name, tensor in model.state_dict().items():
        yield name, _present_one(model, name, tensor)


def _present_one(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_meta and not is_part(tensor):
        return tensor
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with present(module):
        found: Tensor = getattr(module, leaf)
        return found


def _fetching(module: nn.Module) -> Iterator[Any]:
    """The hooks that give a module its weights for the time of its pass."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False):
            yield one
