"""Which responses a folder of shards holds already, and how more of them are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.training.data.responses import read_metadata, response_schema
from draftgym.rollouts.decode.batched import Response
from draftgym.rollouts.traces.shards import shards_in

Done = dict[tuple[str, float], list[int]]
"""Prompts (token ids) of the texts that are there, by question id and temperature."""


def response_table(responses: Sequence[Response], metadata: Mapping[str, Any]) -> Any:
    """A shard's table; `metadata` says where the responses come from."""
    import pyarrow

    rows = [
        {
            "id": one.request.question_id,
            "category": one.request.category,
            "temperature": one.request.temperature,
            "seed": one.request.seed,
            "prompt": one.request.prompt.tolist(),
            "response": one.tokens,
        }
        for one in responses
    ]
    return pyarrow.Table.from_pylist(rows, response_schema(dict(metadata)))


def read_done(folder: Path, settings: Mapping[str, Any]) -> Done:
    """Which texts are there already.

    Args:
        folder: Folder of shards.
        settings: What decides the texts; shards that were written with others are refused.

    Raises:
        DraftgymError: A damaged shard, or one with other settings.
    """
    import pyarrow.parquet

    done: Done = {}
    for shard in shards_in(folder):
        before = read_metadata(shard).get("settings", {})
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise DraftgymError(
                f"{shard} was written with other settings "
                f"({', '.join(f'{key}: {before.get(key)}' for key in changed)})",
                "go on with the settings of the first run, or name another folder with --out",
            )
        columns = ["id", "temperature", "prompt"]
        for row in pyarrow.parquet.read_table(shard, columns=columns).to_pylist():
            done[row["id"], row["temperature"]] = row["prompt"]
    return done


def check_same_prompts(done: Done, prompts: Sequence[tuple[str, list[int]]]) -> None:
    """Raises `DraftgymError` for a question that was answered when it still read differently.

    Args:
        done: What is there.
        prompts: Question ids with their token ids now.
    """
    now = dict(prompts)
    for (question, _), tokens in done.items():
        if question in now and now[question] != tokens:
            raise DraftgymError(
                f"question {question!r} was answered before with another text",
                "give changed prompts new ids, or write to another folder with --out",
            )
