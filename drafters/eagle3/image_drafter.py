"""An EAGLE-3 head that compresses the images of its prompt, or does not look at them.

Its cache has fewer rows than the text has positions: those of images are gone. Angles and the
rule's noise go by positions, as ever.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import DraftContext
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import ROWS_TOGETHER, KVCache
from draftgym.decoding.model.compact.compiled.graph import Graph
from draftgym.decoding.model.compact.layers import all_before
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.images import image_rows, see
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.positions.paths import Paths


class ImageCache(KVCache):
    """Keys and values of a text's rows.

    Attributes:
        removed: Positions of the prompt that have no row.
        behind: What is added to the features of the text behind the prompt `[d]`, or None.
    """

    removed: int = 0
    behind: Tensor | None = None


class ImageEagle3Drafter(Eagle3Drafter):
    """Drafts as `Eagle3Drafter`, behind a prompt that it has read once, as `images.see` says.

    Args:
        network: The trained head, whose config has `image_queries`.
        embedding: The target's input embedding `[V, d]`.
        image_tokens: Ids of the tokens that stand for pieces of images.
        needs_target: Fingerprint of the target it was trained for, or None.
    """

    def __init__(
        self,
        network: Eagle3Network,
        embedding: Tensor,
        image_tokens: Collection[int],
        needs_target: str | None = None,
    ) -> None:
        super().__init__(network, embedding, needs_target)
        self.image_tokens = torch.tensor(sorted(image_tokens), dtype=torch.long)

    def new_cache(self, rows: int, step: int | None = None) -> ImageCache:
        """An empty cache for so many rows."""
        config = self.network.config
        sizes = (self.layers, config.num_key_value_heads, rows, config.head_dim)
        return ImageCache(*sizes, self.dtype, self.device, step)

    def take_over(self, state: KVCache, length: int, capacity: int) -> KVCache:
        """An empty state: what was the end of a prompt may be the middle of the next one."""
        return self.new_state(capacity)

    @torch.inference_mode()
    def catch_up(self, state: KVCache, context: DraftContext, full: bool = False) -> int:
        """The rows of the prompt, all of which must be there, then those behind it."""
        assert isinstance(state, ImageCache)
        read, stop = context.prompt_length - 1, len(context.tokens) - self.lag
        if stop < read:
            state.roll_back(0)
            return 0
        begun = state.length + state.removed if state.length else 0
        if not begun:
            self._read_prompt(state, context, read, full)
        start = state.length + state.removed
        if stop < start:
            state.roll_back(stop - state.removed)
            return 0
        for first in range(start, stop, ROWS_TOGETHER):
            behind = min(stop, first + ROWS_TOGETHER)
            self.encode(state, context, first, behind, full)
            state.keep(behind - first)
        return stop - begun

    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Writes rows of positions behind the prompt; see `BatchDrafter.encode`."""
        features = self._features(cache, context.features(self.tap_layers, start, stop))
        positions = torch.arange(start, stop, device=self.device)
        self._write(cache, context, features, positions, full)

    def own_rows(self, cache: KVCache, lengths: Tensor, rows: int) -> Paths | None:
        """As `BatchDrafter.own_rows`, counted in rows."""
        assert isinstance(cache, ImageCache)
        return super().own_rows(cache, lengths - cache.removed, rows)

    def first_step(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, visible: Tensor | Paths | None
    ) -> tuple[Tensor, Tensor]:
        """Runs the position before each anchor, on its true feature."""
        tokens, taps, positions = self._before(context, lengths)
        embedded = F.embedding(tokens, self.embedding)
        features = self._features(cache, taps)
        return self._torch_run(cache, embedded, features, self.rotary.at(positions), visible)

    def step_graph(self) -> tuple[Graph, list[Any]]:
        """There is none.

        Raises:
            DraftgymError: Always.
        """
        raise DraftgymError("it reads images", "draft with torch")

    def _read_prompt(self, cache: ImageCache, context: DraftContext, read: int, full: bool) -> None:
        """Writes the rows of the first `read` positions."""
        tokens = context.tokens[: context.prompt_length]
        is_image = image_rows(tokens, len(tokens), self.image_tokens)[:read]
        fused = self.network.fuse(context.features(self.tap_layers, 0, read))
        seen = see(self.network.images, fused, is_image)
        positions = seen.kept.nonzero()[:, 0]
        cache.removed, cache.behind = read - len(positions), seen.behind
        for rows in positions.split(ROWS_TOGETHER):
            self._write(cache, context, seen.features[rows], rows, full)
            cache.keep(len(rows))

    def _features(self, cache: KVCache, taps: Tensor) -> Tensor:
        """Features of text behind the prompt."""
        assert isinstance(cache, ImageCache)
        fused: Tensor = self.network.fuse(taps)
        return fused if cache.behind is None else fused + cache.behind

    def _write(
        self, cache: KVCache, context: DraftContext, features: Tensor, positions: Tensor, full: bool
    ) -> None:
        """Writes rows behind the cache; `full` also runs what is thrown away."""
        layer, cos_sin = self.network.midlayer, self.rotary.at(positions)
        embedded = F.embedding(context.tokens[positions + 1], self.embedding)
        if full:
            visible = all_before(len(features), self.device) if len(features) > 1 else None
            self._torch_run(cache, embedded, features, cos_sin, visible)
        else:
            pair = layer.pair(embedded, features)
            cache.write(0, *layer.self_attn.keys_values(pair, cos_sin))


def eagle3_drafter(
    network: Eagle3Network,
    embedding: Tensor,
    image_tokens: Collection[int],
    needs_target: str | None = None,
) -> Eagle3Drafter:
    """The drafter that a head is: one with an eye for images where its config says so."""
    if network.config.image_queries is None:
        return Eagle3Drafter(network, embedding, needs_target)
    return ImageEagle3Drafter(network, embedding, image_tokens, needs_target)
