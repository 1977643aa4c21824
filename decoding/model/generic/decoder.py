"""The generic decoder: transformers runs the pass, and we keep what verification accepts.

Sequences of a batch run one after the other. Their rows differ in number, and no padding is exact
for every architecture; one pass for each is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from draftgym.decoding.model.generic.anatomy import Anatomy, generic_shape
from draftgym.decoding.model.generic.cache import GenericCache
from draftgym.decoding.model.generic.positions import image_positions
from draftgym.decoding.model.interface import NewRows, PassOutput


class GenericDecoder:
    """A causal LM of transformers as a `TargetDecoder`.

    Args:
        parts: The model, dissected.
    """

    def __init__(self, parts: Anatomy) -> None:
        self.parts = parts
        self.shape = generic_shape(parts)
        self.draws_trees = False

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states and taps."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.embedding.device

    @property
    def embedding(self) -> Tensor:
        """Input embedding `[rows, d]`."""
        return self.parts.embedding

    @property
    def head(self) -> Tensor:
        """Language-model head `[vocab, d]`."""
        return self.parts.head_weight

    def new_cache(self, capacity: int) -> GenericCache:
        """An empty cache for one sequence."""
        return GenericCache(self.shape.layers, capacity)

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits of final hidden states, through the model's own tail behind the head."""
        with torch.set_grad_enabled(hidden.requires_grad):
            logits = self._tail(hidden)
        return logits if rows is None else logits[..., rows]

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[NewRows], tap_layers: Sequence[int] = (), with_logits: bool = True
    ) -> list[PassOutput]:
        """One pass for each sequence; see `TargetDecoder.forward`."""
        return [self._pass(rows, tap_layers, with_logits) for rows in batch]

    def _pass(self, rows: NewRows, tap_layers: Sequence[int], with_logits: bool) -> PassOutput:
        count = len(rows.tokens)
        tokens = rows.cache.begin(rows.tokens)
        wanted = count - rows.logits_from
        with ExitStack() as stack:
            taps = [stack.enter_context(_watching(self.parts.layers[i])) for i in tap_layers]
            before_head = stack.enter_context(_watching(self.parts.head, its_input=True))
            out = self._call(rows, tokens, wanted)
        logits, hidden = out.logits[0, -wanted:].float(), before_head[0][0, -wanted:]
        if not with_logits:
            logits = logits[:0]
        tapped = hidden.new_empty(count, 0, self.shape.hidden)
        if tap_layers:
            tapped = torch.stack([tap[0][0, -count:] for tap in taps], dim=1)
        return PassOutput(logits, hidden, tapped)

    def _call(self, rows: NewRows, tokens: Tensor, wanted: int) -> Any:
        """The model's own pass over `tokens`, whose last ones are the new rows."""
        given: dict[str, Any] = {
            "input_ids": tokens[None],
            self.parts.cache_name: rows.cache.store,
            "use_cache": True,
        }
        if "position_ids" in self.parts.arguments:
            given["position_ids"] = self._positions(rows, tokens)
        if "logits_to_keep" in self.parts.arguments:
            given["logits_to_keep"] = wanted
        if rows.inputs is not None:
            given |= self.parts.accepted(rows.inputs)
        return self.parts.model(**given)

    def _positions(self, rows: NewRows, tokens: Tensor) -> Tensor:
        """Positions `[1, n]` of what runs; `[3, 1, n]` where a model gives images places in grids.

        The cache remembers how much further the text behind images stands.
        """
        if rows.inputs is not None:
            positions, rows.cache.offset = image_positions(self.parts.model, tokens, rows.inputs)
            return positions
        if rows.positions is not None:
            moved: Tensor = rows.positions[None] + rows.cache.offset
            return moved
        stop = rows.cache.length + len(rows.tokens) + rows.cache.offset
        return torch.arange(stop - len(tokens), stop, device=tokens.device)[None]

    def _tail(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states behind its body: head, scales, soft-caps."""
        body = self.parts.body
        output = _BodyOutput(hidden[None])
        replaced = self.parts.head.register_forward_pre_hook(lambda *_: (hidden[None],))
        body.forward = lambda *args, **kwargs: output
        try:
            tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: Tensor = self.parts.model(input_ids=tokens, use_cache=False).logits
        finally:
            del body.forward  # the method of its class is in place again
            replaced.remove()
        return logits[0].float()


class _BodyOutput:
    """Final hidden states as a model's body gives them, and nothing of what else it may give."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _watching(module: nn.Module, its_input: bool = False) -> Iterator[list[Tensor]]:
    """Notes a module's outputs (of several, the first), or its inputs, while it runs."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        value = args[0] if its_input else output
        seen.append(value[0] if isinstance(value, tuple) else value)

    handle = (
        module.register_forward_pre_hook(note) if its_input else module.register_forward_hook(note)
    )
    try:
        yield seen
    finally:
        handle.remove()
