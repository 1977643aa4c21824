"""Chooses device, dtype and threads, by trying them where that tells, and says why.

bfloat16 halves the bytes that a pass reads, but only processors with bfloat16 instructions gain
from it; elsewhere it can be many times slower. So a matrix product of a decoder's typical shape is
timed in both, and the reason is recorded beside every result. Texts are exact in float32 alone.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from functools import cache

import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.compiled.graph import openvino_is_there
from draftgym.decoding.model.compact.products import packing_gain
from draftgym.decoding.model.device import choose_device
from draftgym.decoding.model.generic.spread import DeviceMap, device_map, first_device

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

WORTH, WORTH_COMPILED = 1.5, 2.0
"""How many times faster products in bfloat16 must be than packed float32 ones to be chosen, and the
same where float32 passes can be compiled. They are two thirds of a pass, and the rest is slower in
bfloat16: on an EPYC with its instructions they took 0.7 of the time, and whole passes no less."""


@dataclass(frozen=True)
class Precision:
    """The numbers a target computes in, and where.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        threads: CPU threads of torch.
        reason: Why these were chosen.
        packed: Whether products use packed copies of the weights.
        compiles: Whether passes over few rows may be compiled; of a target, whether they are.
        device: Where, as torch names it.
        device_reason: Why there.
        spread: Of a target on several devices, how its layers lie; `device` has its embedding.
    """

    dtype: str
    threads: int
    reason: str
    packed: bool = False
    compiles: bool = False
    device: str = "cpu"
    device_reason: str = "asked for"
    spread: str = ""

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return DTYPES[self.dtype]


def choose_precision(
    dtype: str = "auto", threads: int | None = None, device: str | DeviceMap = "cpu"
) -> Precision:
    """Settles device, dtype and threads.

    Args:
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        threads: CPU threads, or None for every core this process may use. A forked process has one:
            torch's others stay with its parent, and a pass would wait for them for ever.
        device: See `choose_device`; of a target on several, as `load_target` takes them, the first
            accelerator decides.

    Raises:
        DraftgymError: Unknown dtype, no such device, or a thread count below one.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise DraftgymError(f"unknown dtype {dtype!r}", f"choose auto, {', '.join(DTYPES)}")
    if threads is not None and threads < 1:
        raise DraftgymError(f"--threads {threads} is below one", "give at least one thread")
    places = device_map(device)
    where, why = choose_device(str(device) if places is None else first_device(places))
    count = 1 if _forked else threads or usable_cores()
    torch.set_num_threads(count)
    if where.type != "cpu":
        dtype, reason = _accelerator_dtype(dtype, where)
        return Precision(dtype, count, reason, device=str(where), device_reason=why)
    gain = packing_gain()
    packs = gain > 1.1 if _packs is None else _packs and gain > 0
    reason = "asked for"
    if dtype == "auto":
        ratio = _bfloat16_gain() / (gain if packs else 1.0)
        worth = WORTH_COMPILED if openvino_is_there() else WORTH
        dtype = "bfloat16" if ratio > worth else "float32"
        gains = "gains too little here" if dtype == "float32" else "is faster here"
        reason = f"bfloat16 {gains} (products {ratio:.2f} times as fast)"
    packed = packs and dtype == "float32"
    if packed:
        reason += f"; packed weights ({gain:.2f} times as fast)"
    compiles = dtype == "float32" and openvino_is_there()
    return Precision(dtype, count, reason, packed, compiles, device_reason=why)


_packs: bool | None = None


def settle_packing(packs: bool) -> None:
    """Targets that this process loads from now on pack their weights, or do not.

    For processes that are to compute the same, to the bit: packed products round otherwise.

    Args:
        packs: What another process found faster.
    """
    global _packs
    _packs = packs


def _accelerator_dtype(dtype: str, device: torch.device) -> tuple[str, str]:
    """The dtype on an accelerator, and why."""
    if dtype != "auto":
        return dtype, "asked for"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16", "this GPU has no bfloat16 of its own"
    return "bfloat16", "accelerators read half the bytes"


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, at most `OMP_NUM_THREADS` of them.

    One in a forked process; see `choose_precision`.
    """
    if _forked:
        return 1
    there = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(there, max(1, int(asked))) if asked.isdecimal() else there


_forked = False


def _keep_to_one_thread() -> None:
    """What a forked process does first: asynchronous vector environments fork by default."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_to_one_thread)
    if isinstance(multiprocessing.current_process(), multiprocessing.get_context("fork").Process):
        _keep_to_one_thread()  # its parent had not imported this module


@cache
def _bfloat16_gain() -> float:
    """Time of float32 over bfloat16 for a few rows times weights that do not fit the caches."""
    tried = ("float32", "bfloat16")
    best = dict.fromkeys(tried, float("inf"))
    weights = {name: torch.randn(32768, 576, dtype=DTYPES[name]) for name in tried}
    rows = {name: torch.randn(8, 576, dtype=DTYPES[name]) for name in tried}
    for _ in range(6):  # interleaved, so that drift hits both
        for name in tried:
            start = time.perf_counter()
            torch.nn.functional.linear(rows[name], weights[name])
            best[name] = min(best[name], time.perf_counter() - start)
    return best["float32"] / best["bfloat16"]
