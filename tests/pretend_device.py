"""A device that computes on the processor and yet is none: every mistake of placement fails on it.

    with pretending() as reads:
        target = tiny_target(device=str(PRETEND))
        ...
    assert reads.count == 1

There are two of them, `pretend:0` and `pretend:1`. Their tensors hold real numbers, so that whole
texts are written and drafters trained for real. As on an accelerator, an operation must find all
its tensors in one place (but for single numbers), numpy cannot look into them, and values come to
the host by copies alone. `reads` counts these, and what else would wait for an accelerator: shapes
that depend on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, library
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils import backend_registration as _registration

    _set_up = _registration._setup_privateuseone_for_python_backend
except (ImportError, AttributeError):
    _set_up = None

NAME = "pretend"
LACKING = f"torch {torch.__version__} cannot register a device from Python"
possible = _set_up is not None
"""Whether this torch lets Python register a device; else tests that need it are skipped."""

aten = torch.ops.aten
LOOKING = {
    *(aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose),
    *(aten.nonzero, aten.nonzero_numpy, aten.argwhere, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.repeat_interleave),
}
"""What an accelerator must look at the values for: the host waits for it."""
INDEXING = {aten.index, aten.index_put_, aten.index_put}
"""Those look at masks: how many rows come out depends on them."""
MAKING = ("tensor", "as_tensor", "asarray")
"""What torch makes of lists by other means than operations."""


@dataclass
class Reads:
    """What the host waited for.

    Attributes:
        each: The operation of every read, in order.
    """

    each: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.each)


_reads = Reads()


class Pretend(Tensor):
    """A tensor on a device; `numbers` holds its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: type[Pretend], real: Tensor, index: int = 0) -> Pretend:
        """Wraps numbers; views share them."""
        made: Pretend = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, index),
        )
        made.numbers = real
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Operations without a tensor of the device among their arguments: they may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _moving(make: Any) -> Any:
    """`torch.tensor` and its like build on the processor, then move."""

    def run(*args: Any, device: Any = None, **told: Any) -> Any:
        if _is_here(device):
            return make(*args, **told).to(device)
        return make(*args, device=device, **told)

    return run


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _index(device: Any) -> int:
    return torch.device(device).index or 0


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation; those of the processor alone are none of our business."""
    given = list(_tensors((args, *kwargs.values())))
    here = [one for one in given if isinstance(one, Pretend)]
    moves = func.overloadpacket in (aten.to, aten._to_copy)
    if not (here or moves or _is_here(kwargs.get("device"))):
        return func(*args, **kwargs)
    # Views made in inference mode of tensors made outside are no inference tensors; ours would be.
    with torch.inference_mode(False), torch.no_grad():
        if moves:
            return _moved(func, args, kwargs)
        if func is aten.copy_.default:
            return _copied(*args)
        if here:
            _check(func, given)
            _count(func, args)
        return _operate(func, args, kwargs, here)


def _operate(func: Any, args: Any, kwargs: dict[str, Any], here: list[Pretend]) -> Any:
    """Runs it on the numbers."""
    wanted = kwargs.get("device")
    told = {key: _numbers(value) for key, value in kwargs.items()}
    if wanted is not None:
        told["device"] = torch.device("cpu")
    out = func(*map(_numbers, args), **told)
    if wanted is not None and not _is_here(wanted):
        return out
    index = here[0].device.index if here else _index(wanted)
    # An operation in place gives back what it got.
    return _pretend(out, {id(one.numbers): one for one in here}, index)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All that are in some arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _numbers(value: Any) -> Any:
    """The same with the numbers of the device's tensors."""
    if isinstance(value, Pretend):
        return value.numbers
    if isinstance(value, list | tuple):
        return type(value)([_numbers(one) for one in value])
    return value


def _pretend(value: Any, known: dict[int, Pretend], index: int) -> Any:
    """The same on a device."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else Pretend(value, index)
    if isinstance(value, list | tuple):
        return type(value)([_pretend(one, known, index) for one in value])
    return value


MOVES = {
    "default": (),
    "device": ("device", "dtype"),
    "dtype": ("dtype",),
    "dtype_layout": (),
    "other": ("other",),
}
"""By overload of `to`, what its arguments mean."""


def _moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`to`, `cpu`, `float`, ..."""
    tensor = args[0]
    told = dict(zip(MOVES[func._overloadname], args[1:], strict=False)) | kwargs
    told |= {key: getattr(told["other"], key) for key in ("device", "dtype") if "other" in told}
    into, dtype = told.get("device"), told.get("dtype") or tensor.dtype
    was = isinstance(tensor, Pretend)
    stays = was if into is None else _is_here(into)
    index = _index(tensor.device if into is None else into) if stays else None
    copies = func is aten._to_copy.default or told.get("copy") or (len(args) > 4 and args[4])
    alike = was == stays and (not was or tensor.device.index == index)
    if alike and dtype == tensor.dtype and not copies:
        return tensor
    moved = _numbers(tensor).to(dtype, copy=True)
    if was and not stays:
        _reads.each.append("copy")
    return moved if index is None else Pretend(moved, index)


def _copied(into: Tensor, source: Tensor, *rest: Any) -> Tensor:
    """`into[...] = source`, the one operation between two places."""
    if isinstance(source, Pretend) and not isinstance(into, Pretend):
        _reads.each.append("copy")
    _numbers(into).copy_(_numbers(source))
    return into


def _check(func: Any, given: list[Tensor]) -> None:
    """As on an accelerator, tensors of the processor may take part only where they are numbers."""
    here = next(one.device for one in given if isinstance(one, Pretend))
    for one in given:
        if one.device != here and (isinstance(one, Pretend) or one.dim()):
            raise RuntimeError(
                f"{func}: expected all tensors on one device, but found {here} and {one.device}"
            )


def _count(func: Any, args: Any) -> None:
    packet = func.overloadpacket
    masks = packet in INDEXING and any(
        one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    )
    if packet in LOOKING or masks:
        _reads.each.append(str(func))


class _Module:
    """`torch.pretend`: what torch and draftgym ask of a device's module."""

    def is_available(self) -> bool:
        """It always is."""
        return True

    def is_initialized(self) -> bool:
        """There is nothing to begin."""
        return True

    def device_count(self) -> int:
        """Two."""
        return 2

    def current_device(self) -> int:
        """The first."""
        return 0

    def synchronize(self, device: Any = None) -> None:
        """It has always done its work."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """What autocast may compute in."""
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """It draws the processor's random numbers."""


_AUTOCAST = "AutocastPrivateUse1"
_kept: list[library.Library] = []
"""What was registered; torch forgets it with these."""


def _register() -> None:
    """Makes the device known to torch, once per process."""
    if _kept:
        return
    assert _set_up is not None, LACKING

    class Hook(torch._C._acc.PrivateUse1Hooks):  # type: ignore[misc]
        """Not what `torch.accelerator` finds: nobody but these tests shall choose it."""

        def is_available(self) -> bool:
            return False

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return True

    _set_up(NAME, _Module(), Hook())
    everything = library.Library("_", "IMPL")
    everything.fallback(library.fallthrough_kernel, _AUTOCAST)
    casting = library.Library("aten", "IMPL")
    for operation in (aten.linear.default, aten.matmul.default, aten.bmm.default):
        casting.impl(operation, _in_lower_precision(operation), _AUTOCAST)
    _kept.extend([everything, casting])


def _in_lower_precision(operation: Any) -> Any:
    """What autocast makes of products."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST))

    def run(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            cast = lambda one: one.to(dtype) if one.is_floating_point() else one  # noqa: E731
            return operation(*pytree.tree_map_only(Tensor, cast, args))

    return run


def _here() -> Any:
    """Gradients in this thread: torch would begin one for the device, were it not too late."""
    return torch.autograd.set_multithreading_enabled(False)


@contextmanager
def pretending() -> Iterator[Reads]:
    """Lets the device be used; yields what the host reads from it.

    The device is registered once per process and stays; nothing can be made on it outside.
    """
    global _reads
    _register()
    before, _reads = _reads, Reads()
    makers = {name: _moving(getattr(torch, name)) for name in MAKING}
    try:
        with mock.patch.multiple(torch, **makers), _Operations(), _here():
            yield _reads
    finally:
        _reads = before
