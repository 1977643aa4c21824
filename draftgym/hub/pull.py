"""Fetch a drafter, a policy or traces from the Hugging Face Hub.

    $ draftgym pull owner/eagle3-for-smollm2
    $ draftgym generate --drafters "$(draftgym pull owner/eagle3-for-smollm2)" --policy eagle3
    $ draftgym pull datasets/owner/traces runs/traces

Prints the folder. Without one to copy to, that is the Hub's own cache, which also serves where
there is no network. Files that can hold code (pickles, Python) are never fetched. Address, token
and offline mode are the usual ones: HF_ENDPOINT, HF_TOKEN (or `hf auth login`), HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import errors, snapshot_download

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.formats.files import check_new_folder
from draftgym.hub.client import DATASETS, told_simply
from draftgym.hub.contents import PATTERNS, Shared, contents_of


@dataclass(frozen=True)
class PullArgs:
    """What to fetch."""

    repo: Annotated[str, tyro.conf.Positional]
    """owner/name; datasets/owner/name where a model has that name, too."""
    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """New folder to copy to; default: it stays in the Hub's cache."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""


def pull(args: PullArgs) -> Path:
    """Fetches a repository, and sees that it holds what draftgym reads.

    Returns:
        Its folder.

    Raises:
        DraftgymError: The folder exists; no network, no such repository or revision; or nothing
            that draftgym reads without unpickling.
    """
    if args.folder is not None:
        check_new_folder(args.folder)
    with told_simply(args.repo):
        found = _fetched(args)
    try:
        shared = contents_of(found)
    except DraftgymError as error:
        raise DraftgymError(
            f"{args.repo} holds nothing to pull: {error.problem}", error.remedy
        ) from error
    return found if args.folder is None else _copied(shared, args.folder)


def _fetched(args: PullArgs) -> Path:
    """The repository in the Hub's cache; a model, or else a dataset."""
    name = args.repo.removeprefix(DATASETS)
    kinds = ["dataset"] if name != args.repo else ["model", "dataset"]
    for last, kind in zip((False, True)[-len(kinds) :], kinds, strict=True):
        try:
            return Path(
                snapshot_download(
                    name,
                    repo_type=kind,
                    revision=args.revision,
                    allow_patterns=PATTERNS,
                    ignore_patterns=["*/*"],
                )
            )
        except errors.GatedRepoError:
            raise
        except (errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError):
            if last:
                raise
    raise AssertionError("one of them is the last")


def _copied(shared: Shared, folder: Path) -> Path:
    """Copies what is shared into a folder, which appears whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        for path in shared.files:
            shutil.copyfile(path, whole / path.name)
        os.replace(whole, folder)  # an empty folder may be in its place
    return folder


def main(arguments: Sequence[str]) -> None:
    """`draftgym pull`."""
    print(pull(tyro.cli(PullArgs, args=arguments, description=__doc__, prog="draftgym pull")))
