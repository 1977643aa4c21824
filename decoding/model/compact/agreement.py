"""Whether our pass reads a model as transformers does.

The compact decoder hard-codes one layout. What a configuration asks for beyond it would not fail:
it would give other logits, and fluent text that is not the model's. So while the transformers model
is in memory, both run the same few tokens, and a model that they read differently is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.rows import LayerWeights
from draftgym.decoding.model.compact.settings import (
    SUPPORTED_MODELS,
    context_limit,
    decoder_shape,
)
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.compact.weights import (
    embedding_scale,
    final_norm,
    layer_weights,
    rotary_tables,
)
from draftgym.decoding.model.comparison import TOLERANCE, distance, widened
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.prompts.text import one_line

ROWS = 16
"""Tokens that both run."""

SMALL_WINDOW = 5
"""What sliding windows are set to for the check, so that these few tokens reach beyond."""


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
    device = model.model.embed_tokens.weight.device
    tokens = ((torch.arange(count) * 7919 + 13) % vocab).to(device)
    spread = (torch.linspace(0, 1, count).double() ** 2 * (limit - 1)).round().long().to(device)
    # transformers counts a window in rows, not in positions: where these jump, it must not bind.
    _compare(model, tokens, spread, count, who)
    if getattr(model.config, "sliding_window", None):
        last = torch.arange(limit - count, limit, device=device)
        _compare(model, tokens, last, SMALL_WINDOW, who)


def _compare(model: Any, tokens: Tensor, positions: Tensor, window: int, who: str) -> None:
    """Compares both on tokens at these positions, with windows of this size."""
    with _windows_of(model.config, window):
        try:
            theirs = _their_pass(model, tokens, positions)
        except Exception as error:  # they raise nearly anything on an impossible configuration
            raise _refusal(who, f"transformers itself cannot run it ({one_line(error)})") from error
        ours = _our_pass(model, tokens, positions, window < len(tokens))
    if distance(ours[-1], theirs[-1]) <= TOLERANCE:  # not of NaN
        return
    apart = [distance(*rows) for rows in zip(ours, theirs, strict=True)]
    first = next(index for index, share in enumerate(apart) if not share <= TOLERANCE)
    where = f"from layer {first} on" if first < len(apart) - 1 else "behind the last layer"
    raise _refusal(
        who,
        f"draftgym's pass over its weights gives other numbers than transformers' {where} (they "
        f"differ by {apart[first]:.1e} of their size, more than rounding does)",
    )


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


def _their_pass(model: Any, tokens: Tensor, positions: Tensor) -> list[Tensor]:
    """Float32 rows of transformers' own pass: the residual stream after each layer, and logits."""
    body = model.model
    after: list[Tensor] = []
    hooks = [layer.register_forward_hook(_noting(after)) for layer in body.layers]
    try:
        with widened([body.embed_tokens, *body.layers, body.norm, model.lm_head]):
            # The mask is given, as positions that jump would be taken for several texts.
            seen = torch.ones(1, len(tokens), dtype=torch.long, device=tokens.device)
            output = model(
                tokens[None], position_ids=positions[None], attention_mask=seen, use_cache=False
            )
    finally:
        for hook in hooks:
            hook.remove()
    return [*after, output.logits[0].float()]


def _noting(seen: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps what a layer gives for the one text of a pass."""

    def note(_: nn.Module, args: Any, output: Any) -> None:
        rows = output[0] if isinstance(output, tuple) else output
        seen.append(rows[0].float())

    return note


def _our_pass(model: Any, tokens: Tensor, positions: Tensor, has_windows: bool) -> list[Tensor]:
    """The same of the compact pass."""
    shape = decoder_shape(model)
    decoder = Decoder(
        shape if has_windows else replace(shape, windows=()),
        _Widened(model),
        model.model.embed_tokens.weight.float(),
        final_norm(model, torch.float32),
        model.lm_head.weight.float(),
        rotary_tables(model, torch.float32),
        embedding_scale=embedding_scale(model, torch.float32),
    )
    rows = NewRows(decoder.new_cache(len(tokens)), tokens, positions)
    out = decoder.forward([rows], range(shape.layers))[0]
    return [*out.taps.unbind(1), out.logits]


class _Widened(Sequence[LayerWeights]):
    """The layers as the compact decoder reads them, each made in float32 when its turn comes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._latest: tuple[int, LayerWeights] | None = None

    def __len__(self) -> int:
        return len(self.model.model.layers)

    def __getitem__(self, index: Any) -> Any:
        if self._latest is None or self._latest[0] != index:  # a layer is asked for twice in a row
            self._latest = None  # before the next is made
            self._latest = index, layer_weights(self.model, index, torch.float32)
        return self._latest[1]
