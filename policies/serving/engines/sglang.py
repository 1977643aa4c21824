"""SGLang's adaptive speculative decoding: `--speculative-adaptive-config`, a JSON by batch size.

    {"1": {"candidate_steps": [8]}, "17": {"candidate_steps": [5]}}

Keys are the smallest size of each entry, as text, after the batch was padded to a size that has a
CUDA graph (docs/advanced_features/adaptive_speculative_decoding at 32c764a; release 0.5.23 reads it
in sglang/srt/speculative/adaptive_spec_params.py). Of several candidates its rule chooses by what
was accepted lately; a single one is a fixed length. Other keys (`ema_alpha`, `update_interval`,
`warmup_batches`) are for all entries. That documentation asks for lengths above 0; the release
takes 0, its own defaults have it from 8 requests on, and so do we.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.adaptive import AdaptiveLength, AdaptiveSize
from draftgym.policies.serving.engines.table import (
    Export,
    LengthTable,
    method_of,
    without_lookup,
)

ENGINE = "SGLang"
CANDIDATES = "candidate_steps"
ALGORITHMS = {"eagle": "EAGLE", "eagle3": "EAGLE3"}
"""`--speculative-algorithm` by the name of our drafter: those whose length it adapts."""
NAMES = {
    **{"up": "up_hysteresis", "down": "down_hysteresis", "ceiling": "ceiling_coeff"},
    **{"alpha": "ema_alpha", "interval": "update_interval", "warmup": "warmup_batches"},
}
"""What SGLang calls the attributes of `AdaptiveSize`; it takes all of them in an entry."""


def to_sglang(table: LengthTable, model: str | None = None, method: str | None = None) -> Export:
    """The config of fixed lengths.

    Args:
        table: The lengths.
        model: Name or folder of the drafter's weights.
        method: What SGLang calls the drafter; None goes by its name.

    Raises:
        DraftgymError: SGLang adapts no such drafter, or cannot do this.
    """
    table = without_lookup(ENGINE, table).drafts(ENGINE)
    body = {str(first): {CANDIDATES: [length]} for first, _, length in table.ranges}
    command = _command(body, table.drafter, table.most, model, method)
    return Export(_text(body), table, command)


def adaptive_to_sglang(
    rule: AdaptiveLength, most: int, model: str | None = None, method: str | None = None
) -> Export:
    """The config of a rule that adapts, which SGLang plays as it is.

    Args:
        rule: It.
        most: Requests that the engine shall take at once.
        model: As `to_sglang`.
        method: As `to_sglang`.

    Raises:
        DraftgymError: As `to_sglang`, or the rule asks a lookup first.
    """
    drafter = rule.ladder.drafter
    if rule.ladder.arms[0].drafts:
        raise DraftgymError(
            f"{ENGINE} cannot ask {rule.ladder.arms[0]} before {drafter}",
            "export the rule over chains alone",
        )
    body = {
        str(size): {
            CANDIDATES: list(one.candidates),
            **{theirs: getattr(one, ours) for ours, theirs in NAMES.items()},
        }
        for size, one in rule.sizes.items()
    }
    return Export(_text(body), None, _command(body, drafter, most, model, method))


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2) + "\n"


def _command(
    body: Mapping[str, Mapping[str, Any]],
    drafter: str,
    most: int,
    model: str | None,
    method: str | None,
) -> str:
    algorithm = method_of(ENGINE, ALGORITHMS, drafter, method)
    longest = max(step for entry in body.values() for step in entry[CANDIDATES])
    return (
        f"python -m sglang.launch_server --model MODEL --max-running-requests {most} "
        f"--speculative-algorithm {algorithm} --speculative-draft-model-path {model or 'DRAFTER'} "
        f"--speculative-eagle-topk 1 --speculative-num-steps {longest} "
        f"--speculative-num-draft-tokens {longest + 1} "
        "--speculative-adaptive --speculative-adaptive-config {file}"
    )


def from_sglang(body: Mapping[str, Any]) -> dict[int, AdaptiveSize]:
    """Reads a config: what each size adapts, for `AdaptiveLength`.

    Raises:
        DraftgymError: No size, or candidates that are no lengths.
    """
    shared = {name: value for name, value in body.items() if not name.isdigit()}
    sizes = {}
    for size, entry in body.items():
        if not size.isdigit():
            continue
        steps = entry.get(CANDIDATES)
        if not isinstance(steps, list) or not steps or not all(_is_length(one) for one in steps):
            raise DraftgymError(
                f"{CANDIDATES} of size {size} is {steps!r}", "write a list of lengths from 0 on"
            )
        told = {**shared, **entry}
        given = {ours: told[theirs] for ours, theirs in NAMES.items() if theirs in told}
        sizes[int(size)] = AdaptiveSize(tuple(steps), **given)
    if not sizes:
        raise DraftgymError("no size has a key", 'write sizes as text: {"1": {...}}')
    return sizes


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
