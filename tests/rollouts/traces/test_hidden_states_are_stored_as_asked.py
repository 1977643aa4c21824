"""Traces hold the target's hidden states whole, in half the bytes, or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.advantage import AdvantageArgs, train_advantage
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.neural import NeuralArgs, train_neural
from draftgym.agents.router.train import train, train_router
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import signal_names
from draftgym.envs.cell.texts import ChainTable
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    RouterNetwork,
    load_learned_policy,
)
from draftgym.policies.routers.rules import EntropyPolicy, FixedPolicy
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet
from tests.tiny import ARMS
from tests.traces import save_traces, shards, tiny_traces

STATES = ("float32", "float16", "none")
CHOICES = [parse_arm(arm) for arm in ARMS]
TINY = RouterPPO(n_envs=2, n_steps=8, batch_size=8, width=8)


@pytest.fixture(scope="module")
def folders(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same texts, stored in each way."""
    whole, out = tiny_traces(target, drafters, 1.0), tmp_path_factory.mktemp("states")
    return {
        states: save_traces(
            TraceSet(replace(whole.origin, states=states), whole.texts), out / states
        )
        for states in STATES
    }


@pytest.fixture(scope="module")
def traces(folders: dict[str, Path]) -> dict[str, TraceSet]:
    return {states: read_traces(folder) for states, folder in folders.items()}


def router(hidden: int) -> LearnedPolicy:
    """An untrained router that reads so many entries of the hidden state."""
    torch.manual_seed(0)
    return LearnedPolicy(RouterNetwork(len(signal_names(CHOICES)), hidden, len(CHOICES)), CHOICES)


def test_states_come_back_as_they_were_stored(
    folders: dict[str, Path], traces: dict[str, TraceSet]
) -> None:
    whole, half, none = (traces[states].texts for states in STATES)
    mapped = read_traces(folders["float16"], mapped=True).texts
    for full, mine, stored, without in zip(whole, half, mapped, none, strict=True):
        assert full.hidden.dtype == np.float32 and mine.hidden.dtype == np.float16
        np.testing.assert_array_equal(mine.hidden, full.hidden.astype(np.float16))
        np.testing.assert_array_equal(stored.hidden, mine.hidden)
        assert not stored.hidden.flags.owndata, "a view of the file"
        assert without.hidden.shape == (len(full.tokens), 0)
        for other in (mine, stored, without):
            np.testing.assert_array_equal(other.signals, full.signals)
            np.testing.assert_equal(asdict(other)["arms"], asdict(full)["arms"])


def test_the_file_says_how_and_stores_them_byte_by_byte(folders: dict[str, Path]) -> None:
    import pyarrow.parquet

    found = {}
    for states, folder in folders.items():
        (shard,) = shards(folder)
        told = json.loads(pyarrow.parquet.read_schema(shard).metadata[b"draftgym"])["origin"]
        assert told.get("states") == (None if states == "float32" else states), "left out as ever"
        group = pyarrow.parquet.read_metadata(shard).row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        found[states] = [one for one in columns if one.path_in_schema.startswith("hidden")]
    for states in ("float32", "float16"):
        (column,) = found[states]
        assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not found["none"]
    sizes = [found[states][0].total_uncompressed_size for states in ("float32", "float16")]
    assert sizes[1] < 0.6 * sizes[0]


def test_replayed_observations_are_float32_and_within_rounding(
    traces: dict[str, TraceSet],
) -> None:
    count = len(traces["float32"].texts)
    replays = [Replay(traces[states], CHOICES, count) for states in STATES]
    for _ in range(3):
        full, half, none = (replay.observe() for replay in replays)
        assert half["hidden"].dtype == np.float32 and none["hidden"].shape == (count, 0)
        np.testing.assert_allclose(half["hidden"], full["hidden"], rtol=2**-11, atol=2**-25)
        for seen in (half, none):
            np.testing.assert_array_equal(seen["signals"], full["signals"])
        for replay in replays:
            replay.step(np.zeros(count, dtype=np.int64))


def test_who_reads_no_states_plays_the_same_on_all(traces: dict[str, TraceSet]) -> None:
    policies = [FixedPolicy(CHOICES[0]), EntropyPolicy(*CHOICES[:2], threshold=1.0), router(0)]
    for policy in policies:
        played = [list(map(asdict, play_policy(traces[states], policy))) for states in STATES]
        np.testing.assert_equal(played[1], played[0])
        np.testing.assert_equal(played[2], played[0])
    drafting = [str(arm) for arm in CHOICES if arm.nodes is None and arm.drafts]
    tables = [ChainTable(traces[states], drafting[:1]) for states in STATES]
    np.testing.assert_array_equal(tables[2].signals, tables[0].signals)


def test_who_reads_states_is_refused_without_them(
    traces: dict[str, TraceSet], folders: dict[str, Path], tmp_path: Path, target: Target
) -> None:
    first, second = (str(arm) for arm in CHOICES[:2])
    neural = NeuralArgs(traces=folders["none"], first=first, second=second, out=tmp_path / "n")
    for ask in (
        lambda: train_neural(neural),
        lambda: play_policy(traces["none"], router(target.hidden_size)),
    ):
        with pytest.raises(DraftgymError, match="collected with --states none") as caught:
            ask()
        assert "--states float16" in caught.value.remedy


def test_traces_of_different_storage_are_not_mixed(traces: dict[str, TraceSet]) -> None:
    with pytest.raises(DraftgymError, match="states: float32 / float16") as caught:
        traces["float32"].mixed_with([traces["float16"]])
    assert "--states" in caught.value.remedy


@pytest.mark.parametrize("states", ["float16", "none"])
def test_routers_learn_from_them(
    states: str,
    folders: dict[str, Path],
    traces: dict[str, TraceSet],
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
) -> None:
    arms = tuple(str(arm) for arm in CHOICES)
    args = RouterArgs(
        traces=folders[states], run=tmp_path / "run", arms=arms, rounds=32, threads=1, ppo=TINY
    )
    learned = load_learned_policy(train_router(args), target)
    assert learned.reads_states == (states == "float16")
    play_policy(traces["float32"], learned)  # on traces that hold more, too
    text = torch.arange(1, 9)
    plain = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm("plain")))
    routed = SpeculativeDecoder(target, drafters, learned)
    assert routed.generate(text, 12).tokens == plain.generate(text, 12).tokens
    regression = AdvantageArgs(
        traces=folders[states], arms=arms, out=tmp_path / "advantage", sweeps=0, walks=1
    )
    train_advantage(regression)
    if states == "float16":
        pair = dict(zip(("first", "second"), arms, strict=False))
        train_neural(NeuralArgs(traces=folders[states], out=tmp_path / "neural", **pair))


def test_a_router_that_is_shown_no_states_learns_the_same(traces: dict[str, TraceSet]) -> None:
    """Whether texts hold none, or hold some that a policy of one's own does not look at."""
    whole = traces["float32"]
    blind = [
        replace(text, hidden=np.zeros((len(text.tokens), 0), np.float32)) for text in whole.texts
    ]
    settings = RouterArgs(rounds=32, threads=1, arms=tuple(ARMS), ppo=TINY)
    one, other = (
        train(some, settings).network.state_dict()
        for some in (traces["none"], replace(whole, texts=blind))
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=0)


def test_what_float16_cannot_hold_is_refused(traces: dict[str, TraceSet], tmp_path: Path) -> None:
    whole = traces["float32"]
    hidden = whole.texts[0].hidden.copy()
    hidden[1, 2] = 65504.0
    largest = replace(whole.texts[0], hidden=hidden)
    origin = replace(whole.origin, states="float16")
    kept = read_traces(save_traces(TraceSet(origin, [largest]), tmp_path / "largest"))
    assert kept.texts[0].hidden[1, 2] == 65504.0
    hidden[1, 2] = -7e4
    with pytest.raises(DraftgymError, match="float16 ends at 65504") as caught:
        save_traces(TraceSet(origin, [largest]), tmp_path / "beyond")
    assert "float32" in caught.value.remedy and not shards(tmp_path / "beyond")


def test_origins_of_before_are_read_and_others_refused(traces: dict[str, TraceSet]) -> None:
    origin = traces["float32"].origin
    told = json.loads(json.dumps(origin.to_json()))
    assert "states" not in told and TraceOrigin.from_json(told).states == "float32"
    published = TraceOrigin.from_json(told | {"states": False})
    assert not published.holds_states and published.to_json()["states"] is False
    with pytest.raises(DraftgymError, match="states of these traces are 'bfloat16'"):
        TraceOrigin.from_json(told | {"states": "bfloat16"})
