"""An exported DQN router explores as SB3's agent does: any arm at its rate, else the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from draftgym.agents.common.settings import RouterDQN
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import RouterTrainer, replayed_experience
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.policies.routers.learned import load_learned_policy
from tests.tiny import ARMS
from tests.traces import tiny_traces


def test_an_exported_dqn_explores_as_sb3s(
    target: Target, drafters: dict[str, Drafter], tmp_path: Path
) -> None:
    dqn = RouterDQN(n_envs=4, buffer_size=64, learning_starts=8, batch_size=8, width=16)
    args = RouterArgs(run=tmp_path, algorithm="dqn", arms=ARMS, validation=0.5, dqn=dqn)
    experience = replayed_experience(tiny_traces(target, drafters, max_new_tokens=24), args)
    trainer = RouterTrainer(args, experience, tmp_path)
    trainer.agent.exploration_rate = 0.4
    trainer.export(trainer.policy(), None)
    seen = experience.env.reset()
    assert isinstance(seen, dict)
    one = {name: value[0] for name, value in seen.items()}
    many = {name: np.repeat(value[None], 20_000, axis=0) for name, value in one.items()}
    best, _ = trainer.agent.predict(one, deterministic=True)
    drawn, _ = load_learned_policy(tmp_path / "policy", target).predict(many)
    shares = np.bincount(drawn, minlength=len(ARMS)) / len(drawn)
    wanted = np.full(len(ARMS), 0.4 / len(ARMS))
    wanted[int(best)] += 0.6
    np.testing.assert_allclose(shares, wanted, atol=0.015)
