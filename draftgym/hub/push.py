"""Put a drafter, a policy or traces on the Hugging Face Hub.

    $ draftgym push runs/eagle3/checkpoint owner/eagle3-for-smollm2
    $ draftgym push runs/router/policy owner/router --private
    $ draftgym push runs/traces owner/traces

Traces become a dataset, the others a model. The card is the folder's README.md, with the fields
that the Hub reads above it; the other files go as they are, in one commit that replaces what was
there. Address, token and offline mode are the usual ones: HF_ENDPOINT, HF_TOKEN (or `hf auth
login`), HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

from draftgym.hub.cards import card_of
from draftgym.hub.client import told_simply
from draftgym.hub.contents import CARD, SHARED, Shared, contents_of

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True)
class PushArgs:
    """What to share, and where."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a drafter, a policy or traces."""
    repo: Annotated[str, tyro.conf.Positional]
    """owner/name; made where it is new."""
    private: bool = False
    """Make a new repository for yourself alone; one that is there stays as it is."""
    revision: str | None = None
    """Branch to put it on, made where it is new; default: main."""
    base_model: str | None = None
    """Hub id of the target, for the card; default: that which the folder names, if it is one."""


def push(args: PushArgs) -> str:
    """Shares a folder.

    Returns:
        The commit's address.

    Raises:
        DraftgymError: Nothing to share, weights that are a pickle, no network, or no permission.
    """
    shared = contents_of(args.folder)
    if shared.left_out:
        kinds = ", ".join(SHARED[shared.what])
        print(
            f"note: left out, for only {kinds} files are shared: {', '.join(shared.left_out)}",
            file=sys.stderr,
        )
    card = card_of(shared, args.base_model, args.repo)
    with told_simply(args.repo):
        return _commit(shared, card, args)


def _commit(shared: Shared, card: str, args: PushArgs) -> str:
    hub, kind = HfApi(library_name="draftgym"), shared.repo_type
    hub.create_repo(args.repo, repo_type=kind, private=args.private or None, exist_ok=True)
    if args.revision is not None:
        hub.create_branch(args.repo, branch=args.revision, repo_type=kind, exist_ok=True)
    there = hub.list_repo_files(args.repo, repo_type=kind, revision=args.revision)
    contents = {path.name: str(path) for path in shared.files} | {CARD: card.encode()}
    gone = [name for name in there if "/" not in name and _replaced(name, shared)]
    operations: list[CommitOperation] = [
        *(CommitOperationAdd(name, content) for name, content in contents.items()),
        *(CommitOperationDelete(name) for name in gone if name not in contents),
    ]
    made = hub.create_commit(
        args.repo,
        operations,
        commit_message=f"draftgym push: {shared.kind}",
        repo_type=kind,
        revision=args.revision,
    )
    return str(made.commit_url)


def _replaced(name: str, shared: Shared) -> bool:
    """Whether a file on the Hub is of those that a push replaces (weights in more shards, say)."""
    return Path(name).suffix in SHARED[shared.what]


def main(arguments: Sequence[str]) -> None:
    """`draftgym push`."""
    print(push(tyro.cli(PushArgs, args=arguments, description=__doc__, prog="draftgym push")))
