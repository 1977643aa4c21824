"""Where a target computes: the one place that chooses a device, waits for it and reads from it.

Everything a session owns lives on its target's device. What decides control flow (which tokens were
accepted, which nodes a tree grows by) is read back through `to_host` alone: on an accelerator every
such read waits for all work before it, so a round has as few of them as can be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError

KINDS = ("auto", "cpu", "cuda", "mps", "xpu")


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Settles where to compute.

    Args:
        name: `auto` (an accelerator that torch can use, else the processor), `cpu`, `cuda`,
            `cuda:1`, `mps` or `xpu`.

    Returns:
        The device, and why it.

    Raises:
        DraftgymError: Unknown name, or no such device here.
    """
    if name == "auto":
        for kind in KINDS[2:]:
            if count := _count(kind):
                return torch.device(kind, 0), f"{kind}: the first of {count} found"
        return torch.device("cpu"), "no accelerator found"
    kind, _, index = name.partition(":")
    if kind not in KINDS[1:] or (index and not index.isdecimal()):
        raise DraftgymError(
            f"unknown device {name!r}",
            "choose auto, cpu, cuda, cuda:1 (the second), mps or xpu; for a target over several "
            "balanced, balanced_low_0, sequential, tensor-parallel or a .json map of its modules",
        )
    if kind == "cpu":
        return torch.device("cpu"), "asked for"
    count, wanted = _count(kind), int(index or 0)
    if wanted >= count:
        there = f"torch {torch.__version__} finds {count or 'no'} {kind} devices"
        raise DraftgymError(
            f"no device {name!r}: {there}",
            "use --device cpu, or install a torch built for this accelerator and its driver",
        )
    return torch.device(kind, wanted), "asked for"


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it; the processor always has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def clock(device: torch.device) -> float:
    """Seconds on a monotonic clock, once the device has done its work."""
    synchronise(device)
    return time.perf_counter()


def device_name(device: torch.device) -> str:
    """What an accelerator is called by its maker; torch's word for it where nobody says."""
    if device.type == "mps":
        told = getattr(torch.backends.mps, "get_name", None)  # torch 2.9 and newer
        return str(told()) if told else "Apple GPU"
    told = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(told(device)) if told else str(device)


def device_facts(device: torch.device) -> dict[str, Any]:
    """What decides how fast an accelerator is: its name, its kind and what drives it."""
    facts: dict[str, Any] = {"device": device_name(device)}
    if device.type == "cuda":
        driver = getattr(torch._C, "_cuda_getDriverVersion", None)
        facts |= {
            "capability": list(torch.cuda.get_device_capability(device)),
            "driver": driver() if driver else None,
            "runtime": torch.version.cuda or torch.version.hip,
        }
    return facts


def free_memory(device: torch.device) -> int | None:
    """Bytes that an accelerator has left; None on a processor, and where torch does not say."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    told = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return int(told(device)[0]) if told else None


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in the processor's memory; every read that decides control flow comes here."""
    return tensor.cpu()


def all_to_host(value: Any) -> Any:
    """The same with every tensor in the processor's memory, however deep in dicts and lists."""
    if isinstance(value, Tensor):
        return to_host(value)
    if isinstance(value, dict):
        return {key: all_to_host(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(all_to_host, value))
    return value


def read_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Several tensors in the processor's memory, in one read; those that are there stay.

    Args:
        tensors: Of any shapes and dtypes.
    """
    far = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if len(far) < 2:
        return [to_host(tensor) for tensor in tensors]
    far.sort(key=Tensor.element_size, reverse=True)  # so that each begins where its numbers may
    bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in far]
    pieces = to_host(torch.cat(bits)).split([len(piece) for piece in bits])
    found = {
        id(tensor): piece.view(tensor.dtype).view(tensor.shape)
        for tensor, piece in zip(far, pieces, strict=True)
    }
    return [found.get(id(tensor), tensor) for tensor in tensors]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor's memory on the device; CUDA's queue goes on meanwhile."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _count(kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0
