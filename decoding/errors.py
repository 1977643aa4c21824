"""Errors that tell the remedy.

Everything a user can get wrong (a model id, a checkpoint, a prompt file) raises `DraftgymError`
with one sentence on what is wrong and one on what to do. Scripts print both and exit with status 2
instead of a stack trace.
"""

from __future__ import annotations

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

    SIGTERM is treated like Ctrl-C, so that a training run that is killed politely saves its state.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except DraftgymError as error:
        print(f"error: {error}", file=sys.stderr)
        stop(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was saved so far is kept", file=sys.stderr)
        stop(130)
