"""Ways to run one command, timed in turn, each in a process and a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.report import Cell, Json, Table, titled
from draftgym.decoding.errors import DraftgymError

Rates = dict[str, list[float]]
"""Units a second of each way, one of each round of measurements."""


def draftgym(*words: object) -> list[str]:
    """The command line of `draftgym`."""
    return [sys.executable, "-m", "draftgym", *map(str, words)]


def run_command(command: Sequence[str]) -> None:
    """Runs a command.

    Raises:
        DraftgymError: It failed; with its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise DraftgymError(
            f"`{' '.join(command)}` failed: {said.rpartition(chr(10))[2]}", "run it by hand"
        )


def rates(
    ways: Mapping[str, Callable[[Path], list[str]]], rate: Callable[[Path], float], repeats: int
) -> Rates:
    """Runs every way `repeats` times, in turn, so that what drifts drifts for all.

    Args:
        ways: The command of each, given the folder that it writes into.
        rate: Units a second that a folder tells of.
        repeats: How often.
    """
    found: Rates = {name: [] for name in ways}
    for number in range(repeats):
        for name, command in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                run_command(command(out))
                found[name].append(rate(out))
                print(f"{number + 1} of {repeats}, {name}: {found[name][-1]:,.1f} a second")
    return found


def table_of(result: Json, unit: str) -> Table:
    """Medians, their spread, and the ratio to the first way, of each round of measurements."""
    rows = [{"way": name, "rates": mine} for name, mine in result["rates"].items()]
    first = rows[0]["rates"]

    def ratio(row: Json) -> str:
        each = [mine / its for mine, its in zip(row["rates"], first, strict=True)]
        return f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})"

    columns: dict[str, Cell] = {
        "": lambda row: row["way"],
        f"{unit}/s": lambda row: f"{median(row['rates']):,.1f}",
        "from, to": lambda row: f"{min(row['rates']):,.1f}, {max(row['rates']):,.1f}",
        f"over {rows[0]['way']}": ratio,
    }
    return Table.of("{target}, {dtype}; {machine}".format(**titled(result)), rows, columns)
