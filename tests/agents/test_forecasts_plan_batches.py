"""A forecast learns what arms commit from what can be seen, and batches are planned with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftgym.agents.serving.fit import ForecastFitting, fit_forecast
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule
from draftgym.policies.serving.tokens import TokenForecast, load_forecast, save_forecast
from tests.handmade_served import ARMS, served_traces

FITTING = ForecastFitting(examples=6_000, epochs=6, batch_size=256, width=32)
TRACES = served_traces(24, 60)
SEEDS = range(4)


def servers(look_up: bool = True, arms: list[str] = ARMS) -> Load:
    return make_load(TRACES, arms, ServerSettings(4, 48, AtOnce(), look_up=look_up), len(SEEDS))


@pytest.fixture(scope="module")
def forecast() -> TokenForecast:
    return fit_forecast(servers(), FITTING, seed=1)


def test_a_forecast_beats_every_arm_and_not_the_oracle(forecast: TokenForecast) -> None:
    load = servers()
    planned = play(load, PlannedPlayer(forecast, load), SEEDS)
    knowing = play(load, PlannedPlayer(None, load), SEEDS)
    fixed = [play(load, RulePlayer(FixedRule(arm), load), SEEDS).goodput for arm in load.texts.arms]
    assert max(fixed) * 1.05 < planned.goodput < knowing.goodput
    np.testing.assert_array_equal(planned.tokens, knowing.tokens)


def test_the_same_seed_fits_the_same_forecast(forecast: TokenForecast) -> None:
    again = fit_forecast(servers(), FITTING, seed=1)
    for name, weights in forecast.network.state_dict().items():
        np.testing.assert_array_equal(again.network.state_dict()[name], weights)


def test_what_others_are_does_not_change_a_forecast(forecast: TokenForecast) -> None:
    requests = np.random.default_rng(0).uniform(size=(2, 3, len(forecast.features)))
    requests = requests.astype(np.float32)
    deciding = np.array([[True, True, False], [True, False, True]])
    together = forecast.tokens(requests, deciding)
    alone = forecast.tokens(requests[:1, :1], deciding[:1, :1])
    np.testing.assert_allclose(together[0, 0], alone[0, 0], rtol=1e-6)
    assert (together[~deciding] == 1).all() and (together >= 1).all()


def test_drafts_of_unknown_length_cannot_be_planned(forecast: TokenForecast) -> None:
    for load, word in [
        (servers(look_up=False), "ngram"),
        (servers(arms=ARMS[:3]), "a forecast of"),
    ]:
        with pytest.raises(DraftgymError, match=word) as refused:
            PlannedPlayer(forecast, load)
        assert refused.value.remedy
    PlannedPlayer(None, servers(look_up=False))  # who knows everything need not look


def test_a_forecast_is_kept_in_a_folder(forecast: TokenForecast, tmp_path: Path) -> None:
    save_forecast(forecast, TRACES.origin, tmp_path, {"by": "hand"})
    again = load_forecast(tmp_path, TRACES.origin)
    load = servers()
    served = [play(load, PlannedPlayer(one, load), SEEDS) for one in (forecast, again)]
    np.testing.assert_array_equal(served[0].seconds, served[1].seconds)
    other = replace(TRACES.origin, target_fingerprint="0" * 32)
    with pytest.raises(DraftgymError, match="target"):
        load_forecast(tmp_path, other)
