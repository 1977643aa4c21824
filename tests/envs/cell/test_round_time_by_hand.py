"""When uploads are there and what is verified next, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.envs.cell.uploads import next_batch, upload_seconds

NEVER = np.inf


def test_uploads_take_bits_over_rate() -> None:
    # 8 tokens of 31,744 bits over 0.5 MHz at 4 bit/s/Hz: an eighth of a second.
    assert upload_seconds(8 * 31_744, 2e6) == pytest.approx(0.126976)
    assert upload_seconds([0, 0, 5, 4], [0.0, 1.0, 0.0, 2.0]).tolist() == [0, 0, NEVER, 2]
    assert upload_seconds(np.ones((2, 3)), 4.0).tolist() == [[0.25] * 3] * 2


def test_a_synchronous_round_waits_for_the_slowest_who_is_there() -> None:
    draft = np.array([[0.1, 0.3, 0.2], [0.0, 0.0, 0.0], [0.1, 9.0, 0.2], [1.0, 1.0, 1.0]])
    upload = np.array([[0.5, 0.1, 0.2], [0.0, 0.0, 0.0], [0.1, NEVER, 0.3], [NEVER] * 3])
    start, taken = next_batch(draft + upload, np.inf)
    assert start == pytest.approx([0.6, 0.0, 0.5, 0.0])  # not 0.3 + 0.5
    assert taken.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]]


def test_a_batch_holds_who_arrives_within_the_window() -> None:
    arrivals = np.array([0.50, 0.10, 0.16, 0.30])
    start, taken = next_batch(arrivals, 0.08)
    assert start == pytest.approx(0.18)
    assert taken.tolist() == [False, True, True, False]
    # Verified for 0.15 s: then the third is waiting already, and its window is over.
    arrivals[taken] = NEVER
    start, taken = next_batch(arrivals, 0.02, free_at=0.18 + 0.15)
    assert start == pytest.approx(0.33) and taken.tolist() == [0, 0, 0, 1]
    arrivals[taken] = NEVER
    start, taken = next_batch(arrivals, 0.08, free_at=0.4)
    assert start == 0.5, "nobody else is expected, so nobody is waited for"


def test_who_arrives_while_the_server_is_busy_joins_the_next_batch() -> None:
    start, taken = next_batch(np.array([0.1, 0.2, 0.3, 0.5]), 0.0, free_at=0.3)
    assert start == 0.3 and taken.tolist() == [True, True, True, False]


def test_an_infinite_window_waits_for_all_and_none_takes_the_first() -> None:
    arrivals = np.random.default_rng(0).uniform(size=(50, 6))
    start, taken = next_batch(arrivals, np.inf)
    assert taken.all() and (start == arrivals.max(-1)).all()
    start, taken = next_batch(arrivals, 0.0)
    assert (taken.sum(-1) == 1).all() and (start == arrivals.min(-1)).all()


def test_cells_have_clocks_of_their_own_and_users_no_order() -> None:
    rng = np.random.default_rng(1)
    arrivals, free_at = rng.uniform(size=(40, 5)), rng.uniform(size=40)
    arrivals[rng.uniform(size=arrivals.shape) < 0.3] = NEVER
    arrivals[0] = NEVER
    order = rng.permutation(5)
    start, taken = next_batch(arrivals, 0.2, free_at)
    shuffled = next_batch(arrivals[:, order], 0.2, free_at)
    assert (shuffled[0] == start).all() and (shuffled[1] == taken[:, order]).all()
    for row in range(40):
        alone = next_batch(arrivals[row], 0.2, free_at[row])
        assert alone[0] == start[row] and (alone[1] == taken[row]).all()
    assert start[0] == free_at[0] and not taken[0].any()
    assert (taken.any(-1) == np.isfinite(arrivals).any(-1)).all()


def test_a_negative_window_is_refused() -> None:
    for window in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="window"):
            next_batch(np.zeros(2), window)
