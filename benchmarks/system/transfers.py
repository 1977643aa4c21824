"""What a round moves between processor and accelerator, and how much it starts there.

Every read of a decided token makes the processor wait for all work before it, and every operation
costs the time of starting it; on a fast accelerator with a small model little else takes time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.results import Record
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.model.device import synchronise

WAITING = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_consecutive", "aten::unique_dim"),
    *("aten::bincount", "aten::repeat_interleave"),
}
"""The processor waits for their result: a number, or as many rows as the numbers say."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
"""It waits for these if an index is a mask."""


class Transfers(TorchDispatchMode):
    """Counts what operations move while it is entered.

    Attributes:
        reads: Copies from an accelerator to the processor, numbers and waits for sizes included.
        uploads: Copies the other way.
        operations: All that compute or copy; views do neither.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.restart()

    def restart(self) -> None:
        """Counts from nothing again."""
        self.reads = self.uploads = self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation and counts it."""
        out = func(*args, **(kwargs or {}))
        took, gave = _tensors((args, kwargs)), _tensors(out)
        aliases = [one.alias_info for one in func._schema.returns]
        self.operations += not aliases or any(one is None or one.is_write for one in aliases)
        if _far(took):
            name = func._schema.name
            masks = name in INDEXING and any(one.dtype == torch.bool for one in _tensors(args[1]))
            copied = bool(gave) and not _far(gave)
            self.reads += name in WAITING or masks or copied
        if _far(gave):
            if func._schema.name == "aten::copy_":
                took = _tensors(args[1:2])
            self.uploads += bool(took) and not _far(took)
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _far(tensors: Iterable[Tensor]) -> bool:
    """Whether one of them lies on an accelerator."""
    return any(one.device.type not in ("cpu", "meta") for one in tensors)


def count_transfers(decoder: SpeculativeDecoder, ids: Tensor, tokens: int) -> Record:
    """Reads, uploads and operations of a mean round, the prompt's pass left out."""
    counted, begun = Transfers(), False

    def begin(_: list[int]) -> None:
        nonlocal begun
        if not begun:
            counted.restart()
        begun = True

    with counted:
        text = decoder.generate(ids, tokens, temperature=0.0, on_tokens=begin)
    rounds = max(1, len(text.rounds))
    totals = {name: getattr(counted, name) for name in ("reads", "uploads", "operations")}
    return {"rounds": rounds, **{name: count / rounds for name, count in totals.items()}}


def profile_kernels(decoder: SpeculativeDecoder, ids: Tensor, tokens: int) -> Record:
    """Kernels of a mean round on a CUDA device, and the share of time in which one runs.

    Seconds are those of the same text without the profiler, prompt included.
    """
    from torch.profiler import ProfilerActivity, profile

    plain = decoder.generate(ids, tokens, temperature=0.0)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        text = decoder.generate(ids, tokens, temperature=0.0)
        synchronise(decoder.target.device)
    found = profiled.events() or ()
    events = [event for event in found if event.device_type.name == "CUDA"]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    return {
        "kernels": len(kernels) / max(1, len(text.rounds)),
        "busy": busy / (plain.prefill_seconds + plain.decode_seconds),
    }
