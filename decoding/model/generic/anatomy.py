"""Where the parts of a transformers causal LM are, whatever its architecture calls them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.settings import longrope_reach
from draftgym.decoding.model.interface import DecoderShape, ModelInputs

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What models call their cache, the newest name first."""

LONGEST_CONTEXT = 1 << 22
"""More positions are a mistake."""
NO_LIMIT = 1 << 17
"""Positions of models that name no limit (recurrent ones, and those whose positions are biases):
drafters have rotary angles for so many."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM that decoding touches.

    Attributes:
        model: The whole model.
        config: The settings of its text part.
        body: What turns token ids into hidden states.
        layers: Its decoder layers.
        head: The language-model head.
        arguments: Names that its `forward` takes.
        cache_name: As which of them it takes its cache.
        open: Whether it takes others, too.
    """

    model: Any
    config: Any
    body: nn.Module
    layers: nn.ModuleList
    head: nn.Module
    arguments: frozenset[str]
    cache_name: str
    open: bool = False

    def accepted(self, inputs: ModelInputs) -> dict[str, Any]:
        """Those of a processor's outputs that the model takes."""
        return {k: v for k, v in inputs.items() if self.open or k in self.arguments}

    @property
    def table(self) -> nn.Module:
        """The input embedding, whose weight is `[rows, d]`."""
        found: nn.Module = self.model.get_input_embeddings()
        return found

    @property
    def head_weight(self) -> Tensor:
        """The head `[vocab, d]`, where and as it is kept."""
        weight: Any = self.head.weight
        return weight.detach()  # type: ignore[no-any-return]


def dissect(model: Any, who: str) -> Anatomy:
    """Finds the parts of a loaded model.

    Args:
        model: A transformers causal LM.
        who: What messages call it, as in `target 'mine'`.

    Raises:
        DraftgymError: It has no cache, no head or no list of layers, so that it cannot be driven.
    """
    config = model.config.get_text_config()
    body, head = model.get_decoder(), model.get_output_embeddings()
    layers = _layers(body, getattr(config, "num_hidden_layers", 0))
    signature = inspect.signature(model.forward).parameters
    arguments = frozenset(signature)
    takes_others = any(one.kind is one.VAR_KEYWORD for one in signature.values())
    cache_name = next((name for name in CACHE_NAMES if name in arguments), None)
    missing = {"language-model head": head, "list of layers": layers, "cache": cache_name}
    for part, found in missing.items():
        if found is None:
            raise DraftgymError(
                f"{who} ({type(model).__name__}) has no {part} that could be found",
                "name a causal LM of transformers that generates with a cache",
            )
    assert layers is not None and cache_name is not None
    return Anatomy(model, config, body, layers, head, arguments, cache_name, takes_others)


def _layers(body: nn.Module, count: int) -> nn.ModuleList | None:
    """The outermost list of as many modules as there are layers."""
    lists = [
        (name.count("."), module)
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(lists, key=lambda found: found[0])[1] if lists else None


def generic_shape(parts: Anatomy) -> DecoderShape:
    """The sizes of any causal LM, as far as it says them; drafters for it copy them.

    What a model without attention, or with attention of another shape, does not say is what an
    ordinary decoder of its width would have.
    """
    config = parts.config
    hidden = parts.head_weight.shape[1]
    heads = _first(config, "num_attention_heads", "n_head") or max(1, hidden // 64)
    if hidden % heads:
        heads = 1
    dim = _first(config, "head_dim") or hidden // heads
    kv_heads = _first(config, "num_key_value_heads", "num_kv_heads") or heads
    return DecoderShape(
        layers=len(parts.layers),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads if heads % kv_heads == 0 else heads,
        head_dim=dim + dim % 2,
        vocab=parts.head_weight.shape[0],
        eps=float(_first(config, *_EPSILONS) or 1e-6),
    )


_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def generic_context_limit(config: Any, who: str) -> int:
    """Most positions that the text part of a model can attend to.

    Raises:
        DraftgymError: It is a number that cannot be.
    """
    limit = next((getattr(config, name) for name in _LIMITS if hasattr(config, name)), None)
    if limit is None:
        return NO_LIMIT
    if not isinstance(limit, int) or not 1 <= limit <= LONGEST_CONTEXT:
        raise DraftgymError(
            f"the config.json of {who} gives it {limit} positions",
            "set max_position_embeddings to the length of its training texts",
        )
    reach = longrope_reach(config)
    return limit if reach is None else min(limit, reach)


_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def _first(config: Any, *names: str) -> Any:
    """The first of some settings that is there and says a number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            return value
    return None
