"""Promise: sampling noise is a pure function of (seed, position, token id)."""

from __future__ import annotations

import math

import pytest
import torch

from draftgym.decoding.verify.coupled import NoiseCache, gumbel_noise

VOCAB = 20_000


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


def test_noise_does_not_depend_on_what_was_asked_before() -> None:
    first = gumbel_noise(3, 17, VOCAB)
    gumbel_noise(3, 18, VOCAB)
    gumbel_noise(4, 17, VOCAB)
    torch.manual_seed(0)
    assert torch.equal(gumbel_noise(3, 17, VOCAB), first)


def test_noise_is_the_same_in_every_release() -> None:
    # Recorded once: a change here changes every sampled text.
    recorded = [-0.500564, -1.069121, 1.40093, -0.172519, -1.128203, 2.197949]
    torch.testing.assert_close(gumbel_noise(1, 2, 6), torch.tensor(recorded), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1001, VOCAB - 1])
def test_a_smaller_vocabulary_sees_a_prefix(size: int) -> None:
    assert torch.equal(gumbel_noise(5, 9, size), gumbel_noise(5, 9, VOCAB)[:size])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**200 + 1, -(2**80)])
def test_any_integer_is_a_seed(seed: int) -> None:
    noise = gumbel_noise(seed, 0, VOCAB)
    assert noise.dtype == torch.float32
    assert noise.shape == (VOCAB,)
    assert bool(noise.isfinite().all())


@pytest.mark.parametrize("position", [-1, 2**64])
def test_an_impossible_position_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="position"):
        gumbel_noise(0, position, 4)


def test_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel_noise(11, 0, 200_000).double().sort().values
    law = torch.exp(-torch.exp(-noise))
    uniform = (torch.arange(len(noise)) + 0.5) / len(noise)
    # Kolmogorov-Smirnov; 1.95 / sqrt(n) is the 99.9 % quantile.
    assert float((law - uniform).abs().max()) < 1.95 / math.sqrt(len(noise))


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (-1, 0), (1, 1), (2**64, 0), (0, 2**32)])
def test_other_seeds_and_positions_are_independent(other: tuple[int, int]) -> None:
    here, there = gumbel_noise(0, 0, VOCAB), gumbel_noise(*other, VOCAB)
    assert abs(correlation(here, there)) < 4 / math.sqrt(VOCAB)


def test_neighbouring_rows_do_not_overlap() -> None:
    """No row is a shifted copy of the next one, as an ill-spaced counter would make it."""
    here, there = gumbel_noise(0, 0, VOCAB), gumbel_noise(0, 1, VOCAB)
    for shift in range(1, 65):
        assert abs(correlation(here[shift:], there[:-shift])) < 5 / math.sqrt(VOCAB)


def test_cache_equals_the_function() -> None:
    cache = NoiseCache(seed=6, vocab_size=50, capacity=3)
    for positions in ([4, 5], [5, 4, 5], [9, 10, 11, 12, 4], torch.tensor([12, 4])):
        expected = torch.stack([gumbel_noise(6, int(p), 50) for p in positions])
        assert torch.equal(cache.rows(positions), expected)
    assert cache.rows([]).shape == (0, 50)


def test_cache_is_bounded_and_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(seed: int, position: int, vocab_size: int) -> torch.Tensor:
        made.append(position)
        return gumbel_noise(seed, position, vocab_size)

    monkeypatch.setattr("draftgym.decoding.verify.coupled.gumbel_noise", counted)
    cache = NoiseCache(seed=0, vocab_size=8, capacity=4)
    cache.rows([0, 1, 2, 3])
    cache.rows([0, 4])
    assert len(cache) == 4
    made.clear()
    cache.rows([0, 2, 3, 4])
    assert made == []
    cache.rows([1])
    assert made == [1]


def test_writing_into_returned_rows_does_not_change_the_noise() -> None:
    cache = NoiseCache(seed=0, vocab_size=8)
    cache.rows([3]).zero_()
    assert torch.equal(cache.rows([3])[0], gumbel_noise(0, 3, 8))
