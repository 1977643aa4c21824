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
from draftgym.policies.serving.observation import observe
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule
from draftgym.policies.serving.tokens import TokenForecast, load_forecast, save_forecast
from tests.handmade.served import ARMS, served_traces

FITTING = ForecastFitting(examples=6_000, epochs=6, batch_size=256, width=32, dropout=0.0)
TRACES = served_traces(24, 60)
SEEDS = range(4)

pytestmark = pytest.mark.slow


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
    load = servers()
    load.reset([np.random.default_rng(seed) for seed in SEEDS])
    for step in range(12):
        together = forecast.tokens(load, load.options())
        requests, ids = observe(load)["requests"][load.deciding], load.ids[load.deciding]
        for at, (request, its) in enumerate(zip(requests, ids, strict=True)):
            alone = forecast.accepted(request[None], its[None])
            np.testing.assert_allclose(forecast.accepted(requests, ids)[at], alone[0], rtol=1e-5)
        assert (together[~load.deciding] == 1).all() and (together >= 1).all()
        load.step(np.full(load.shape, step % len(ARMS)))
    assert len(requests)


def test_longer_drafts_commit_more_and_never_more_than_they_draft(
    forecast: TokenForecast,
) -> None:
    load = servers()
    load.reset([np.random.default_rng(seed) for seed in SEEDS])
    for step in range(12):
        facts = load.options()
        tokens = forecast.tokens(load, facts)[load.deciding]
        drafted = facts.drafted[load.deciding]
        assert (tokens <= 1 + drafted).all() and (tokens[drafted == 0] == 1).all()
        chains = tokens[:, 1:-1]  # of one network, by length
        assert (np.diff(chains, axis=1) >= 0).all()
        load.step(np.full(load.shape, step % len(ARMS)))


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


def test_a_long_prompt_does_not_keep_a_network_from_drafting() -> None:
    played = []
    for prompt in (10, 100_000):  # encoding the latter takes longer than a draft can save
        texts = [replace(text, prompt_tokens=prompt) for text in TRACES.texts]
        load = make_load(replace(TRACES, texts=texts), ARMS, ServerSettings(1, 8, AtOnce()), 4)
        served = play(load, PlannedPlayer(None, load, 200.0), SEEDS)
        played.append(served.played[1:5].sum() / served.played.sum())
    assert played[1] > 0.9 * played[0] > 0
