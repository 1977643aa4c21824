"""Whether our pass reads a model as transformers does.

The compact decoder hard-codes one layout. What a configuration asks for beyond it would not fail:
it would give other logits, and fluent text that is not the model's. So while the transformers model
is in memory, both run the same few tokens, and a model that they read differently is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.settings import (
    SUPPORTED_MODELS,
    context_limit,
    decoder_shape,
)
from draftgym.decoding.model.compact.transformer import Decoder, LayerWeights
from draftgym.decoding.model.compact.weights import final_norm, layer_weights, rotary_tables
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.text import one_line

ROWS = 16
"""Tokens that both run."""

SMALL_WINDOW = 5
"""What sliding windows are set to for the check, so that these few tokens reach beyond."""

TOLERANCE = 2e-4
"""Largest distance of two rows of logits, as a share of their length.

Both run in float32, whatever dtype the model is loaded in: in bfloat16 two right passes of a random
model of 24 layers differ by up to 0.25, no less than SiLU and GELU do. In float32 right passes of
random models of 6 and of 24 layers (Llama, Mistral, Qwen2, Qwen3) differed by at most 1.6e-6 and
1.2e-5, those of SmolLM2-135M (30 trained layers) by 6.8e-6. The mildest misreadings tried (one form
of GELU for the other, a norm's epsilon of 1e-5 for 1e-6) differ by 3.4e-4 to 3.4e-3, others
(another activation, rotary angles a tenth off) by 0.02 to 1.5.
"""


@torch.no_grad()
def check_agrees(model: Any, who: str) -> None:
    """Compares our logits with transformers' own on a few fixed tokens.

    The layers are widened to float32 one at a time, so a large model needs little more memory.

    Args:
        model: The transformers model, as loaded.
        who: What messages call it, as in `target 'mine'`.

    Raises:
        DraftgymError: They differ by more than rounding, or transformers cannot run the model.
    """
    vocab = min(model.lm_head.weight.shape[0], model.model.embed_tokens.weight.shape[0])
    limit = context_limit(model.config)
    count = min(ROWS, limit)
    tokens = (torch.arange(count) * 7919 + 13) % vocab
    spread = (torch.linspace(0, 1, count).double() ** 2 * (limit - 1)).round().long()
    # transformers counts a window in rows, not in positions: where these jump, it must not bind.
    distance = _distance_on(model, tokens, spread, count, who)
    if getattr(model.config, "sliding_window", None):
        last = torch.arange(limit - count, limit)
        distance = max(distance, _distance_on(model, tokens, last, SMALL_WINDOW, who))
    if not distance <= TOLERANCE:  # NaN, too
        raise _refusal(
            who,
            f"draftgym's pass over its weights gives other logits than transformers' (they differ "
            f"by {distance:.1e} of their size, more than rounding does)",
        )


def _distance_on(model: Any, tokens: Tensor, positions: Tensor, window: int, who: str) -> float:
    """How far both are apart on tokens at these positions, with windows of this size."""
    with _windows_of(model.config, window):
        try:
            theirs = _their_logits(model, tokens, positions)
        except Exception as error:  # they raise nearly anything on an impossible configuration
            raise _refusal(who, f"transformers itself cannot run it ({one_line(error)})") from error
        return _distance(_our_logits(model, tokens, positions, window < len(tokens)), theirs)


@contextmanager
def _windows_of(config: Any, size: int) -> Iterator[None]:
    """Sets the sliding window of a model that has one."""
    own = getattr(config, "sliding_window", None)
    if own:
        config.sliding_window = size
    try:
        yield
    finally:
        if own:
            config.sliding_window = own


def _refusal(who: str, why: str) -> DraftgymError:
    return DraftgymError(
        f"{who} cannot be trusted to speak: {why}",
        "its config.json asks for something that only transformers computes, or does not belong to "
        f"its weights; name an ordinary model of one of these kinds: {', '.join(SUPPORTED_MODELS)}",
    )


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """The row that differs most, as a share of its length; a constant added to a row is nothing."""
    centred = theirs - theirs.mean(-1, keepdim=True)
    difference = ours - ours.mean(-1, keepdim=True) - centred
    # A model of zeros gives rows without length, which are equal where nothing differs.
    length = centred.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float((difference.norm(dim=-1) / length).max())


def _their_logits(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """Float32 `[n, vocab]` of transformers' own pass."""
    body = model.model
    parts = [body.embed_tokens, *body.layers, body.norm, model.lm_head]
    hooks = []
    for part in parts:
        widening = _Widening(part)
        hooks += [
            part.register_forward_pre_hook(widening.begin),
            part.register_forward_hook(widening.end, always_call=True),
        ]
    try:
        # The mask is given, as positions that jump would be taken for several texts.
        seen = torch.ones(1, len(tokens), dtype=torch.long)
        output = model(
            tokens[None], position_ids=positions[None], attention_mask=seen, use_cache=False
        )
    finally:
        for hook in hooks:
            hook.remove()
    logits: Tensor = output.logits[0].float()
    return logits


class _Widening:
    """Holds a module's parameters in float32 while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[nn.Parameter, Tensor]] = []

    def begin(self, *_: Any) -> None:
        """Widens them."""
        self.kept = [(parameter, parameter.data) for parameter in self.module.parameters()]
        for parameter, data in self.kept:
            parameter.data = data.float()

    def end(self, *_: Any) -> None:
        """Puts them back."""
        for parameter, data in self.kept:
            parameter.data = data
        self.kept = []


def _our_logits(model: Any, tokens: Tensor, positions: Tensor, has_windows: bool) -> Tensor:
    """Float32 `[n, vocab]` of the compact pass."""
    shape = decoder_shape(model)
    decoder = Decoder(
        shape if has_windows else replace(shape, windows=()),
        _Widened(model),
        model.model.embed_tokens.weight.float(),
        final_norm(model, torch.float32),
        model.lm_head.weight.float(),
        rotary_tables(model, torch.float32),
    )
    rows = NewRows(decoder.new_cache(len(tokens)), tokens, positions)
    return decoder.forward([rows])[0].logits


class _Widened(Sequence[LayerWeights]):
    """The layers as the compact decoder reads them, each made in float32 when its turn comes."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return len(self.model.model.layers)

    def __getitem__(self, index: Any) -> Any:
        return layer_weights(self.model, index, torch.float32)
