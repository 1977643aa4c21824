"""Where these tests run: on every accelerator that is there, and on the pretended one.

`torch._subclasses.fake_tensor` would find misplaced tensors, too, but its tensors hold no numbers:
no text could be compared, and nothing decided. The pretended device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.pretend_device import LACKING, NAME, Reads, possible, pretending


def _accelerators() -> list[str]:
    """Those that this torch can use."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return found + (["xpu"] if torch.xpu.is_available() else [])


PRETENDED = f"{NAME}:0"
without = pytest.mark.skipif(not possible, reason=LACKING)
on_each_device = pytest.mark.parametrize(
    "device", [pytest.param(PRETENDED, marks=without), *_accelerators()]
)


@contextmanager
def there(device: str) -> Iterator[Reads | None]:
    """Lets a device be used; counts what is read from it where that can be counted."""
    if device != PRETENDED:
        yield None
        return
    with pretending() as reads:
        yield reads


def reads_of(reads: Reads | None, act: Callable[[], object]) -> int | None:
    """How often the host waits for the device while something is done."""
    if reads is None:
        act()
        return None
    before = reads.count
    act()
    return reads.count - before
