"""Sequences whose caches lie in one store attend together, and get what each gets alone."""

from __future__ import annotations

import pytest
import torch

from draftgym.decoding.model.compact.side_by_side import TOGETHER, PlaceCache, Stores
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows
from tests.tiny import tiny_target

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def stores_of(decoder: Decoder) -> Stores:
    return Stores(decoder.shape, decoder.dtype, decoder.device)


def write(decoder: Decoder, caches: list[PlaceCache], steps: int, seed: int) -> list[torch.Tensor]:
    """Prompts of several lengths, then single rows; each row's logits, as in caches of its own."""
    made = torch.Generator().manual_seed(seed)
    alone = [decoder.new_cache(cache.capacity) for cache in caches]
    compared = []
    for step in range(steps):
        new = [
            torch.randint(61, (1 if step else 3 + 2 * at % 7,), generator=made)
            for at in range(len(caches))
        ]
        together = decoder.forward(
            [NewRows(cache, tokens) for cache, tokens in zip(caches, new, strict=True)], (0, 2)
        )
        for cache, own, tokens, output in zip(caches, alone, new, together, strict=True):
            expected = decoder.forward([NewRows(own, tokens)], (0, 2))[0]
            torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
            torch.testing.assert_close(output.taps, expected.taps, **CLOSE)
            cache.keep(len(tokens))
            own.keep(len(tokens))
            compared.append(output.logits)
    return compared


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2"])
def test_rows_of_a_store_see_their_own_place(kind: str) -> None:
    decoder = tiny_target(kind).compact
    stores = stores_of(decoder)
    caches = [stores.open(30) for _ in range(5)]
    write(decoder, caches, 6, seed=0)
    first = caches[0].store
    first.close(caches[1])  # what is left behind in a place is seen by nobody
    first.close(caches[3])
    again = [stores.open(25), stores.open(31)]
    assert {cache.place for cache in again} == {1, 3} and again[0].length == 0
    write(decoder, again, 4, seed=1)


def test_a_store_grows_with_what_it_holds() -> None:
    decoder = tiny_target().compact
    stores = stores_of(decoder)
    caches = [stores.open(25)]
    before = write(decoder, caches, 3, seed=0)
    keys = caches[0].keys[:, :, : caches[0].length].clone()
    caches.append(stores.open(32))
    assert caches[0].store is caches[1].store
    assert torch.equal(caches[0].keys[:, :, : caches[0].length], keys) and before
    caches[0].roll_back(0)
    write(decoder, caches, 3, seed=0)


def test_stores_are_filled_and_kept_apart_by_length() -> None:
    decoder = tiny_target().compact
    stores = stores_of(decoder)
    short = [stores.open(30) for _ in range(TOGETHER + 1)]
    long = stores.open(100)
    assert len({id(cache.store) for cache in short}) == 2
    assert long.store not in {cache.store for cache in short}
