"""Average the weights of several trainings of one drafter (model soup, arXiv 2203.05482).

    $ draftgym average runs/plain-0/latest runs/lk-0/latest --out runs/average

Trainings that started from one checkpoint and did not go far lie in one valley; the mean of their
weights is often better than each, since what was noise in each cancels. It costs nothing: no
training, and drafting with it is as fast as with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.checkpoint import read_contents
from draftgym.drafters.formats import find_format
from draftgym.drafters.formats.contents import Contents
from draftgym.drafters.formats.files import check_new_folder, write_contents


@dataclass(frozen=True)
class AverageArgs:
    """What to average."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Checkpoint folders of one kind, sizes and target; equal weights."""
    out: Path
    """Folder to write; new, or empty."""


def average(args: AverageArgs) -> None:
    """Writes the mean of some checkpoints, in the native format of their kind.

    Raises:
        DraftgymError: Folders that cannot be read, that do not fit each other, or no room to write.
    """
    if len(args.sources) < 2:
        raise DraftgymError("there is nothing to average", "name two or more checkpoint folders")
    check_new_folder(args.out)
    contents = [read_contents(folder) for folder in args.sources]
    first = contents[0]
    for folder, other in zip(args.sources, contents, strict=True):
        _check_alike(args.sources[0], first, folder, other)
    mean = {name: mean_of([one.tensors[name] for one in contents]) for name in first.tensors}
    write_contents(replace(first, tensors=mean), args.out, find_format(first.kind, first.kind))


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of weights, in their dtype; of maps (integers, booleans) the one they all are."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.float() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _check_alike(first: Path, one: Contents, folder: Path, other: Contents) -> None:
    shapes = [{name: value.shape for name, value in c.tensors.items()} for c in (one, other)]
    same = one.config == other.config and one.origin == other.origin and shapes[0] == shapes[1]
    if same:
        maps = [name for name, value in one.tensors.items() if not value.is_floating_point()]
        same = all(torch.equal(one.tensors[name], other.tensors[name]) for name in maps)
    if not same:
        raise DraftgymError(
            f"{folder} and {first} are not trainings of one drafter",
            "average checkpoints that started from the same one (--init)",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym average`."""
    average(tyro.cli(AverageArgs, args=arguments, description=__doc__, prog="draftgym average"))
