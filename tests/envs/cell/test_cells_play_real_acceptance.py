"""Rounds of many users: acceptance as it was, time by the radio's and the server's laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.cell.uploads import upload_seconds
from draftgym.envs.radio.channel_trace import ChannelTrace
from draftgym.envs.radio.radio import best_shares
from draftgym.envs.scheduler.actions import onto_simplex
from draftgym.envs.scheduler.env import SchedulerEnv
from draftgym.policies.multispin.problem import Plan
from tests.handmade.users import MODES, a_slow_place, user_table
from tests.tiny import PROMPTS, numbered_target
from tests.traces import NOISE_SEED, tiny_traces


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


def played(cell: Cell, seed: int, steps: int) -> list[tuple[Plan, object]]:
    """Random rounds of a cell."""
    rng = np.random.default_rng(seed)
    cell.reset(np.random.default_rng(seed + 100))
    rounds = []
    for _ in range(steps):
        plan = cell.best_plan(rng.integers(cell.longest + 1, size=cell.shape))
        rounds.append((plan, cell.step(plan)))
    return rounds


def test_the_longest_chain_holds_every_shorter_one(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    arms = [f"{name}:{length}" for name in ("small", "ngram") for length in (1, 2, 3, 5)]
    traces = tiny_traces(target, drafters, arms=arms)
    table = ChainTable(traces)
    assert [str(arm) for arm in table.arms] == ["small:5", "ngram:5"]
    for index, arm in enumerate(table.arms):
        for length in (1, 2, 3, 5):
            for text, first, last in zip(table.texts, table.first, table.last, strict=True):
                rows = np.arange(first, last)
                which = np.full(len(rows), index)
                drafted = table.drafted(which, rows, np.full(len(rows), length))
                committed = table.committed(which, rows, drafted)
                shorter = text.arms[f"{arm.drafter}:{length}"]
                np.testing.assert_array_equal(drafted, shorter.drafted)
                np.testing.assert_array_equal(committed, shorter.committed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replayed_rounds_of_several_users_are_live_ragged_decoding(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    traces = tiny_traces(target, drafters, temperature, arms=["small:4", "ngram:4"])
    env = SchedulerEnv(traces, CellSettings(users=3))
    env.reset(seed=2)
    reader, live = numbered_target(target), {}
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = rng.integers(5, size=3)
        users = env.cell.users
        for place in range(3):  # a new prompt: a new live session in its place
            question = env.cell.table.texts[int(users.text[0, place])].question_id
            if place not in live or live[place].finished:
                rule = make_rule(None, temperature, NOISE_SEED, target.vocab_size)
                prompt = next(p for p in PROMPTS if p.question_id == question)
                live[place] = Session(target, reader.encode(prompt.text), rule, 40, drafters)
                live[place].prefill()
        names = [env.cell.table.arms[arm].drafter for arm in users.arm[0]]
        arms = [
            parse_arm(f"{name}:{length}" if length else "plain")
            for name, length in zip(names, actions, strict=True)
        ]
        records = play_rounds([live[place] for place in range(3)], arms)
        _, _, _, _, info = env.step(actions)
        assert info["tokens"] == [record.committed for record in records]
        assert info["drafted"].tolist() == [len(record.drafted) for record in records]
        assert info["finished"].tolist() == [live[place].finished for place in range(3)]


@pytest.mark.parametrize("mode", MODES)
def test_every_text_is_committed_whole(mode: str, table: ChainTable) -> None:
    cell = Cell(table, MODES[mode])
    cell.reset(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    so_far, done = np.zeros(cell.shape, int), 0
    for _ in range(60):
        text = cell.users.text.copy()
        after = cell.step(cell.best_plan(rng.integers(7, size=cell.shape)))
        so_far += after.committed
        whole = table.last[text] - table.first[text]
        finished = after.finished
        np.testing.assert_array_equal(so_far[finished], whole[finished])
        so_far[finished] = 0
        done += int(finished.sum())
    assert done > 3


def test_a_round_takes_what_its_parts_take(table: ChainTable) -> None:
    settings = MODES["synchronous"]
    cell = Cell(table, settings, 2)
    cell.reset(np.random.default_rng(0))
    lengths = np.array([[1, 4, 0], [6, 2, 3]])
    users, snr = cell.users, cell.channel.snr
    drafted = table.drafted(users.arm, users.row, lengths)
    plan = cell.best_plan(lengths)
    draft, context = drafted * users.token_seconds, users.context
    bits = settings.edge.payload.draft_bits(drafted)
    upload = upload_seconds(bits, settings.edge.radio.band.rate(snr, plan.shares))
    verify = settings.edge.server.seconds(drafted, context, np.ones((2, 3), bool))
    slowest = (draft + upload).max(-1)  # not the slowest draft and the slowest upload
    time = cell.step(plan).time
    np.testing.assert_allclose(time.total, slowest + verify)
    np.testing.assert_allclose(time.draft + time.upload, slowest)
    np.testing.assert_allclose(time.verify, verify)


def test_a_network_adds_its_latency_to_rounds_in_which_somebody_drafts(table: ChainTable) -> None:
    there, back = Cell(table, CellSettings(users=2)), Cell(table, CellSettings(users=2, latency=9))
    for lengths in (np.array([[2, 0]]), np.zeros((1, 2), np.int64)):
        for cell in (there, back):
            cell.reset(np.random.default_rng(3))
        plan = there.best_plan(lengths)
        extra = back.step(plan).time.total - there.step(plan).time.total
        assert extra == pytest.approx(9.0 if lengths.any() else 0.0)


def test_every_round_takes_the_servers_overhead(table: ChainTable) -> None:
    light, heavy = (Cell(table, CellSettings(users=2, overhead=one)) for one in (0.0, 7.0))
    for cell in (light, heavy):
        cell.reset(np.random.default_rng(3))
    plan = light.best_plan(np.array([[2, 1]]))
    assert heavy.step(plan).time.total - light.step(plan).time.total == pytest.approx(7.0)
    assert heavy.clock - light.clock == pytest.approx(7.0)


def test_prompts_are_read_in_the_round_behind_which_their_texts_begin(table: ChainTable) -> None:
    cell = Cell(table, CellSettings(users=3, prompt_token_seconds=0.5))
    cell.reset(np.random.default_rng(3))
    alone, begun = float(cell.server.seconds(*np.array([[[0]], [[0]]]), np.array([[True]]))[0]), 0
    for _ in range(40):
        before = cell.clock.copy()
        round_ = cell.step(cell.best_plan(np.full((1, 3), 2)))
        tokens = cell.users.context[round_.began]
        expected = len(tokens) * alone + 0.5 * float(tokens.sum())
        assert float(round_.time.prompts[0]) == pytest.approx(expected)
        assert cell.clock - before == pytest.approx(round_.time.total)
        begun += len(tokens)
    assert begun > 3


def test_an_endless_window_is_a_synchronous_round(table: ChainTable) -> None:
    together = played(Cell(table, MODES["synchronous"]), 0, 20)
    window = played(Cell(table, replace(MODES["synchronous"], window=1e9)), 0, 20)
    for (_, one), (_, other) in zip(together, window, strict=True):
        np.testing.assert_allclose(one.time.total, other.time.total)
        np.testing.assert_array_equal(one.committed, other.committed)


def test_a_window_verifies_whoever_is_there_and_lets_others_go_on(table: ChainTable) -> None:
    cell = Cell(table, MODES["window"])
    cell.reset(np.random.default_rng(1))
    slow = a_slow_place(cell)
    first = cell.step(cell.best_plan(np.where(slow, 6, 0)[None]))
    np.testing.assert_array_equal(first.taken[0], ~slow)
    np.testing.assert_array_equal(first.committed[0], np.where(slow, 0, 1))
    np.testing.assert_array_equal(cell.uploads.in_flight[0], slow)
    assert cell.uploads.planned[0, slow] == 6
    second = cell.step(cell.best_plan(np.zeros((1, 3), int)))
    assert second.time.wait[0] == pytest.approx(0.01), "the window opens anew with every batch"
    steps = 0
    while not cell.step(cell.best_plan(np.zeros((1, 3), int))).taken[0, slow].all():
        steps += 1
    assert steps < 20, "a draft that is under way is not told anew"


def test_the_band_is_never_divided_twice(table: ChainTable) -> None:
    cell = Cell(table, MODES["window"])
    cell.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(50):
        after = cell.step(cell.best_plan(rng.integers(7, size=cell.shape)))
        assert after.shares.sum() <= 1 + 1e-9


def test_uploads_under_way_lose_no_bit_when_the_band_is_divided_anew(table: ChainTable) -> None:
    """Over a channel that stands still, a draft is there when its bits have been sent."""
    settings = MODES["window"]
    still = replace(settings.edge, radio=replace(settings.edge.radio, doppler_hz=0.0))
    cell = Cell(table, replace(settings, setting=still))
    cell.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    sent, begun = np.zeros(3), np.zeros(3)
    for _ in range(40):
        snr, before = cell.channel.snr, cell.clock.copy()
        starts = cell.deciding[0]
        sent[starts] = 0.0
        after = cell.step(cell.best_plan(rng.integers(7, size=cell.shape)))
        rate = cell.band.rate(snr, after.shares)[0]
        ready = np.where(starts, cell.uploads.ready[0], begun)
        begun = ready
        until = np.minimum(cell.clock, cell.uploads.arrival[0])
        sent += rate * np.maximum(until - np.maximum(ready, before), 0.0)
        expected = cell.payload.draft_bits(after.drafted[0])
        taken = after.taken[0]
        np.testing.assert_allclose(sent[taken], expected[taken], rtol=1e-6, atol=1e-3)


def test_who_misses_the_deadline_gets_the_targets_own_token(table: ChainTable) -> None:
    cell = Cell(table, replace(MODES["synchronous"], deadline=1e-3))
    cell.reset(np.random.default_rng(0))
    after = cell.step(cell.best_plan(np.array([[6, 6, 0]])))
    assert after.committed.tolist() == [[1, 1, 1]] and not after.drafted.any()
    assert after.time.total[0] == pytest.approx(1e-3 + cell.pass_seconds)


def test_a_dead_channel_needs_a_deadline(table: ChainTable) -> None:
    dead = (ChannelTrace("dead", np.zeros(1), np.zeros(1)),)
    cell = Cell(table, replace(MODES["synchronous"], channel_traces=dead))
    cell.reset(np.random.default_rng(0))
    cell.step(cell.best_plan(np.zeros((1, 3), int)))  # drafting nothing is always possible
    with pytest.raises(DraftgymError, match="deadline"):
        for _ in range(9):  # prompt lookup may find nothing to upload
            cell.step(cell.best_plan(np.full((1, 3), 6)))


def test_a_user_reads_all_its_texts_before_any_comes_again(table: ChainTable) -> None:
    cell = Cell(table, CellSettings(users=1, arms=None))
    cell.reset(np.random.default_rng(3))
    category = int(cell.users.category[0, 0])
    members = set(table.members(category).tolist())
    seen = []
    while len(seen) < len(members):
        seen.append(int(cell.users.text[0, 0]))
        while not cell.step(cell.best_plan(np.full((1, 1), 6))).finished[0, 0]:
            pass
    assert set(seen) == members


def test_users_leave_and_come_with_another_device(table: ChainTable) -> None:
    cell = Cell(table, replace(MODES["churn"], leaving=1.0))
    cell.reset(np.random.default_rng(0))
    rng, present, newcomers, idle = np.random.default_rng(1), set(), 0, 0.0
    for _ in range(80):
        before = cell.users.token_seconds.copy()
        after = cell.step(cell.best_plan(rng.integers(7, size=cell.shape)))
        came = after.newcomers & (cell.users.token_seconds > 0)  # lookups are all alike
        assert (cell.users.token_seconds != before)[came].all()
        newcomers, idle = (
            newcomers + int(after.newcomers.sum()),
            idle + float(after.idle[0]),
        )
        present.add(int(cell.users.active.sum()))
        assert cell.users.active.any(), "a step always has somebody to serve"
    assert newcomers > 5 and len(present) > 1


def test_shares_end_all_uploads_together_also_where_noise_grows_with_bandwidth() -> None:
    band = MODES["everything"].edge.radio.band
    rng = np.random.default_rng(0)
    snr, work = rng.uniform(0.05, 30, (20, 6)), rng.uniform(0, 0.05, (20, 6))
    bits = rng.integers(1_000, 200_000, (20, 6))
    shares = best_shares(band, snr, work, bits)
    ends = work + upload_seconds(bits, band.rate(snr, shares))
    np.testing.assert_allclose(shares.sum(-1), 1.0)
    np.testing.assert_allclose(ends, np.broadcast_to(ends[:, :1], ends.shape), rtol=1e-2)


def test_projection_finds_the_nearest_shares() -> None:
    rng = np.random.default_rng(0)
    weights, sending = rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.7
    shares = onto_simplex(weights, sending)
    assert (shares >= 0).all() and not shares[~sending].any()
    np.testing.assert_allclose(shares.sum(-1), sending.any(-1))
    for row in np.flatnonzero(sending.any(-1)):
        for _ in range(20):  # nobody else on the simplex is nearer
            other = np.zeros(4)
            other[sending[row]] = rng.dirichlet(np.ones(int(sending[row].sum())))
            nearest = np.linalg.norm((weights[row] - shares[row])[sending[row]])
            assert nearest <= np.linalg.norm((weights[row] - other)[sending[row]]) + 1e-12
