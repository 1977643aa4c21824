"""A long prompt attends part by part: nothing in its pass is as large as the square of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact import layers
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.target import Target

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
    monkeypatch.setattr(layers, "ROWS_TOGETHER", together)
    for ours, theirs in zip(run(target, sizes), expected, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.taps, theirs.taps, rtol=1e-4, atol=1e-4)


def test_no_mask_is_as_large_as_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, heads, groups, dim = 4000, 6, 2, 4
    seen: list[int] = []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, **more: Any) -> Tensor:
        seen.append(0 if attn_mask is None else attn_mask.numel())
        return attend(q, k, v, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = torch.randn(rows, heads, dim), *torch.randn(2, groups, rows + 9, dim)
    mask = layers.causal_mask(rows, 9, torch.float32, torch.device("cpu"))
    out = layers.attend(q, k, v, mask)
    share = heads // groups
    assert max(seen) <= layers.ROWS_TOGETHER * share * (rows + 9) < share * rows**2 / 3
    for row in (0, 1023, 1024, 3999):
        alone = layers.attend(q[row : row + 1], k[:, : row + 10], v[:, : row + 10], None)
        torch.testing.assert_close(out[row : row + 1], alone, rtol=1e-4, atol=1e-5)
