"""Time as servers and devices see it: the system's, or in tests one that is set."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since some moment; they never go back."""

    async def sleep(self, seconds: float) -> None:
        """Returns when so much time has passed."""


class SystemClock:
    """The system's; see `Clock`."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)
