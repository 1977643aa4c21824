"""The checkpoint formats that the field uses, and the table of them.

| name | drafter | written and read by |
|---|---|---|
| `eagle3` | EAGLE-3 | SafeAILab, SpecForge, SGLang (vLLM reads it too) |
| `speculators` | EAGLE-3 | speculators, vLLM |
| `dflash` | DFlash | z-lab, SpecForge, SGLang, vLLM |
| `speculators` | DFlash | speculators, vLLM |

A drafter's formats are a module; `contents.py` says what they all read into. Which format a folder
has is seen from keys of its `config.json`; `others.py` names the drafters that have none of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.formats.contents import CheckpointFormat
from draftgym.drafters.formats.dflash import NativeDFlash, SpeculatorsDFlash
from draftgym.drafters.formats.eagle3 import NativeEagle3, SpeculatorsEagle3
from draftgym.drafters.formats.others import other_kind

FORMATS: tuple[CheckpointFormat, ...] = (
    NativeEagle3(),
    SpeculatorsEagle3(),
    NativeDFlash(),
    SpeculatorsDFlash(),
)


def recognise(body: dict[str, Any], names: Collection[str] = ()) -> CheckpointFormat | None:
    """The format of a checkpoint, None for anything that is no drafter of ours.

    Args:
        body: Its `config.json`.
        names: Names of its tensors, where its config may be that of a language model as well.
    """
    if other_kind(body) is not None:
        return None
    return next((form for form in FORMATS if form.recognises(body, names)), None)


def find_format(name: str, kind: str) -> CheckpointFormat:
    """The format called `name` for a kind of drafter (`eagle3`, `dflash`).

    Raises:
        DraftgymError: The format has no place for that kind.
    """
    for form in FORMATS:
        if (form.name, form.kind) == (name, kind):
            return form
    fitting = " or ".join(form.name for form in FORMATS if form.kind == kind)
    raise DraftgymError(
        f"format {name!r} does not hold a drafter of kind {kind!r}", f"use --format {fitting}"
    )
