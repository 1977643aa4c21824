"""Live cells: whoever plans, whoever comes and goes, every user reads plain decoding's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import cycle

import numpy as np
import pytest

from draftgym.agents.scheduler.cell_args import means_of
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.live import LiveTable
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import observe_cell
from draftgym.envs.scheduler.planners import RulePlanner, play_rounds
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.decode.interleaved import DecodeSettings, write
from draftgym.rollouts.prompts.sets import Prompt
from tests.handmade.users import MODES
from tests.tiny import numbered_target, tiny_drafters, tiny_target
from tests.traces import NOISE_SEED, tiny_traces

ARMS = ["small:4", "ngram:4"]
LENGTH = 14
PROMPTS = [Prompt(f"p{i}", ("chat", "code")[i % 2], (f"{i}",)) for i in range(5)]
TEMPERATURES = [0.0, 1.0]
STEPS = 32
CELLS = {
    **MODES,
    "late": CellSettings(users=3, window=0.01, deadline=0.1),
    "told": CellSettings(users=3, confidence=True),
}
"""Also one where many drafts do not arrive, and one where all devices tell how sure they are."""


@pytest.fixture(scope="module")
def stopping() -> tuple[Target, dict[str, Drafter]]:
    """A target whose texts end at any time, for several tokens end them."""
    target = replace(tiny_target(), stop_tokens=frozenset({7, 23, 41}))
    return target, tiny_drafters(target)


def live_table(
    target: Target,
    drafters: dict[str, Drafter],
    temperature: float,
    length: int = LENGTH,
    seeds: Sequence[int] = range(len(PROMPTS)),
) -> LiveTable:
    reader = numbered_target(target)
    requests = [
        Request(p.question_id, p.category, temperature, seed, reader.encode(p.text))
        for seed, p in zip(seeds, PROMPTS, strict=True)
    ]
    return LiveTable(target, drafters, list(map(parse_arm, ARMS)), requests, length)


def plain_texts(target: Target, table: LiveTable, temperature: float) -> list[list[int]]:
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    return [
        write(decoder, one.prompt, DecodeSettings(LENGTH, temperature, one.seed)).tokens
        for one in table.requests
    ]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("mode", CELLS)
def test_every_text_is_plain_decodings(
    stopping: tuple[Target, dict[str, Drafter]], mode: str, temperature: float
) -> None:
    """Random lengths, in synchronous and asynchronous cells, with users that come and go."""
    target, drafters = stopping
    table = live_table(target, drafters, temperature)
    plain = plain_texts(target, table, temperature)
    cell = Cell(table, CELLS[mode])
    cell.reset(np.random.default_rng(1))
    rng, committed, late = np.random.default_rng(2), 0, 0
    for _ in range(STEPS):
        played = cell.step(cell.best_plan(rng.integers(5, size=cell.shape)))
        committed += int(played.committed.sum())
        late += int((played.taken & (cell.uploads.planned > 0) & (played.drafted == 0)).sum())
    assert mode != "late" or late > 5
    assert len(table.written) >= 3 and len({text for text, _ in table.written}) >= 2
    for text, tokens in table.written:
        assert tokens == plain[text]
    for text, tokens in table.unfinished:
        assert tokens == plain[text][: len(tokens)]
    everything = [tokens for _, tokens in table.written + table.unfinished]
    assert committed == sum(len(tokens) - 1 for tokens in everything), (
        "nobody is given a token more"
    )


@pytest.mark.parametrize(
    ("spec", "temperature"),
    [("fixed", 0.0), ("heterogeneous@beta", 0.0), ("heterogeneous@beta", 1.0), ("p2p", 1.0)],
)
def test_the_papers_schedulers_serve_live_users(
    stopping: tuple[Target, dict[str, Drafter]], spec: str, temperature: float
) -> None:
    target, drafters = stopping
    table = live_table(target, drafters, temperature)
    plain = plain_texts(target, table, temperature)
    cell = Cell(table, MODES["synchronous"])
    for played in play_rounds(lambda one: RulePlanner(spec, one), cell, rng(0), 20):
        assert (played.committed[played.taken] >= 1).all()
    assert table.written and all(tokens == plain[text] for text, tokens in table.written)


@pytest.fixture(scope="module")
def recorded_at(target: Target, drafters: dict[str, Drafter]) -> dict[float, ChainTable]:
    """Traced texts by temperature."""
    return {
        temperature: ChainTable(tiny_traces(target, drafters, temperature, ARMS, PROMPTS, LENGTH))
        for temperature in TEMPERATURES
    }


@pytest.mark.parametrize(
    ("mode", "temperature"), [*zip(CELLS, cycle(TEMPERATURES)), ("synchronous", 1.0)]
)
def test_a_replayed_cell_is_a_live_one(
    target: Target,
    drafters: dict[str, Drafter],
    recorded_at: dict[float, ChainTable],
    mode: str,
    temperature: float,
) -> None:
    """The same rounds to the last number, and the same knowledge before each of them."""
    recorded = recorded_at[temperature]
    settings: CellSettings = replace(CELLS[mode], means=means_of(recorded))
    cells = [
        Cell(table, settings)
        for table in (
            recorded,
            live_table(target, drafters, temperature, seeds=[NOISE_SEED] * len(PROMPTS)),
        )
    ]
    both = [
        play_rounds(lambda one: RulePlanner("heterogeneous@beta", one, 0), cell, rng(3), STEPS)
        for cell in cells
    ]
    finished = 0
    for replayed, live in zip(*both, strict=True):
        for field in fields(replayed):
            same = getattr(replayed, field.name), getattr(live, field.name)
            for one, other in zip(*map(_arrays, same), strict=True):
                np.testing.assert_array_equal(one, other, field.name)
        finished += int(live.finished.sum())
        seen = list(map(observe_cell, cells))
        for name in seen[0]:
            np.testing.assert_allclose(seen[0][name], seen[1][name], rtol=1e-3, atol=1e-4)
    assert finished > 3


def test_cells_of_one_table_have_passes_of_their_own(
    stopping: tuple[Target, dict[str, Drafter]],
) -> None:
    table = live_table(*stopping, 0.0)
    cell = Cell(table, MODES["synchronous"], 2)
    cell.reset([rng(0), rng(1)])
    played = cell.step(cell.best_plan(np.full((2, 3), 4)))
    assert [one.drafted for one in table.passes] == [tuple(row) for row in played.drafted.tolist()]
    assert all(one.seconds > 0 and len(one.contexts) == 3 for one in table.passes)


def test_a_reset_begins_anew(stopping: tuple[Target, dict[str, Drafter]]) -> None:
    """Also where drafts were under way, and where the same text begins again."""
    table = live_table(*stopping, 0.0)
    cell = Cell(table, MODES["window"])
    tokens = []
    for _ in range(2):
        cell.reset(rng(4))
        steps = [cell.step(cell.best_plan(np.array([[4, 0, 0]]))) for _ in range(9)]
        tokens.append([played.committed.tolist() for played in steps])
    assert tokens[0] == tokens[1]


def test_what_is_to_come_is_not_shown(stopping: tuple[Target, dict[str, Drafter]]) -> None:
    table = live_table(*stopping, 0.0)
    cell = Cell(table, MODES["synchronous"])
    cell.reset(rng(0))
    with pytest.raises(DraftgymError, match="live users cannot show"):
        cell.preview(cell.best_plan(np.zeros((1, 3), int)))
    assert not table.passes


def test_texts_without_a_round_are_refused(target: Target, drafters: dict[str, Drafter]) -> None:
    with pytest.raises(DraftgymError, match="no text of these prompts has a round"):
        live_table(target, drafters, 0.0, length=1)
    ends_at_once = replace(target, stop_tokens=frozenset(range(target.vocab_size)))
    with pytest.raises(DraftgymError, match="no text of these prompts has a round"):
        live_table(ends_at_once, drafters, 0.0)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _arrays(value: object) -> list[np.ndarray]:
    return [value] if isinstance(value, np.ndarray) else list(vars(value).values())
