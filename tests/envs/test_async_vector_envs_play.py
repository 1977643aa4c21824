"""Asynchronous vector environments of live decoding play, forked or spawned, and never hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAY = """
import gymnasium as gym
import torch

import draftgym
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.model.precision import usable_cores
from draftgym.drafters.ngram.drafter import NgramDrafter
from tests.tiny import PROMPTS, numbered_target, tiny_target

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.randn(700, 700) @ torch.randn(700, 700)  # torch has made its threads
    torch.randn(1_000_000).exp().sum()
    curve = Curve((1, 2), (1.0, 1.0))
    flat = CostModel({}, {16: curve}, {"ngram": curve}, {"ngram": curve}, {})
    target = tiny_target(hidden_size=256, intermediate_size=2048, vocab_size=40_000, head_dim=64)
    for context, count in (("fork", 2), ("spawn", 1)):  # what is spawned imports torch again
        envs = gym.make_vec(
            "draftgym/Router-v0",
            num_envs=count,
            vectorization_mode="async",
            vector_kwargs={"context": context},
            target=numbered_target(target),
            drafters={"ngram": NgramDrafter(shortest=1)},
            arms=["ngram:4", "plain"],
            prompts=PROMPTS,
            max_new_tokens=9,
            latency=flat,
        )
        envs.reset(seed=3)
        total = sum(float(envs.step(envs.action_space.sample())[1].sum()) for _ in range(4))
        envs.close()
        print(context, total == total, torch.get_num_threads(), usable_cores() >= 1, flush=True)
"""


@pytest.mark.slow
def test_an_async_vector_env_plays_after_torch_has_threads(tmp_path: Path) -> None:
    script = tmp_path / "play.py"
    script.write_text(PLAY)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,  # a hang would last for ever
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines() == ["fork True 2 True", "spawn True 2 True"]
