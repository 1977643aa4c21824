"""Steps a live router environment and its replay side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from draftgym.envs.router.live import RouterEnv
from draftgym.envs.router.replay import RouterReplayEnv
from draftgym.rollouts.prompts.sets import Prompt
from tests.traces import NOISE_SEED


def play_alike(
    live: RouterEnv, replay: RouterReplayEnv, prompt: Prompt, actions: int, seed: int
) -> list[dict[str, Any]]:
    """Takes random actions in both until the text ends; all that they tell must be the same.

    Args:
        live: Decodes.
        replay: Plays its traces.
        prompt: Which text.
        actions: How many there are.
        seed: Of the actions.

    Returns:
        What was observed before every step, and at the end.
    """
    rng = np.random.default_rng(seed)
    options = {"prompt": prompt.question_id, "noise_seed": NOISE_SEED}
    ours, theirs = live.reset(options=options)[0], replay.reset(options=options)[0]
    seen: list[dict[str, Any]] = [ours]
    finished = False
    while not finished:
        _assert_alike(ours, theirs)
        action = rng.integers(actions)
        ours, reward, finished, _, info = live.step(action)
        theirs, replayed_reward, replay_finished, _, replay_info = replay.step(action)
        for name in ("tokens", "committed", "arm"):
            assert info[name] == replay_info[name]
        assert info["target_steps"] == pytest.approx(replay_info["target_steps"])
        assert reward == pytest.approx(replayed_reward)
        assert finished == replay_finished
        seen.append(ours)
    _assert_alike(ours, theirs)
    return seen


def _assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in ("signals", "hidden"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
