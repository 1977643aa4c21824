"""transformers' `generate()`: greedy, and with its prompt lookup, in the target's dtype."""

from __future__ import annotations

from typing import Any

import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.few_bits import form_of, round_model
from draftgym.decoding.model.loading import quiet_transformers
from draftgym.decoding.model.target import Target, resolve_target
from draftgym.rollouts.peers.peer import Conditions, Peer, Write

GENERATE = "transformers"
LOOKUP_TOKENS = 10
"""`prompt_lookup_num_tokens`, which has no default; transformers' own example has 10."""


def load(conditions: Conditions) -> list[Peer]:
    """`generate()`, as a user would write it with the model's own static settings.

    Raises:
        DraftgymError: transformers has no causal LM for these files.
    """
    import transformers

    target = conditions.target
    model = _load(resolve_target(target.name), target)
    # Texts end where ours do, also at what only the tokenizer names as the end.
    model.generation_config.eos_token_id = sorted(conditions.stop_tokens) or None
    version, dtype = transformers.__version__, target.precision.dtype
    lookup = _generate(model, prompt_lookup_num_tokens=LOOKUP_TOKENS)
    return [
        Peer(GENERATE, version, dtype, _generate(model)),
        Peer(f"{GENERATE} lookup", version, dtype, lookup),
    ]


def _generate(model: Any, **options: Any) -> Write:
    @torch.inference_mode()
    def write(ids: list[int], max_new_tokens: int) -> list[int]:
        batch = torch.tensor([ids], device=model.device)
        limits = {"max_new_tokens": max_new_tokens, "do_sample": False}
        output = model.generate(batch, attention_mask=torch.ones_like(batch), **limits, **options)
        return list(output[0, len(ids) :].tolist())

    return write


def _load(source: str, target: Target) -> Any:
    """The target's weights, rounded where the target's are."""
    import transformers

    _, form = form_of(target.name)
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
    if form:
        round_model(model, form)
    return model.eval().to(target.device)
