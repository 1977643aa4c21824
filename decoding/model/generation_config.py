"""A model's generation_config.json: what it asks for, and what of it texts here go without."""

from __future__ import annotations

import sys
from typing import Any

OTHER_TEXT: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "guidance_scale": (None, 1, 1.0),
    "num_beams": (None, 1),
    "watermarking_config": (None,),
}
"""Settings with which transformers' `generate` writes another text, and which ask for nothing."""

SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 1.0),
    "top_k": (None, 0),
    "top_p": (None, 1.0),
    "min_p": (None, 0, 0.0),
}
"""Settings that `generate` heeds where `do_sample` is true, and those without effect."""


def asked_settings(settings: Any) -> dict[str, Any]:
    """The sampling settings that a model asks for, and that texts are written with on request.

    Args:
        settings: The model's `GenerationConfig`.

    Returns:
        `do_sample` and what goes with it, and `repetition_penalty`; nothing where it asks for
        nothing.
    """
    asked: dict[str, Any] = {}
    if getattr(settings, "do_sample", None) is True:
        asked["do_sample"] = True
        for key, neutral in SAMPLING.items():
            if (value := getattr(settings, key, None)) not in neutral:
                asked[key] = value
    if (penalty := getattr(settings, "repetition_penalty", None)) not in (None, 1.0):
        asked["repetition_penalty"] = penalty
    return asked


def tell_ignored_settings(settings: Any, name: str) -> None:
    """Says on standard error which of a model's generation settings our text goes without.

    Args:
        settings: The model's `GenerationConfig`.
        name: What the user called the target.
    """
    who = f"note: generation_config.json of target {name!r} asks for"
    if asked := asked_settings(settings):
        told = ", ".join(f"{key}={value}" for key, value in asked.items())
        print(
            f"{who} {told}; texts are written so where you ask for it, with --generation-config or "
            "the settings' own options",
            file=sys.stderr,
        )
    found = [
        f"{key}={value}"
        for key, neutral in OTHER_TEXT.items()
        if (value := getattr(settings, key, None)) not in neutral
    ]
    if found:
        print(f"{who} {', '.join(found)}; texts here are written without", file=sys.stderr)
