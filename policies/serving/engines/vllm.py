"""vLLM's dynamic speculative decoding: `--speculative-config` with a length by batch size.

    {"method": "eagle3", "model": "...", "num_speculative_tokens": 8,
     "num_speculative_tokens_per_batch_size": [[1, 16, 8], [17, 64, 5]]}

Its documentation (docs/features/speculative_decoding/dynamic_speculative_decoding.md at 015a47e):
entries are `[first size, last size, tokens]`, both sizes included, no entry may have more tokens
than `num_speculative_tokens`, and 0 is allowed. The reader (vllm/v1/spec_decode/dynamic/utils.py at
a6f6bb1) wants the first to begin at 1 and none to overlap; sizes above the last go on with its
tokens, which the documentation does not say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.engines.table import (
    Export,
    LengthTable,
    ladder_of,
    method_of,
    without_lookup,
)

ENGINE = "vLLM"
KEY = "num_speculative_tokens_per_batch_size"
METHODS = {
    **{"eagle": "eagle", "eagle3": "eagle3", "dflash": "dflash", "small": "draft_model"},
    **{"ngram": "ngram", "suffix": "suffix", "mtp": "mtp", "dspark": "dspark"},
}
"""`method` by the name of our drafter."""
TESTED = ("eagle", "eagle3", "dflash")
LOOKS_UP = {"ngram": {"prompt_lookup_max": 4, "prompt_lookup_min": 2}, "suffix": {}}
"""What methods need that look up: of `ngram` the match lengths of our prompt lookup."""
WITHOUT_WEIGHTS = (*LOOKS_UP, "mtp")


def to_vllm(table: LengthTable, model: str | None = None, method: str | None = None) -> Export:
    """The speculative config.

    Args:
        table: The lengths.
        model: Name or folder of the drafter's weights; None leaves it to be added.
        method: What vLLM calls the drafter; None goes by its name.

    Raises:
        DraftgymError: vLLM has no such drafter, or cannot do this.
    """
    table = without_lookup(ENGINE, table).drafts(ENGINE)
    named = method_of(ENGINE, METHODS, table.drafter, method)
    body: dict[str, Any] = {"method": named, **LOOKS_UP.get(named, {})}
    if model is not None:
        body["model"] = model
    body["num_speculative_tokens"] = table.longest
    body[KEY] = [list(entry) for entry in table.ranges]
    notes = []
    if model is None and named not in WITHOUT_WEIGHTS:
        notes.append('the drafter\'s weights are missing: add "model", or name them with --model')
    if named not in TESTED:
        notes.append(f"vLLM has tested lengths by size with {', '.join(TESTED)}, not with {named}")
    command = f'vllm serve MODEL --max-num-seqs {table.most} --speculative-config "$(cat {{file}})"'
    return Export(json.dumps(body) + "\n", table, command, tuple(notes))


def from_vllm(body: Mapping[str, Any], drafter: str) -> LengthTable:
    """Reads a speculative config that has lengths by size.

    Raises:
        DraftgymError: Its entries are none, or do not follow each other from 1 on.
    """
    entries = body[KEY]
    ladder = ladder_of(drafter, [int(entry[-1]) for entry in entries if entry])
    return LengthTable(drafter, LengthBySize.from_vllm(ladder, entries).schedule)
