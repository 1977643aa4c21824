"""Who writes in the comparison: transformers' `generate()` in three ways, and our decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.loading import quiet_transformers
from draftgym.decoding.model.target import Target, resolve_target

GENERATE = "hf generate"
ASSISTED = "hf assisted"
LOOKUP = "hf prompt lookup"


@dataclass(frozen=True)
class Timed:
    """One text with its times.

    Attributes:
        tokens: New token ids.
        seconds: The whole call, prompt included.
        decode_seconds: Without the prompt and the first token; None where the call does not say.
    """

    tokens: list[int]
    seconds: float
    decode_seconds: float | None = None


Contender = Callable[[Tensor, int], Timed]
"""Writes a greedy text after a prompt `[m]`, given the most tokens that it may have."""


def our_contender(decoder: SpeculativeDecoder) -> Contender:
    """Our decoder with its policy."""
    device = decoder.target.device

    def write(ids: Tensor, max_new_tokens: int) -> Timed:
        start = clock(device)
        text = decoder.generate(ids, max_new_tokens, temperature=0.0)
        seconds = clock(device) - start
        return Timed(text.tokens, seconds, text.decode_seconds)

    return write


def transformers_contenders(
    target: Target, assistant: Path | None, lookup_tokens: int
) -> tuple[dict[str, Contender], dict[str, Any] | None]:
    """Transformers with the target's weights, dtype and device.

    Args:
        target: Ours; transformers loads the same files.
        assistant: Folder of a small LM with the target's vocabulary; None leaves its row out.
        lookup_tokens: `prompt_lookup_num_tokens`.

    Returns:
        Contenders by name, and how the assistant drafts.
    """
    model = _load(resolve_target(target.name), target)
    # Texts end where ours do, also at what only the tokenizer names as the end.
    model.generation_config.eos_token_id = sorted(target.stop_tokens) or None
    made = {GENERATE: _generate(model)}
    settings = None
    if assistant is not None:
        small = _load(resolve_target(str(assistant)), target)
        if small.config.vocab_size != target.vocab_size:
            raise DraftgymError(
                f"assistant {assistant} has {small.config.vocab_size} tokens, "
                f"target {target.name!r} has {target.vocab_size}",
                "use a small LM with the target's tokenizer",
            )
        made[ASSISTED] = _generate(model, assistant_model=small)
        settings = _assistant_settings(small)
    made[LOOKUP] = _generate(model, prompt_lookup_num_tokens=lookup_tokens)
    return made, settings


def _generate(model: Any, **options: Any) -> Contender:
    """`model.generate(...)` as a user would write it, with the model's own static settings."""

    @torch.inference_mode()
    def write(ids: Tensor, max_new_tokens: int) -> Timed:
        batch = ids[None].to(model.device)
        mask = torch.ones_like(batch)
        limits = {"max_new_tokens": max_new_tokens, "do_sample": False}
        start = clock(model.device)
        output = model.generate(batch, attention_mask=mask, **limits, **options)
        seconds = clock(model.device) - start
        return Timed(output[0, len(ids) :].cpu().tolist(), seconds)

    return write


def _assistant_settings(small: Any) -> dict[str, Any]:
    """How transformers drafts with an assistant: its own settings, else the library's defaults."""
    import transformers

    defaults = transformers.GenerationConfig._get_default_generation_params()
    names = [
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
    ]
    mine = {name: getattr(small.generation_config, name, None) for name in names}
    return {name: defaults[name] if mine[name] is None else mine[name] for name in names}


def _load(source: str, target: Target) -> Any:
    import transformers

    try:
        with quiet_transformers():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=target.precision.torch_dtype
            )
    except (OSError, ValueError) as error:
        raise DraftgymError(
            f"transformers cannot load {source}: {str(error).splitlines()[0]}",
            "name an ordinary Hugging Face folder of a causal language model",
        ) from error
    return model.eval().to(target.device)
