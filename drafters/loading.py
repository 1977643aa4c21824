"""Which drafters a run has: the shipped ones that fit its target, the user's, and those that copy.

A user's drafter is a checkpoint folder, or code: `module:name`, a class or function that is given
the target and makes a `Drafter`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.given import check_target
from draftgym.decoding.model.fingerprint import fits
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import NEURAL, load_drafter
from draftgym.drafters.formats import recognise
from draftgym.drafters.formats.files import read_json, tensor_names
from draftgym.drafters.formats.others import first_architecture, other_kind
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.small_lm.network import load_small_lm, small_lm_architectures
from draftgym.drafters.suffix.drafter import SuffixDrafter, load_suffix
from draftgym.drafters.suffix.store import MODEL_TYPE

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
SMALL, SUFFIX = "small", "suffix"
KINDS = (*NEURAL, SMALL, SUFFIX)


def load_drafters(
    target: Target, given: Sequence[Path | str] | None = None, shipped: Path = SHIPPED
) -> dict[str, Drafter]:
    """Loads every drafter that a run can use.

    Args:
        target: The target.
        given: The user's: checkpoint folders, stores of responses, and code (`module:name`). One
            takes the place of another of its name.
        shipped: Folder of the shipped checkpoints.

    Returns:
        Drafters by name (`eagle3`, `dflash`, `small`, `ngram`, `suffix`); the last two, which copy
        from the text and need no training, are always among them.

    Raises:
        DraftgymError: A folder is damaged or of another target, two given ones are of one kind, or
            code does not make a drafter.
    """
    check_target(target)
    if isinstance(given, str | Path):  # a text would be read letter by letter
        given = [given]
    found = find_checkpoints(target, given, shipped)
    if not found:
        print(
            f"note: no shipped drafter was trained for target {target.name!r}; prompt lookup "
            "(ngram) and suffix decoding (suffix) are the only drafters. Train one with "
            "train_drafter.py, name it with --drafters",
            file=sys.stderr,
        )
    loaded = [load_folder(folder, target) for folder in found.values()]
    loaded.append(NgramDrafter(never=target.image_tokens))
    if SUFFIX not in found:  # with a store, it is loaded already
        loaded.append(SuffixDrafter(never=target.image_tokens))
    own = [make_drafter(str(entry), target) for entry in given or () if is_code(str(entry))]
    return {drafter.name: drafter for drafter in [*loaded, *own]}


def is_code(entry: str) -> bool:
    """Whether a user names code (`module:name`), not a folder."""
    return re.fullmatch(r"[A-Za-z_][\w.]+:\w+", entry) is not None


def make_drafter(entry: str, target: Target) -> Drafter:
    """Makes a drafter from code, which is looked for in the working folder too.

    Args:
        entry: `module:name`; what it names is called with the target.
        target: The target.

    Raises:
        DraftgymError: There is no such code, or it makes something else.
    """
    module, _, name = entry.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DraftgymError(
            f"cannot load drafter {entry}: {error}",
            "name a module of this folder (or an installed one) and a class in it, as in mine:Mine",
        ) from error
    drafter = make(target)
    if not isinstance(drafter, Drafter):
        raise DraftgymError(f"{entry} makes no drafter but {drafter!r}", "derive it from Drafter")
    return drafter


def load_folder(folder: Path, target: Target) -> Drafter:
    """Loads one checkpoint folder of any kind.

    Raises:
        DraftgymError: As `load_drafters`.
    """
    others = {SMALL: load_small_lm, SUFFIX: load_suffix}
    return others.get(kind_of(folder) or "", load_drafter)(folder, target)


def find_checkpoints(
    target: Target, given: Sequence[Path | str] | None = None, shipped: Path = SHIPPED
) -> dict[str, Path]:
    """The checkpoint folders that `load_drafters` loads, by drafter name."""
    mine: dict[str, Path] = {}
    for entry in given or ():
        if is_code(str(entry)):
            continue
        folder = user_path(entry)
        kind = kind_of(folder) or str(folder)  # no drafter at all: loading it says what is wrong
        if kind in mine:
            raise DraftgymError(
                f"--drafters names two {kind} checkpoints: {mine[kind]} and {folder}",
                "give one checkpoint of each kind",
            )
        mine[kind] = folder
    ours = {str(kind_of(folder)): folder for folder in _fitting(target, shipped)}
    both = ours | mine
    return {kind: both[kind] for kind in (*KINDS, *both) if kind in both}


def _fitting(target: Target, shipped: Path) -> list[Path]:
    """Shipped drafters of this target, by fingerprint (a router beside them is no drafter)."""
    folders = [path.parent for path in sorted(shipped.glob("*/config.json"))]
    return [
        folder
        for folder in folders
        if kind_of(folder)
        and fits(_config(folder).get("draftgym", {}).get("target_fingerprint"), target)
    ]


def kind_of(folder: Path) -> str | None:
    """One of `KINDS` by the keys of `config.json` and tensor names, None for anything else."""
    body, names = _config(folder), tensor_names(folder)
    if body.get("model_type") == MODEL_TYPE:
        return SUFFIX
    form = recognise(body, names)
    if form is not None:
        return form.kind
    language_model = first_architecture(body) in small_lm_architectures()
    return SMALL if language_model and other_kind(body, names) is None else None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder) if (folder / "config.json").is_file() else {}
