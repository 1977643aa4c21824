"""A long prompt runs part by part: nothing in its pass grows with more than its length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.compact import cache as caches
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.positions import batched
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from tests.tiny import tiny_drafters, tiny_target

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


def test_a_tree_beside_a_long_prompt_stays_a_tree(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    siblings = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)

    def passed(*with_prompt: Tensor) -> PassOutput:
        cache = target.decoder.new_cache(30)
        target.decoder.forward([NewRows(cache, TOKENS[:9])])
        cache.keep(9)
        tree = NewRows(cache, TOKENS[9:12], torch.tensor([9, 10, 10]), siblings)
        prompts = [NewRows(target.decoder.new_cache(len(one)), one) for one in with_prompt]
        return target.decoder.forward([tree, *prompts], [1])[0]

    alone = passed()
    monkeypatch.setattr(caches, "ROWS_TOGETHER", 64)
    torch.testing.assert_close(passed(TOKENS).logits, alone.logits, rtol=1e-4, atol=1e-4)


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


def test_taps_of_a_long_prompt_are_written_where_they_stay(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second copy of them: they are most of what a prompt leaves beside keys and values."""

    def prefilled() -> tuple[Session, list[PassOutput]]:
        session, seen = Session(target, TOKENS, GreedyRule(), 4, drafters), []
        with monkeypatch.context() as patch:
            forward = target.compact.forward
            patch.setattr(
                target.decoder, "forward", lambda *a: seen.append(forward(*a)) or seen[-1]
            )
            session.prefill()
        return session, seen[-1]

    whole, _ = prefilled()
    monkeypatch.setattr(caches, "ROWS_TOGETHER", 64)
    parts, (output,) = prefilled()
    assert output.taps.data_ptr() == parts._taps.data_ptr()
    torch.testing.assert_close(parts._taps[:150], whole._taps[:150], rtol=1e-4, atol=1e-4)
    assert parts.new_tokens == whole.new_tokens


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["eagle3", "small"])
def test_drafters_catch_up_on_a_long_text_in_parts(
    target: Target, monkeypatch: pytest.MonkeyPatch, name: str, full: bool
) -> None:
    """No mask of all rows by all rows, also where the whole drafter runs."""
    drafter = SmallLMDrafter(target.compact) if name == "small" else tiny_drafters(target)[name]
    session = Session(target, TOKENS, GreedyRule(), 4, {name: drafter})
    session.prefill()
    monkeypatch.setattr(batched, "ROWS_TOGETHER", 32)
    seen: list[int] = []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        seen.append(q.shape[-2])
        return attend(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    state = drafter.new_state(session.capacity)
    assert drafter.catch_up(state, session, full) >= len(TOKENS) - 1
    assert max(seen, default=0) <= 32
    assert bool(seen) == (full or name == "small")
