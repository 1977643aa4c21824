"""A long prompt runs part by part: nothing in its pass grows with more than its length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact import cache as caches
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.target import Target
from tests.tiny import tiny_target

TOKENS = torch.randint(4, 60, (150,), generator=torch.Generator().manual_seed(0))


def run(target: Target, sizes: list[int]) -> list[PassOutput]:
    """The text in passes of these sizes."""
    cache, outputs = target.decoder.new_cache(len(TOKENS)), []
    for part in TOKENS.split(sizes):
        outputs += target.decoder.forward([NewRows(cache, part)], [1, 4])
        cache.keep(len(part))
    return outputs


@pytest.mark.parametrize("sizes", [[150], [17, 133], [100, 1, 49]])
@pytest.mark.parametrize("together", [1, 7, 64])
def test_parts_attend_to_what_the_whole_pass_attends_to(
    target: Target, monkeypatch: pytest.MonkeyPatch, sizes: list[int], together: int
) -> None:
    expected = run(target, sizes)
    monkeypatch.setattr(caches, "ROWS_TOGETHER", together)
    for ours, theirs in zip(run(target, sizes), expected, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.taps, theirs.taps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 40])
def test_masks_hold_few_rows_and_only_the_keys_that_are_seen(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    together, rows = 64, 1000
    monkeypatch.setattr(caches, "ROWS_TOGETHER", together)
    target = tiny_target("mistral", sliding_window=window, max_position_embeddings=rows)
    seen: list[tuple[int, ...]] = []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, **more: Any) -> Tensor:
        seen.append((q.shape[-2], k.shape[-2], 0 if attn_mask is None else attn_mask.numel()))
        return attend(q, k, v, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    tokens = torch.arange(rows) % 60
    target.decoder.forward([NewRows(target.decoder.new_cache(rows), tokens, logits_from=rows - 1)])
    queries, keys, numbers = map(max, zip(*seen, strict=True))
    assert queries == together
    assert keys == (rows if window is None else together + window - 1)
    assert numbers <= together * keys  # one mask for all heads
