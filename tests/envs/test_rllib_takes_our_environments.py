"""RLlib trains on our environments as they are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests.handmade.traces import handmade_traces


@pytest.mark.skipif("DRAFTGYM_RAY_TESTS" not in os.environ, reason="DRAFTGYM_RAY_TESTS asks for it")
@pytest.mark.filterwarnings("ignore")
def test_rllib_trains_ppo_on_replayed_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for name in ("tree", "lz4", "ormsgpack", "tensorboardX"):
        pytest.importorskip(name, reason="RLlib is not installed (see docs/scaling.md)")
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import FlattenObservations

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    rng = np.random.default_rng(0)
    traces = handmade_traces(
        {
            "eagle3:4": lambda signals, hidden: rng.geometric(0.3, len(signals)),
            "dflash:6": lambda signals, hidden: np.ones(len(signals), np.int64),
        },
        texts=5,
        length=20,
    )
    config: Any = (
        PPOConfig()
        .environment("draftgym/RouterReplay-v0", env_config={"traces": traces})
        .env_runners(
            num_env_runners=0,
            env_to_module_connector=lambda env=None, spaces=None, device=None: (
                FlattenObservations()
            ),
        )
        .training(train_batch_size=128, minibatch_size=64, num_epochs=2)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
        assert results[-1]["env_runners"]["num_env_steps_sampled_lifetime"] >= 3 * 128
        assert np.isfinite(results[-1]["env_runners"]["episode_return_mean"])
    finally:
        algorithm.stop()
        ray.shutdown()
