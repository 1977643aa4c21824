"""A pass of fixed shape, as a CUDA graph holds it, gives what the ordinary pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.system.accelerator.fixed import FixedPass
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.verify.proposal import Proposal
from tests.tiny import tiny_target

CAPACITY, TAPS = 64, (1, 4)
TREE = Proposal(torch.tensor([7, 9, 4, 5]), torch.tensor([-1, -1, 0, 2]), torch.zeros(4))
"""Two children of the anchor, and two more below the first."""


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return tiny_target(request.param).compact


def random_tokens(count: int, seed: int) -> Tensor:
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(seed))


def prefilled(decoder: Decoder, length: int) -> KVCache:
    """A cache of so many positions; what is not written yet is no number."""
    cache = decoder.new_cache(CAPACITY)
    for store in (cache.keys, cache.values):
        store.fill_(torch.nan)
    decoder.forward([NewRows(cache, random_tokens(length, 0))])
    cache.keep(length)
    return cache


def assert_same(one: PassOutput, other: PassOutput) -> None:
    for name in ("logits", "hidden", "taps"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_chains_behind_any_length(decoder: Decoder, rows: int) -> None:
    """One pass, used again and again while the text grows up to the last position."""
    ordinary, fixed = prefilled(decoder, 5), prefilled(decoder, 5)
    run = FixedPass(decoder, fixed, rows, TAPS)
    while ordinary.length + rows <= CAPACITY:
        tokens = random_tokens(rows, ordinary.length)
        (wanted,) = decoder.forward([NewRows(ordinary, tokens)], TAPS)
        assert_same(run(tokens), wanted)
        ordinary.keep(rows)
        fixed.keep(rows)
    length = ordinary.length
    torch.testing.assert_close(fixed.keys[:, :, :length], ordinary.keys[:, :, :length])
    torch.testing.assert_close(fixed.values[:, :, :length], ordinary.values[:, :, :length])
    with pytest.raises(DraftgymError, match="do not fit"):
        run(tokens)


def test_trees_and_chains_in_turn(decoder: Decoder) -> None:
    """What a row sees is of this pass: a tree leaves nothing behind for the chain after it."""
    ordinary, fixed = prefilled(decoder, 9), prefilled(decoder, 9)
    run = FixedPass(decoder, fixed, 5, TAPS)
    tokens = torch.cat([torch.tensor([3]), TREE.tokens])
    depths, visible = torch.cat([torch.tensor([0]), TREE.depths()]), TREE.ancestor_mask()
    for _ in range(2):
        tree = NewRows(ordinary, tokens, ordinary.length + depths, visible)
        assert_same(run(tokens, depths, visible), decoder.forward([tree], TAPS)[0])
        chain = random_tokens(5, 1)
        assert_same(run(chain), decoder.forward([NewRows(ordinary, chain)], TAPS)[0])
        for cache in (ordinary, fixed):
            cache.keep(2)


def test_only_cuda_devices_have_graphs(decoder: Decoder) -> None:
    run = FixedPass(decoder, prefilled(decoder, 3), 2)
    if decoder.device.type != "cuda":
        with pytest.raises(DraftgymError, match="CUDA graph"):
            run.capture()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_pass_is_the_same_pass() -> None:
    from dataclasses import replace

    from draftgym.decoding.model.target import wrap_model
    from tests.tiny import ONE_THREAD, tiny_model

    there = replace(ONE_THREAD, device="cuda:0")
    decoder = wrap_model(tiny_model(), None, "tiny", there).compact
    cache = decoder.new_cache(CAPACITY)
    decoder.forward([NewRows(cache, random_tokens(5, 0).cuda())])
    cache.keep(5)
    run = FixedPass(decoder, cache, 4, TAPS)
    for seed in range(3):
        tokens = random_tokens(4, seed).cuda()
        (wanted,) = decoder.forward([NewRows(cache, tokens)], TAPS)
        assert_same(run(tokens), wanted)
        if seed == 0:
            run.capture()
        cache.keep(1)
