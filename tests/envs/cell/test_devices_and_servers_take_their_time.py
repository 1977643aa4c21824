"""Drafting and verification times: the papers' numbers, and measured ones."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.devices import (
    A100_LLAMA2_7B,
    A100_QWEN25,
    A100_QWEN25_14B,
    A100_QWEN35_27B,
    A100_R1_QWEN,
    A100_R1_QWEN_32B,
    M4_PRO_QWEN35,
    M4_PRO_TINYLLAMA,
    AffineServer,
    DeviceClass,
    MeasuredServer,
    Server,
    measured_device,
)

COSTS = CostModel({}, {}, {"small": Curve((1, 4), (0.02, 0.06))}, {})
BATCHES = BatchCost({}, (10,), (1, 2, 4), (1, 3), (((1.0, 3.0), (2.0, 6.0), (4.0, 12.0)),))


def seconds(server: Server, drafted: object, present: object) -> np.ndarray:
    lengths = np.asarray(drafted)
    return server.seconds(lengths, np.full(lengths.shape, 10), np.asarray(present, bool))


@pytest.mark.parametrize(
    ("server", "of_20"),
    [
        (A100_LLAMA2_7B, 0.27708),  # 22.68 + 20 * 12.72 ms
        (A100_QWEN35_27B, 0.47067),  # 75.07 + 20 * 19.78 ms
        (A100_QWEN25_14B, 0.1948),  # 42.8 + 20 * 7.6 ms
        (A100_R1_QWEN_32B, 0.2513),  # 69.3 + 20 * 9.1 ms
    ],
)
def test_affine_servers_verify_as_the_papers_say(server: AffineServer, of_20: float) -> None:
    everybody = np.ones(20, bool)
    assert seconds(server, np.arange(20), everybody) == pytest.approx(of_20)
    assert seconds(server, np.zeros(20, int), everybody) == pytest.approx(of_20)
    alone = seconds(server, np.zeros(20, int), np.arange(20) == 7)
    assert alone == pytest.approx(server.fixed + server.each)


def test_no_batch_takes_no_time() -> None:
    nobody = np.zeros((2, 3), bool)
    nobody[1, 0] = True
    for server in (A100_LLAMA2_7B, MeasuredServer(BATCHES)):
        empty, single = seconds(server, np.zeros((2, 3), int), nobody)
        assert empty == 0 and single > 0


def test_a_measured_server_counts_users_and_rows() -> None:
    server = MeasuredServer(BATCHES)
    drafted = [[2, 2, 2], [0, 2, 1], [0, 99, 0]]
    present = [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    # 9 rows of 3 users; 4 rows of 2 users; 1 row of 1 user: a second per row here.
    assert seconds(server, drafted, present) == pytest.approx([9, 4, 1])
    assert seconds(MeasuredServer(BATCHES, 2.0), drafted, present) == pytest.approx([18, 8, 2])
    shuffled = [[row[i] for i in (2, 0, 1)] for row in (drafted[1], present[1])]
    assert seconds(server, *shuffled) == pytest.approx(4), "the order of users does not matter"


def test_a_measured_server_invents_nothing_beyond_what_was_measured() -> None:
    server = MeasuredServer(BATCHES)
    with pytest.raises(DraftgymError, match="5 users; only up to 4"):
        seconds(server, np.zeros(5, int), np.ones(5))
    with pytest.raises(DraftgymError, match="4 rows of a user; only up to 3"):
        seconds(server, [3], [1])


@pytest.mark.parametrize(
    ("device", "reference", "fastest", "slowest"),
    [
        (M4_PRO_TINYLLAMA, 0.022, 0.85, 1.15),
        (M4_PRO_QWEN35, 0.033, 0.85, 1.15),
        (A100_QWEN25, 0.0152, 1.0, 1.15),
        (A100_R1_QWEN, 0.0196, 1.0, 1.15),
    ],
)
def test_devices_draw_their_speeds_from_the_papers_interval(
    device: DeviceClass, reference: float, fastest: float, slowest: float
) -> None:
    times = device.draw(np.random.default_rng(0), (100, 200))
    assert times.min() == pytest.approx(fastest * reference, rel=1e-3)
    assert times.max() == pytest.approx(slowest * reference, rel=1e-3)
    assert times.mean() == pytest.approx((fastest + slowest) / 2 * reference, rel=5e-3)
    assert (times == device.draw(np.random.default_rng(0), (100, 200))).all()


def test_a_measured_device_drafts_as_this_host_does() -> None:
    device = measured_device(COSTS, "small", factor=2.0)
    assert device.seconds_per_token == pytest.approx(2 * 0.06 / 4)
    assert (device.draw(np.random.default_rng(0), (3,)) == device.seconds_per_token).all()
    with pytest.raises(DraftgymError, match="'ngram'") as caught:
        measured_device(COSTS, "ngram")
    assert "small" in caught.value.remedy


def test_impossible_speeds_are_refused() -> None:
    for speeds in ((-1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.2, 1.1)):
        with pytest.raises(ValueError, match="impossible"):
            DeviceClass("broken", *speeds)


def test_a_measured_servers_affine_law_is_exact_where_the_server_is_affine() -> None:
    users, rows = (1, 2, 4), (1, 3, 9)
    grid = [[[0.02 + 0.01 * u + 0.001 * u * (r - 1) for r in rows] for u in users]]
    cost = BatchCost({}, (64,), users, rows, tuple(tuple(map(tuple, table)) for table in grid))
    law = MeasuredServer(cost, factor=2.0).affine()
    assert (law.fixed, law.per_user, law.per_token) == pytest.approx((0.04, 0.02, 0.002))
