"""The generic decoder: transformers runs the pass, and we keep what verification accepts.

Sequences of a batch run one after the other. Their rows differ in number, and no padding is exact
for every architecture; one pass for each is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from draftgym.decoding.model.generic.anatomy import Anatomy, generic_shape
from draftgym.decoding.model.generic.cache import GenericCache, Shown, new_cache
from draftgym.decoding.model.generic.masks import tree_masks
from draftgym.decoding.model.generic.positions import image_positions
from draftgym.decoding.model.generic.shared import check_alike, is_part, is_shared
from draftgym.decoding.model.generic.spread import computes_on, weight_on
from draftgym.decoding.model.interface import NewRows, PassOutput

ROWS_TOGETHER = 1024
"""Rows of a long prompt that run at once: attention over all of them may hold their square."""


class GenericDecoder:
    """A causal LM of transformers as a `TargetDecoder`.

    Args:
        parts: The model, dissected.

    Attributes:
        one_by_one: Whether the model must go on from its cache token by token: several recurrent
            ones start from nothing where they get more, so that drafts save them no time.
        shared: Whether several processes run it together.
    """

    def __init__(self, parts: Anatomy) -> None:
        self.parts = parts
        self.shape = generic_shape(parts)
        self.draws_trees = False  # until it is tried
        self.one_by_one = False
        self.shared = is_shared(parts.model)
        self._copies: dict[nn.Module, Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states and taps."""
        weight: Any = self.parts.table.weight
        return weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the model lies; of one on several devices, where its embedding computes."""
        return computes_on(self.parts.table)

    @property
    def embedding(self) -> Tensor:
        """Input embedding `[rows, d]`."""
        return self._on_device(self.parts.table)

    @property
    def head(self) -> Tensor:
        """Language-model head `[vocab, d]`."""
        return self._on_device(self.parts.head)

    def _on_device(self, module: nn.Module) -> Tensor:
        """A weight for drafters; where it is kept elsewhere, a copy is made for the first."""
        weight: Any = module.weight
        if weight.device == self.device and not is_part(weight):
            return weight.detach()  # type: ignore[no-any-return]
        if module not in self._copies:
            self._copies[module] = weight_on(module, self.device)
        return self._copies[module]

    def new_cache(self, capacity: int) -> GenericCache:
        """An empty cache for one sequence."""
        return new_cache(self.parts.config, self.shape.layers, capacity)

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
        if self.shared:
            check_alike(batch, self.device)
        return [self._pass(rows, tap_layers, with_logits) for rows in batch]

    def _pass(self, rows: NewRows, tap_layers: Sequence[int], with_logits: bool) -> PassOutput:
        cache, count = rows.cache, len(rows.tokens)
        if rows.inputs is not None:
            cache.shown = Shown(rows.inputs, count)
        while (owed := cache.owed()) is not None:
            for part in self._portions(cache, owed):
                self._call(cache, part, {}, 1)
            cache.settle()
        tokens = cache.begin(rows.tokens)
        wanted = count - rows.logits_from
        masks = self._masks(rows)
        with ExitStack() as stack:
            taps = [stack.enter_context(_watching(self.parts.layers[i])) for i in tap_layers]
            before_head = stack.enter_context(_watching(self.parts.head, its_input=True))
            # Masks and positions are given for all rows at once.
            parts = [tokens] if masks else self._portions(cache, tokens)
            behind = len(tokens)
            logits = []
            for part in parts:
                behind -= len(part)
                needed = min(len(part), max(1, wanted - behind))
                logits.append(self._call(cache, part, masks, needed).logits[0])
        hidden = _last(before_head, wanted).to(self.device)
        tapped = hidden.new_empty(count, 0, self.shape.hidden)
        if tap_layers:
            tapped = torch.stack([_last(tap, count).to(self.device) for tap in taps], dim=1)
        scores = torch.cat(logits)[-wanted:] if with_logits else logits[0][:0]
        scores = scores.to(self.device).float()
        return PassOutput(scores, hidden, tapped)

    def _portions(self, cache: GenericCache, tokens: Tensor) -> list[Tensor]:
        """The tokens of each call of the model; a prompt with images runs at once."""
        if cache.shown is not None and not cache.filled:
            count = cache.shown.tokens
            behind = tokens[count:].split(1 if self.one_by_one else ROWS_TOGETHER)
            return [tokens[:count], *(part for part in behind if len(part))]
        if self.one_by_one:
            return list(tokens.split(1)) if cache.filled else [tokens]
        return list(tokens.split(ROWS_TOGETHER))

    def _call(self, cache: GenericCache, tokens: Tensor, masks: dict[str, Any], wanted: int) -> Any:
        """The model's own pass over tokens `[n]`, with the logits of the last ones at least."""
        given: dict[str, Any] = {
            "input_ids": tokens[None],
            self.parts.cache_name: cache.store,
            "use_cache": True,
            **masks,
        }
        if cache.shown is not None and not cache.filled:
            inputs = cache.shown.inputs
            given |= self.parts.accepted(inputs)
            given["position_ids"], cache.offset = image_positions(self.parts.model, tokens, inputs)
        elif "position_ids" in self.parts.arguments and "position_ids" not in given:
            start = cache.filled + cache.offset
            positions = torch.arange(start, start + len(tokens), device=tokens.device)
            given["position_ids"] = positions[None]
        cache.filled += len(tokens)
        if "logits_to_keep" in self.parts.arguments:
            given["logits_to_keep"] = wanted
        return self.parts.model(**given)

    def _masks(self, rows: NewRows) -> dict[str, Any]:
        """What a tree's pass is given beyond its tokens; nothing for a chain's."""
        if rows.visible is None or rows.positions is None:
            return {} if rows.positions is None else {"position_ids": self._stand(rows)}
        cached, config = rows.cache.length, self.parts.config
        mask = tree_masks(config, rows.visible, rows.positions, cached, self.dtype)
        return {"attention_mask": mask, "position_ids": self._stand(rows)}

    def _stand(self, rows: NewRows) -> Tensor:
        """Where given rows stand: further than they say behind images that stand in grids."""
        assert rows.positions is not None
        positions: Tensor = rows.positions[None] + rows.cache.offset
        return positions

    def _tail(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states behind its body: head, scales, soft-caps.

        Each architecture has these last steps in its own `forward`, so that runs, over a body that
        gives the states at once. A hook cannot keep a body from running, which would cost a pass.
        """
        hidden = hidden.to(computes_on(self.parts.head))
        output = _BodyOutput(hidden[None])
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        given = self.parts.head.register_forward_pre_hook(lambda *_: (hidden[None],))
        with given, patch.object(self.parts.body, "forward", lambda *_, **__: output):
            logits: Tensor = self.parts.model(input_ids=tokens, use_cache=False).logits
        return logits[0].to(self.device).float()


class _BodyOutput:
    """Final hidden states as a model's body gives them, and nothing of what else it may give."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


def _last(seen: Sequence[Tensor], count: int) -> Tensor:
    """The last `count` rows of what was seen of one sequence, in one pass or in several."""
    return torch.cat([rows[0] for rows in seen])[-count:]


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
    with handle:
        yield seen
