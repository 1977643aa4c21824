"""When rounds end, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.envs.cell.round_time import next_batch, synchronous_round, upload_seconds

NEVER = np.inf


def test_uploads_take_bits_over_rate() -> None:
    # 8 tokens of 31,744 bits over 0.5 MHz at 4 bit/s/Hz: an eighth of a second.
    assert upload_seconds(8 * 31_744, 2e6) == pytest.approx(0.126976)
    assert upload_seconds([0, 0, 5, 4], [0.0, 1.0, 0.0, 2.0]).tolist() == [0, 0, NEVER, 2]
    assert upload_seconds(np.ones((2, 3)), 4.0).tolist() == [[0.25] * 3] * 2


def test_a_synchronous_round_waits_for_the_slowest() -> None:
    draft = np.array([[0.1, 0.3, 0.2], [0.0, 0.0, 0.0]])
    upload = np.array([[0.5, 0.1, 0.2], [0.0, 0.0, 0.0]])
    time = synchronous_round(draft, upload, np.array([0.25, 0.2]))
    assert time.multi_access == pytest.approx([0.6, 0.0])  # not 0.3 + 0.5
    assert time.total == pytest.approx([0.85, 0.2])


def test_who_is_absent_delays_nobody() -> None:
    present = np.array([True, False, True])
    time = synchronous_round(
        np.array([0.1, 9.0, 0.2]),
        np.array([0.1, NEVER, 0.3]),
        0.25,
        np.array([0.0, 8.0, 0.05]),
        present,
    )
    assert time.multi_access == pytest.approx(0.5)
    assert time.reply == pytest.approx(0.05)
    assert time.total == pytest.approx(0.8)
    nobody = synchronous_round(np.ones(3), np.ones(3), 0.0, 1.0, np.zeros(3, bool))
    assert nobody.total == 0


def test_a_batch_holds_who_arrives_within_the_window() -> None:
    arrivals = np.array([0.50, 0.10, 0.16, 0.30])
    batch = next_batch(arrivals, 0.08)
    assert batch.start == pytest.approx(0.18)
    assert batch.taken.tolist() == [False, True, True, False]
    # Verified for 0.15 s: then the third is waiting already, and its window is over.
    arrivals[batch.taken] = NEVER
    later = next_batch(arrivals, 0.02, free_at=0.18 + 0.15)
    assert later.start == pytest.approx(0.33) and later.taken.tolist() == [0, 0, 0, 1]
    arrivals[later.taken] = NEVER
    last = next_batch(arrivals, 0.08, free_at=0.4)
    assert last.start == 0.5, "nobody else is expected, so nobody is waited for"


def test_who_arrives_while_the_server_is_busy_joins_the_next_batch() -> None:
    batch = next_batch(np.array([0.1, 0.2, 0.3, 0.5]), 0.0, free_at=0.3)
    assert batch.start == 0.3 and batch.taken.tolist() == [True, True, True, False]


def test_an_infinite_window_is_a_synchronous_round_and_none_takes_the_first() -> None:
    rng = np.random.default_rng(0)
    draft, upload = rng.uniform(size=(2, 50, 6))
    batch = next_batch(draft + upload, np.inf)
    assert batch.taken.all()
    assert batch.start == pytest.approx(synchronous_round(draft, upload, 0.0).total)
    first = next_batch(draft + upload, 0.0)
    assert (first.taken.sum(-1) == 1).all()
    assert (first.start == (draft + upload).min(-1)).all()


def test_environments_have_clocks_of_their_own_and_users_no_order() -> None:
    rng = np.random.default_rng(1)
    arrivals, free_at = rng.uniform(size=(40, 5)), rng.uniform(size=40)
    arrivals[rng.uniform(size=arrivals.shape) < 0.3] = NEVER
    arrivals[0] = NEVER
    order = rng.permutation(5)
    together = next_batch(arrivals, 0.2, free_at)
    shuffled = next_batch(arrivals[:, order], 0.2, free_at)
    assert (shuffled.start == together.start).all()
    assert (shuffled.taken == together.taken[:, order]).all()
    for row in range(40):
        alone = next_batch(arrivals[row], 0.2, free_at[row])
        assert alone.start == together.start[row] and (alone.taken == together.taken[row]).all()
    assert together.start[0] == free_at[0] and not together.taken[0].any()
    assert (together.taken.any(-1) == np.isfinite(arrivals).any(-1)).all()


def test_a_negative_window_is_refused() -> None:
    for window in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="window"):
            next_batch(np.zeros(2), window)
