"""Records of finished prompts, one JSON object a line, so that a measurement can go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError

Record = dict[str, Any]
"""What was measured on one prompt."""


def partial_path(result: Path) -> Path:
    """Where finished prompts are kept until the result file is written."""
    return result.with_name(result.name + ".partial.jsonl")


def read_partial(path: Path, settings: Mapping[str, Any]) -> list[Record]:
    """Records of an interrupted run; starts the file where there is none.

    Raises:
        DraftgymError: The file belongs to other settings, or is damaged.
    """
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    remedy = "delete it to start over, or name another file with --json"
    try:
        header, *records = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DraftgymError(f"{path} is damaged: {error}", remedy) from error
    changed = [key for key in settings if header.get(key) != settings[key]]
    if changed:
        raise DraftgymError(f"{path} was started with other {', '.join(changed)}", remedy)
    path.write_text(whole, encoding="utf-8")
    print(f"going on after {len(records)} finished prompts of {path}", file=sys.stderr)
    return records


def append_record(path: Path, record: Record) -> None:
    """Adds a finished prompt."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
