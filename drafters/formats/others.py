"""Drafters that the field publishes and draftgym does not build, by name.

A checkpoint of one of them is whole, so a refusal that speaks of damage sends its user to the
download again. What a folder holds is seen from words of its config, or else from tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

WORDS: tuple[tuple[str, str], ...] = (
    (r"p[-_]?eagle", "a P-EAGLE head (all its tokens in one pass)"),
    (r"dspark", "a DSpark drafter (DFlash with a Markov head)"),
    (r"dspine", "a DSpine drafter"),
    (r"domino", "a Domino drafter (DFlash with a recurrent head)"),
    (r"dflash[-_]?2", "a DFlash 2 drafter"),
    (r"medusa", "Medusa heads"),
    (r"hydra", "Hydra heads"),
    (r"mlp[-_]?speculator", "an MLP speculator"),
    (r"(?<![a-z])hspec", "an HSpec drafter"),
    (r"edsd", "an EDSD drafter"),
    (r"(?<![a-z])mtp|mtp(model|draft|forcausal|$)|nextn", "an MTP (next-n) layer"),
    (r"eagle[-_]?3deep(?!seek)", "an EAGLE-3 head of several layers"),
    (r"moe\w*eagle[-_]?3|deepseek\w*eagle[-_]?3|eagle[-_]?3\w*(moe|deepseek)", "an EAGLE-3 head "
     "whose layer is not a dense Llama one"),
    (r"eagle(?![-_]?3)", "an EAGLE-1 or EAGLE-2 head"),
    (r"^(?!(LlamaForCausalLM|)Eagle3(LlamaForCausalLM|Speculator|)$).*eagle[-_]?3", "an EAGLE-3 "
     "head of another network than Llama's"),
    (r"^(?!DFlash(DraftModel|Speculator|)$).*dflash", "another drafter than z-lab's DFlash"),
)  # fmt: skip
"""What a name may contain, and what that is; the first that fits counts."""

REMEDY = (
    "draftgym drafts with one-layer EAGLE-3 heads, DFlash and small causal LMs: name such a "
    "checkpoint, or train one (draftgym train-drafter)"
)


def other_kind(body: dict[str, Any], names: Collection[str] = ()) -> str | None:
    """What a checkpoint holds that is not ours to read, with the key that says so.

    Args:
        body: Its `config.json`.
        names: Names of its tensors; what only they can tell stays unsaid without them.

    Returns:
        A noun phrase for the message, None where nothing speaks for another kind.
    """
    for key, value in _said(body):
        for word, kind in WORDS:
            if re.search(word, value, re.IGNORECASE):
                return f"{kind} ({key} is {value!r})"
    medusa = next((key for key in body if "medusa" in key), None)
    if medusa is not None:
        return f"Medusa heads (its config has {medusa})"
    return _kind_of_names(names)


def _said(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The words of a config that may name its kind, by key."""
    nested = body.get("dflash_config")
    config = body.get("speculators_config")
    places: list[tuple[str, Any]] = [
        ("speculators_model_type", body.get("speculators_model_type")),
        ("projector_type", body.get("projector_type")),
        ("projector_type", nested.get("projector_type") if isinstance(nested, dict) else None),
        ("algorithm", config.get("algorithm") if isinstance(config, dict) else None),
        ("architectures", first_architecture(body)),
        ("model_type", body.get("model_type")),
    ]
    return [(key, value) for key, value in places if isinstance(value, str)]


def _kind_of_names(names: Collection[str]) -> str | None:
    """What tensor names tell where a config looks like a language model's."""
    ours = [name.removeprefix("model.") for name in names]
    if any(re.match(r"medusa_head|\d+\.\d+\.(linear\.)?(weight|bias)$", name) for name in ours):
        return "Medusa heads (by its tensors)"
    later = any("hidden_norm" in name for name in ours)  # EAGLE-3 and DFlash norm their features
    if "fc.weight" in ours and any(name.startswith("layers.0.") for name in ours) and not later:
        return "an EAGLE-1 or EAGLE-2 head (by its tensors: fc beside layers)"
    return None


def first_architecture(body: dict[str, Any]) -> str | None:
    """The first of a config's `architectures`, where it is a name."""
    named = body.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) else None
