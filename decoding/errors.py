"""Errors that tell the remedy.

Everything a user can get wrong (a model id, a checkpoint, a prompt file) raises `DraftgymError`
with one sentence on what is wrong and one on what to do. Scripts print both and exit with status 2
instead of a stack trace.
"""

from __future__ import annotations

import errno
import io
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


_ABOUT_PATHS = (
    *("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "EROFS", "ELOOP"),
    *("ENAMETOOLONG", "ENOSPC", "EDQUOT", "EFBIG"),
)
"""What the system answers to a path or a disk that cannot work, wherever a program meets it."""


@contextmanager
def exit_on_user_error(stop: Callable[[int], object] = sys.exit) -> Iterator[None]:
    """Prints a `DraftgymError` as text and ends the process with status 2.

    What a terminal cannot show is printed as an escape. Where the reader of the output has gone
    (`| head`), the process ends without a word and with the status of a closed pipe, 141. SIGTERM
    is treated like Ctrl-C, so that a training run that is killed politely saves its state.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # a process may have been started without
                sys.stdout.flush()
    except DraftgymError as error:
        print(f"error: {error}", file=sys.stderr)
        stop(2)
    except BrokenPipeError:
        _drop_output()
        stop(141)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in _ABOUT_PATHS:
            raise
        _drop_output()
        print(f"error: {error}\n  remedy: check that path and the space there", file=sys.stderr)
        stop(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was saved so far is kept", file=sys.stderr)
        stop(130)


def _drop_output() -> None:
    """What is still unwritten goes nowhere: the interpreter would try again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
