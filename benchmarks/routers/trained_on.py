"""What the routers of a run folder were trained on: they are kept, and must not be mistaken.

A router of other drafters, costs, texts or arms has the same file name and the same shapes. Reused
in silence, it would be judged as one of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import check_run_folder
from draftgym.policies.folder import BODY
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet

RECORD = "trained_on.json"
REMEDY = "name another folder with --run, or delete this one to train its routers anew"


def claim_run(run: Path, traces: TraceSet, arms: Sequence[Arm]) -> None:
    """Writes down what a run's routers learn from, before the first of them is trained.

    Args:
        run: Folder of routers.
        traces: What they are, or would be, trained on.
        arms: What they choose from.

    Raises:
        DraftgymError: Its routers were trained on something else, or nobody wrote down on what.
    """
    check_run_folder(run)
    path = run / RECORD
    if path.is_file():
        differences = _differences(_read(path), traces, arms)
        if differences:
            raise DraftgymError(
                f"the routers in {run} were trained on other traces ({'; '.join(differences)})",
                REMEDY,
            )
    elif any(run.rglob(BODY)):
        raise DraftgymError(f"nothing tells what the routers in {run} were trained on", REMEDY)
    else:
        body = {
            "origin": traces.origin.to_json(),
            "texts": _hash_texts(traces),
            "arms": list(map(str, arms)),
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def drafters_of(run: Path) -> dict[str, str] | None:
    """Fingerprints of the drafters that a run's routers were trained with; None if not recorded.

    Raises:
        DraftgymError: The record is damaged.
    """
    path = run / RECORD
    return dict(_read(path)["origin"]["drafters"]) if path.is_file() else None


def _differences(body: dict[str, Any], traces: TraceSet, arms: Sequence[Arm]) -> list[str]:
    before, now = TraceOrigin.from_json(body["origin"]), traces.origin
    found = before.differences(now)
    if before.cost_model != now.cost_model:
        found.append("cost model: measured anew")
    if body["texts"] != _hash_texts(traces):
        found.append("texts: others, or more")
    if body["arms"] != list(map(str, arms)):
        found.append(f"choice: {' '.join(body['arms'])} / {' '.join(map(str, arms))}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return {key: body[key] for key in ("origin", "texts", "arms")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DraftgymError(f"cannot read {path}: {error!r}", REMEDY) from error


def _hash_texts(traces: TraceSet) -> str:
    """What arms do at their positions follows from them and from the origin."""
    digest = hashlib.sha256()
    for text in traces.texts:
        digest.update(f"{text.question_id} {text.category} {text.prompt_hash} ".encode())
        digest.update(text.tokens.tobytes())
    return digest.hexdigest()[:16]
