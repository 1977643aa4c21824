"""`draftgym train-serving` makes folders that play as what it fitted or tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from draftgym.agents.serving.fit import ForecastFitting
from draftgym.agents.serving.train import ServingTrainArgs, sizes_up_to, train_serving
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule
from draftgym.policies.serving.stored import load_rule
from draftgym.policies.serving.tokens import load_forecast
from tests.handmade.served import ARMS, served_traces
from tests.traces import save_traces

TRACES = served_traces(16, 50)


@pytest.fixture
def args(tmp_path: Path) -> ServingTrainArgs:
    return ServingTrainArgs(
        traces=save_traces(TRACES, tmp_path / "traces"),
        places=4,
        servers=2,
        requests=24,
        fitting=ForecastFitting(examples=3_000, epochs=4, batch_size=256, width=32),
        out=tmp_path / "made",
    )


def test_a_forecast_of_all_chains_is_fitted(args: ServingTrainArgs) -> None:
    forecast = load_forecast(train_serving(args), TRACES.origin)
    assert [str(arm) for arm in forecast.arms] == ARMS
    load = make_load(TRACES, ARMS, ServerSettings(4, 24, AtOnce()), 2)
    planned = play(load, PlannedPlayer(forecast, load), [0, 1]).goodput
    assert planned > play(load, RulePlayer(FixedRule(load.arms[0]), load), [0, 1]).goodput


def test_a_table_is_tuned_behind_a_lookup(args: ServingTrainArgs) -> None:
    folder = train_serving(replace(args, make="table", first="ngram:8@3"))
    table = load_rule(folder, TRACES.origin)
    assert isinstance(table, LengthBySize)
    assert list(table.schedule) == [1, 2, 4] and str(table.ladder.arms[3]) == "ngram:8@3>small:3"


@pytest.mark.parametrize(
    "changes",
    [
        {"make": "table", "network": "eagle3"},
        {"make": "table", "first": "small:3"},
        {"arms": ("plain", "small:9")},
        {"places": 0},
        {"costs": "an abacus"},
        {"traces": Path("nowhere")},
    ],
)
def test_what_cannot_be_is_told_with_a_remedy(
    args: ServingTrainArgs, changes: dict[str, object]
) -> None:
    with pytest.raises(DraftgymError) as refused:
        train_serving(replace(args, **changes))  # type: ignore[arg-type]
    assert refused.value.remedy


def test_sizes_reach_the_number_of_places() -> None:
    assert [sizes_up_to(places) for places in (1, 8, 12)] == [[1], [1, 2, 4, 8], [1, 2, 4, 8, 12]]
