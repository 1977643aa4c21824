"""Progress of a command that writes texts: how many, how fast, and how long it will still take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar on standard error that counts texts and what is in them.

    The estimate is that of the average speed: texts that share passes end several at a time. On
    leaving, interrupted or not, a line says what was done and how fast.

    Args:
        label: What is going on.
        unit: What is counted in a text, such as tokens.
        total: Texts in all.
        done_before: How many of them are there already.
    """

    def __init__(self, label: str, unit: str, total: int, done_before: int = 0) -> None:
        self.label, self.unit, self.count = label, unit, 0
        pause = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
        self._bar = tqdm(
            total=total,
            initial=done_before,
            desc=label,
            unit="text",
            mininterval=pause,
            smoothing=0,
        )
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self.count:
            seconds = time.perf_counter() - self._start
            told = f"{self.count} {self.unit} in {seconds:.1f} s, {self._speed()}"
            print(f"{self.label}: {told}", file=sys.stderr)

    def add(self, count: int, texts: int = 1) -> None:
        """Takes in finished texts with so many tokens or positions."""
        self.count += count
        self._bar.set_postfix_str(self._speed(), refresh=False)
        self._bar.update(texts)

    def _speed(self) -> str:
        return f"{self.count / (time.perf_counter() - self._start):.0f} {self.unit}/s"
