"""TensorRT-LLM's draft lengths by batch size: `speculative_config` of its YAML file.

    speculative_config:
      decoding_type: Eagle3
      max_draft_len: 8
      speculative_model: ...
      draft_len_schedule:
        16: 8
        64: 5

Keys are the *largest* size of each entry, and above the last nothing is drafted (API reference of
`Eagle3DecodingConfig`, 1.4.0rc4; releases before pull request 10860 read them as smallest sizes).
The smallest key must have `max_draft_len`, and none may have more (`DecodingBaseConfig` in
tensorrt_llm/llmapi/llm_args.py), so lengths beyond the first are cut to it. `max_concurrency` and a
schedule exclude each other.

It alone of the engines can look up before its network drafts: `sa_config` sets a suffix automaton
in front, which takes over where `threshold` or more of the newest tokens are found again
(`SAEnhancerConfig`). The guide's `use_sa_spec` is no field of the reference, and refused.
"""

from __future__ import annotations

import json
import re

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.engines.table import Export, LengthTable, method_of

ENGINE = "TensorRT-LLM"
KEY = "draft_len_schedule"
TYPES = {
    **{"eagle3": "Eagle3", "dflash": "DFlash", "small": "Draft_Target", "mtp": "MTP"},
    **{"ngram": "NGram", "suffix": "SA", "pard": "PARD"},
}
"""`decoding_type` by the name of our drafter."""
WITHOUT_WEIGHTS = ("NGram", "SA", "MTP")
LONGEST_MATCH = 4
"""Of our prompt lookup."""
BEHIND_LOOKUP = ("Eagle3", "MTP", "PARD")
"""Those that take `sa_config`."""


def to_tensorrt_llm(
    table: LengthTable, model: str | None = None, method: str | None = None
) -> Export:
    """The YAML file.

    Args:
        table: The lengths; `match` becomes the automaton's threshold.
        model: Name or folder of the drafter's weights; None leaves it to be added.
        method: What TensorRT-LLM calls the drafter; None goes by its name.

    Raises:
        DraftgymError: TensorRT-LLM has no such drafter, or cannot do this.
    """
    named = method_of(ENGINE, TYPES, table.drafter, method)
    cut = table.drafts(ENGINE).cut()
    if not cut.longest:
        raise DraftgymError(
            f"{ENGINE} drafts no more than at the smallest size, and that is nothing",
            "begin --sizes with one at which drafting pays",
        )
    lines = ["speculative_config:", f"  decoding_type: {named}", f"  max_draft_len: {cut.longest}"]
    notes = []
    if model is not None:
        lines.append(f"  speculative_model: {json.dumps(model)}")
    elif named not in WITHOUT_WEIGHTS:
        notes.append("the drafter's weights are missing: add speculative_model, or name --model")
    if named == "NGram":
        lines.append(f"  max_matching_ngram_size: {LONGEST_MATCH}")
    lines += [f"  {KEY}:", *(f"    {size}: {length}" for size, length in cut.schedule.items())]
    if cut.match is not None:
        if named not in BEHIND_LOOKUP:
            raise DraftgymError(
                f"{ENGINE} cannot look up before {named}",
                f"leave --match out; it can before {', '.join(BEHIND_LOOKUP)}",
            )
        lines += ["  sa_config:", f"    threshold: {cut.match}"]
    if cut != table:
        notes.append(f"no length may be beyond the first, so {dict(table.schedule)} was cut")
    command = f"trtllm-serve MODEL --max_batch_size {cut.most} --config {{file}}"
    return Export("\n".join(lines) + "\n", cut, command, tuple(notes))


def from_tensorrt_llm(text: str, drafter: str) -> LengthTable:
    """Reads the schedule of a YAML file, written in lines or in braces, and the threshold.

    Raises:
        DraftgymError: There is no schedule in it.
    """
    found = re.search(rf"^ *{KEY}: *(\{{[^}}]*\}}|(?:\n +\d+ *: *\d+)+)", text, re.MULTILINE)
    pairs = re.findall(r"(\d+) *: *(\d+)", found.group(1)) if found else []
    if not pairs:
        raise DraftgymError(f"no {KEY} in it", "write sizes and lengths, as in {4: 4, 8: 2}")
    threshold = re.search(r"^ *threshold: *(\d+)", text, re.MULTILINE)
    match = int(threshold.group(1)) if threshold else None
    schedule = sorted((int(size), int(length)) for size, length in pairs)
    return LengthTable(drafter, dict(schedule), match)
