"""A model whose modules lie on several devices, as transformers' `device_map` loads it.

accelerate's hooks run it: each module is given its input on its own device. The weights of a module
may also be kept in the processor's memory (beside accelerators) or on disk. Such a module has them
for the time of its pass, and empty (`meta`) tensors otherwise: who reads weights does so while they
are `present`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, user_path
from draftgym.decoding.model.device import KINDS, choose_device

WAYS = ("balanced", "balanced_low_0", "sequential")
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
    """Whether accelerate's hooks run a model, because it lies in several places or on disk."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return len(places) > 1 or DISK in places


def describe_spread(model: Any, layers: nn.ModuleList) -> str:
    """Where its layers lie, as in `layers: 16 on cuda:0, 16 on cuda:1`."""
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
    if not tensor.is_meta:
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
