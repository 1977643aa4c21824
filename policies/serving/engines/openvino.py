"""OpenVINO GenAI's numbers of a request: fields of its `GenerationConfig`, by batch size.

    {"16": {"num_assistant_tokens": 8}, "64": {"num_assistant_tokens": 5}}

OpenVINO GenAI reads no table; whoever submits a request sets its numbers, and they hold until it
ends (2026.4.1; site/docs/concepts/optimization-techniques/speculative-decoding.mdx at 02e83f7).
Keys are largest sizes: take the first that is not smaller than the number of requests being
written, this one included, and give its fields to `GenerationConfig`.

`num_assistant_tokens` is used as it is by the continuous-batching backend; 0 means the default
there, 5. So an entry that drafts nothing is null: send such requests to a pipeline without a
drafter. Prompt lookup needs `max_ngram_size` beside it. `assistant_confidence_threshold` excludes
`num_assistant_tokens`, and stops where one token's probability is low, which no table says; see
`confidence_to_openvino`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.engines.table import (
    Export,
    LengthTable,
    method_of,
    without_lookup,
)

ENGINE = "OpenVINO GenAI"
LENGTH, THRESHOLD = "num_assistant_tokens", "assistant_confidence_threshold"
NETWORK, LOOKUP = "draft_model", "prompt_lookup"
DRAFTERS = {"eagle3": NETWORK, "small": NETWORK, "ngram": LOOKUP}
"""What a pipeline is made with, by the name of our drafter."""
NGRAM = {"max_ngram_size": 4}
"""The match length of our prompt lookup."""


def to_openvino(table: LengthTable, model: str | None = None, method: str | None = None) -> Export:
    """The numbers by size.

    Args:
        table: The lengths.
        model: Folder of the drafter's weights.
        method: What the pipeline is made with; None goes by the drafter's name.

    Raises:
        DraftgymError: OpenVINO GenAI has no such drafter, or cannot do this.
    """
    table = without_lookup(ENGINE, table).drafts(ENGINE)
    named = method_of(ENGINE, DRAFTERS, table.drafter, method)
    more = NGRAM if named == LOOKUP else {}
    body = {
        str(size): {LENGTH: length, **more} if length else None
        for size, length in table.schedule.items()
    }
    how = f"openvino_genai.draft_model({model or 'DRAFTER'!r})" if named == NETWORK else "True"
    notes = []
    if None in body.values():
        notes.append("null: a pipeline without a drafter, for 0 means the default")
    command = f"openvino_genai.LLMPipeline(MODEL, 'CPU', {named}={how})  # numbers in {{file}}"
    return Export(json.dumps(body, indent=2) + "\n", table, command, tuple(notes))


def from_openvino(body: Mapping[str, Any], drafter: str) -> LengthTable:
    """Reads `to_openvino`'s file.

    Raises:
        DraftgymError: It is no such file.
    """
    try:
        entries = sorted((int(size), dict(entry or {LENGTH: 0})) for size, entry in body.items())
        return LengthTable(drafter, {size: int(entry[LENGTH]) for size, entry in entries})
    except (KeyError, TypeError, ValueError) as error:
        raise DraftgymError(f"no numbers by size: {error!r}", "export them again") from error


def confidence_to_openvino(threshold: str) -> str:
    """The file of a rule that stops a chain at the first token less probable than this.

    Raises:
        DraftgymError: It is no probability.
    """
    try:
        number = float(threshold)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise DraftgymError(f"a threshold of {threshold!r}", "give a number between 0 and 1")
    return json.dumps({THRESHOLD: number}) + "\n"
