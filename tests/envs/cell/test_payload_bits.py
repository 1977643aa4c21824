"""Bits on the air, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.payload import PAYLOAD_MODES, make_payload


def test_truncated_distributions_take_the_papers_bits() -> None:
    llama = make_payload("truncated", 32_000)
    assert llama.bits_per_token == 1024 * (16 + 15) == 31_744
    assert make_payload("truncated", 151_665).bits_per_token == 1024 * (16 + 18) == 34_816
    assert make_payload("truncated", 49_152, kept=64, precision=8).bits_per_token == 64 * (16 + 8)
    assert llama.draft_bits([0, 1, 8]).tolist() == [0, 31_744, 253_952]
    assert llama.correction_bits == 0, "nothing follows"


def test_a_scalar_probability_needs_a_distribution_only_where_a_token_is_rejected() -> None:
    scalar = make_payload("scalar", 151_665)
    assert scalar.bits_per_token == 18 + 16
    assert scalar.correction_bits == 34_816
    assert scalar.draft_bits([5, 0]).tolist() == [170, 0]


def test_token_ids_alone_are_a_thousandth() -> None:
    tokens = make_payload("tokens", 32_000)
    assert (tokens.bits_per_token, tokens.correction_bits) == (15, 0)
    assert make_payload("truncated", 32_000).bits_per_token / tokens.bits_per_token > 2000
    assert tokens.draft_bits(np.full((2, 3), 4)).tolist() == [[60] * 3] * 2


def test_a_frame_is_sent_around_every_message_and_no_other() -> None:
    framed = replace(make_payload("tokens", 32_000), frame_bits=100)
    assert framed.draft_bits([0, 2]).tolist() == [0, 130]
    assert framed.draft_bits([0, 2], np.array([True, True])).tolist() == [100, 130]


@pytest.mark.parametrize(
    ("vocabulary", "bits"), [(2, 1), (3, 2), (256, 8), (257, 9), (131_072, 17), (131_073, 18)]
)
def test_an_index_takes_the_logarithm_rounded_up(vocabulary: int, bits: int) -> None:
    assert make_payload("tokens", vocabulary, kept=1).bits_per_token == bits


@pytest.mark.parametrize("sizes", [(1, 1, 16), (100, 101, 16), (100, 0, 16), (100, 10, 0)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, int, int]) -> None:
    for mode in PAYLOAD_MODES:
        with pytest.raises(DraftgymError, match="probabilities"):
            make_payload(mode, *sizes)


def test_unknown_modes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(DraftgymError, match="'logits'") as caught:
        make_payload("logits", 32_000)
    assert "truncated, scalar, tokens" in caught.value.remedy
