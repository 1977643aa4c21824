"""Errors that tell the remedy.

Everything a user can get wrong (a model id, a checkpoint, a prompt file) raises `DraftgymError`
with one sentence on what is wrong and one on what to do. Scripts print both and exit with status 2
instead of a stack trace.
"""

from __future__ import annotations

import math
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DraftgymError(Exception):
    """A mistake that the user can mend.

    Args:
        problem: What is wrong, naming the offending value or file.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem if not remedy else f"{problem}\n  remedy: {remedy}")
        self.problem = problem
        self.remedy = remedy


@contextmanager
def exit_on_user_error(stop: Callable[[int], object] = sys.exit) -> Iterator[None]:
    """Prints a `DraftgymError` as text and ends the process with status 2.

    Ctrl-C ends it with status 130, and so does SIGTERM: a training run that is killed politely
    saves its state. A reader that closes the pipe (`| head`) ends it without a word.

    Args:
        stop: Ends the process with a status.
    """
    try:
        with _sigterm_interrupts():
            yield
    except DraftgymError as error:
        print(f"error: {error}", file=sys.stderr)
        stop(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was saved so far is kept", file=sys.stderr)
        stop(130)
    except BrokenPipeError:
        # Python flushes standard output once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop(1)


def check_number(
    option: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> None:
    """Raises `DraftgymError` unless a number is finite and within its limits.

    Args:
        option: How the user wrote it, such as `--rounds`.
        value: The number.
        least: Smallest legal value.
        above: All legal values are greater than this.
        most: Largest legal value.
    """
    limits = [
        (word, limit, holds)
        for word, limit, holds in (
            ("at least", least, operator.ge),
            ("above", above, operator.gt),
            ("at most", most, operator.le),
        )
        if limit is not None
    ]
    if not (math.isfinite(value) and all(holds(value, limit) for _, limit, holds in limits)):
        wanted = " and ".join(f"{word} {limit:g}" for word, limit, _ in limits)
        raise DraftgymError(f"{option} {value} is not possible", f"give a number {wanted}".strip())


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` inside; only a main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        # None: the handler was not set from Python and cannot be set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
