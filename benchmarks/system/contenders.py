"""Who writes in the comparison: transformers' `generate()` in three ways, and our decoder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
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


class Contender(ABC):
    """Writes greedy texts."""

    @abstractmethod
    def write(self, ids: Tensor, max_new_tokens: int) -> Timed:
        """Writes one text after the prompt `ids` `[m]`."""


class TransformersContender(Contender):
    """`model.generate(...)` as a user would write it, with the model's own static settings.

    Args:
        model: A causal LM in evaluation mode.
        options: What turns speculation on (`assistant_model`, `prompt_lookup_num_tokens`).
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.options = model, options

    @torch.inference_mode()
    def write(self, ids: Tensor, max_new_tokens: int) -> Timed:
        """See `Contender.write`."""
        batch = ids[None]
        mask = torch.ones_like(batch)
        start = time.perf_counter()
        output = self.model.generate(
            batch,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **self.options,
        )
        seconds = time.perf_counter() - start
        tokens: list[int] = output[0, len(ids) :].tolist()
        return Timed(tokens, seconds)


class OurContender(Contender):
    """Our decoder with a policy."""

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self.decoder = decoder

    def write(self, ids: Tensor, max_new_tokens: int) -> Timed:
        """See `Contender.write`."""
        start = time.perf_counter()
        text = self.decoder.generate(ids, max_new_tokens, temperature=0.0)
        seconds = time.perf_counter() - start
        return Timed(text.tokens, seconds, text.decode_seconds)


def transformers_contenders(
    target: Target, assistant: Path | None, lookup_tokens: int
) -> dict[str, Contender]:
    """Transformers with the target's weights and dtype.

    Args:
        target: Ours; transformers loads the same files.
        assistant: Folder of a small LM with the target's vocabulary; None leaves its row out.
        lookup_tokens: `prompt_lookup_num_tokens`.
    """
    model = _load(resolve_target(target.name), target)
    made: dict[str, Contender] = {GENERATE: TransformersContender(model)}
    if assistant is not None:
        small = _load(resolve_target(str(assistant)), target)
        if small.config.vocab_size != target.vocab_size:
            raise DraftgymError(
                f"assistant {assistant} has {small.config.vocab_size} tokens, "
                f"target {target.name!r} has {target.vocab_size}",
                "use a small LM with the target's tokenizer",
            )
        made[ASSISTED] = TransformersContender(model, assistant_model=small)
    made[LOOKUP] = TransformersContender(model, prompt_lookup_num_tokens=lookup_tokens)
    return made


def assistant_settings(contenders: Mapping[str, Contender]) -> dict[str, Any] | None:
    """How transformers drafts with the assistant: its own settings, else the library's defaults."""
    import transformers

    assisted = contenders.get(ASSISTED)
    if not isinstance(assisted, TransformersContender):
        return None
    chosen = assisted.options["assistant_model"].generation_config
    defaults = transformers.GenerationConfig._get_default_generation_params()
    names = [
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
    ]
    mine = {name: getattr(chosen, name, None) for name in names}
    return {name: defaults[name] if mine[name] is None else mine[name] for name in names}


def _load(source: str, target: Target) -> Any:
    import transformers

    bars = transformers.utils.logging
    bars.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=target.precision.torch_dtype
        )
    except (OSError, ValueError) as error:
        raise DraftgymError(
            f"transformers cannot load {source}: {str(error).splitlines()[0]}",
            "name an ordinary Hugging Face folder of a causal language model",
        ) from error
    finally:
        bars.enable_progress_bar()
    return model.eval()
