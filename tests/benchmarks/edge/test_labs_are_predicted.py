"""The environment of a lab plays that lab: its devices, its prompts in order, its channels."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.schedulers.lab_cell import LabCell, LabDevice, LabTable, play_seconds
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.radio.channel_trace import ChannelTrace
from draftgym.envs.scheduler.planners import RulePlanner
from tests.handmade.users import user_traces

DEVICES = (
    LabDevice("small", 0.05, ["handmade-3", "handmade-2", "handmade-3"]),
    LabDevice("ngram", 0.0, ["handmade-5", "handmade-0"]),
)
CHANNELS = tuple(
    ChannelTrace(f"device-{index}", np.array([0.0, 0.2, 0.4]), snr)
    for index, snr in enumerate((np.array([9.0, 5.0, 2.0]), np.array([3.0, 30.0, 1.0])))
)
SETTINGS = CellSettings(users=2, channel_traces=CHANNELS, longest_draft=4)


def make_cell() -> LabCell:
    cell = LabCell(LabTable(user_traces(), DEVICES), SETTINGS, DEVICES)
    cell.reset(np.random.default_rng(1))
    return cell


def test_every_device_reads_its_prompts_in_order_and_each_is_of_its_own_category() -> None:
    cell = make_cell()
    planner = RulePlanner("fixed", cell)
    read: list[list[str]] = [[], []]
    for place in (0, 1):
        read[place].append(str(cell.table.question_ids[cell.users.text[0, place]]))
    while min(map(len, read)) < 6:
        played = cell.step(planner.plan())
        planner.learn(played)
        for place in np.flatnonzero(played.began[0]).tolist():
            text = int(cell.users.text[0, place])
            read[place].append(str(cell.table.question_ids[text]))
            category = cell.table.categories[int(cell.users.category[0, place])]
            assert category == cell.table.texts[text].category
    for device, names in zip(DEVICES, read, strict=True):
        assert names[:6] == [device.question_ids[i % len(device.question_ids)] for i in range(6)]


def test_every_device_drafts_at_its_speed_over_its_own_recording() -> None:
    cell = make_cell()
    assert [cell.table.arms[arm].drafter for arm in cell.users.arm[0]] == ["small", "ngram"]
    assert cell.users.token_seconds.tolist() == [[0.05, 0.0]]
    planner = RulePlanner("fixed", cell)
    for _ in range(5):
        moment = float(cell.clock[0]) % CHANNELS[0].period
        index = int(np.searchsorted(CHANNELS[0].seconds, moment, "right")) - 1
        np.testing.assert_allclose(cell.channel.snr[0], [one.snr[index] for one in CHANNELS])
        cell.step(planner.plan())


def test_what_is_done_in_a_time_is_counted_and_repeats() -> None:
    totals, rounds = play_seconds(lambda cell: RulePlanner("fixed", cell), make_cell(), 3.0)
    again, _ = play_seconds(lambda cell: RulePlanner("fixed", cell), make_cell(), 3.0)
    assert 0 < float(totals.seconds[0]) <= 3.0 and rounds > 3
    assert float(totals.tokens[0]) == float(again.tokens[0]) >= 2 * rounds


def test_prompts_that_were_not_traced_are_named() -> None:
    with pytest.raises(DraftgymError, match="'elsewhere'"):
        LabTable(user_traces(), [LabDevice("small", 0.1, ["handmade-1", "elsewhere"])])
