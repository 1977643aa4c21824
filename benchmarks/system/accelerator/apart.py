"""Runs a function in a process of its own, which may die or hang without harm to this one.

A failed kernel leaves a GPU unusable for the process that started it, and for that one alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from draftgym.decoding.errors import DraftgymError

FINAL = 5.0
"""Seconds that a process has to end by itself once it has answered."""


def apart(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
    """What the function returns; a spawned process imports it by its name.

    Args:
        function: Of a module; what it raises is raised here.
        arguments: Its arguments; they are copied, and so is what it returns.
        seconds: After these the process is killed.

    Raises:
        DraftgymError: The process died, or did not answer in time.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_answer, args=(there, function, arguments), daemon=False)
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise DraftgymError(f"no answer within {seconds:.0f} s", "give it more time")
        answer, error = here.recv()
        process.join(FINAL)
    except EOFError:
        process.join(FINAL)
        raise DraftgymError(
            f"its process died with exit status {process.exitcode}", "see what it printed"
        ) from None
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if error is not None:
        raise error
    return answer


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Sends what the function returns, or what it raises."""
    told: tuple[Any, Exception | None]
    try:
        told = (function(*arguments), None)
    except Exception as error:
        told = (None, error)
    pipe.send(told)
