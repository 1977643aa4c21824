"""Import traces that others published: no model is needed to train routers on a large target.

    $ draftgym import-traces specdecode-bench FOLDER --out runs/published
    $ draftgym train-router --traces runs/published/train --run runs/router-8b
    $ python -m benchmarks.routers.published --traces runs/published/train \
        --heldout runs/published/heldout

Formats: specdecode-bench (`draftgym.rollouts.traces.specdecode_bench`); a format of your own is a
function away (docs/extend/traces.md). About half of the texts of each data set are set aside, by
their ids alone, to report on: OUT/train and OUT/heldout are ordinary folders of traces. They hold
no hidden states, and whatever needs them says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.rollouts.traces.published import (
    Reader,
    split_by_category,
    texts_by_category,
    trace_published,
    write_traces,
)
from draftgym.rollouts.traces.specdecode_bench import read_specdecode_bench
from draftgym.rollouts.traces.trace import TraceSet

READERS: Mapping[str, Reader] = {"specdecode-bench": read_specdecode_bench}
PARTS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Import published traces.

    Attributes:
        format: Whose they are: specdecode-bench.
        folder: Where they lie.
        out: Folder of the traces: train and heldout in it.
        arms: Chains of the published drafter, such as eagle:5, and arms of prompt lookup and suffix
            decoding, which are asked anew; default: a few of each.
        heldout: Share of the texts of each data set that is set aside.
    """

    format: tyro.conf.Positional[str]
    folder: tyro.conf.Positional[Path]
    out: Path = Path("runs/published")
    arms: tuple[str, ...] = ()
    heldout: float = 0.5


def import_traces(args: ImportArgs) -> tuple[TraceSet, TraceSet]:
    """Reads, traces, writes; returns the texts to train on and those set aside.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    if args.format not in READERS:
        raise DraftgymError(f"no format is called {args.format!r}", f"use {', '.join(READERS)}")
    published = READERS[args.format](args.folder)
    parts = split_by_category(trace_published(published, args.arms), args.heldout)
    for name, part in zip(PARTS, parts, strict=True):
        write_traces(part, args.out / name)
        for category, texts, positions in texts_by_category(part):
            print(f"{args.out / name}: {category}: {texts} texts, {positions} positions")
    for why, count in published.left_out.items():
        print(f"left out: {count} texts of {why}")
    return parts


def main(arguments: Sequence[str]) -> None:
    """`draftgym import-traces`."""
    import_traces(
        tyro.cli(ImportArgs, args=arguments, description=__doc__, prog="draftgym import-traces")
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
