"""The file format of a corpus: Parquet shards of a target's responses, and who wrote them.

    column       type         what
    id           string       question id
    category     string       what kind of question
    temperature  float64      0 for greedy
    seed         int64        seed of the sampling noise
    prompt       list<int32>  token ids
    response     list<int32>  token ids, with the stop token where the target stopped by itself

Training needs `prompt` and `response` only. The schema's metadata holds one JSON object under the
key `draftgym`: schema version, target, fingerprint, dtype, settings, versions, revision. A file
without it is legal (it may come from elsewhere); one of another target is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError

SCHEMA_VERSION = 1
METADATA_KEY = b"draftgym"


def response_schema(metadata: dict[str, Any]) -> Any:
    """The pyarrow schema of a shard; `schema_version` is added to its metadata."""
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    columns = {
        "id": pyarrow.string(),
        "category": pyarrow.string(),
        "temperature": pyarrow.float64(),
        "seed": pyarrow.int64(),
        "prompt": tokens,
        "response": tokens,
    }
    body = json.dumps({"schema_version": SCHEMA_VERSION, **metadata})
    return pyarrow.schema(columns.items(), metadata={METADATA_KEY: body.encode()})


def shards_of(path: Path) -> list[Path]:
    """The Parquet files of a corpus in order: the file itself, or those in a folder.

    Raises:
        DraftgymError: There is none.
    """
    if not path.exists():
        raise DraftgymError(f"no corpus at {path}", "give a Parquet file with --corpus")
    # Names that begin with a dot are shards that were being written when a run was killed.
    found = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if path.is_dir() and not found:
        raise DraftgymError(f"folder {path} holds no Parquet file", "name a corpus with --corpus")
    return found or [path]


def read_metadata(shard: Path) -> dict[str, Any]:
    """What a shard says about its origin; empty if it says nothing.

    Raises:
        DraftgymError: No Parquet file, or one of a newer version of this format.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        stored = (pyarrow.parquet.read_schema(shard).metadata or {}).get(METADATA_KEY)
        body = json.loads(stored) if stored else {}
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DraftgymError(
            f"cannot read {shard}: {error}",
            "it must be Parquet with list columns `prompt` and `response` of token ids; if it was "
            "cut off, delete it and make its texts again",
        ) from error
    if body and body.get("schema_version") != SCHEMA_VERSION:
        raise DraftgymError(
            f"{shard} has schema version {body.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}",
            "use the version of draftgym that wrote it, or make the responses again",
        )
    return dict(body)


def check_target(shard: Path, fingerprint: str) -> None:
    """Refuses a shard that another target wrote; one that does not say is accepted."""
    metadata = read_metadata(shard)
    written_by = metadata.get("fingerprint")
    if written_by not in (None, fingerprint):
        raise DraftgymError(
            f"corpus {shard} was written by another target ({metadata.get('target')!r}, "
            f"fingerprint {written_by}; this one has {fingerprint})",
            "name the target that wrote it with --target, or write responses of this target with "
            "draftgym respond",
        )
