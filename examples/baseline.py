"""Step an environment with a baseline of your own, beside every arm alone.

    $ draftgym collect --limit-per-category 4 --out runs/traces
    $ python examples/baseline.py --traces runs/traces

Speeds are over plain decoding, by the cost model in the traces.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

import draftgym  # noqa: F401 - registers the environments
from draftgym.decoding.observers.observation import signal_names


def speed(env: Any, choose: Callable[[Any], int], episodes: int) -> float:
    """Tokens over the time they took, in steps of the target, over the same texts each time."""
    tokens = steps = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        done = False
        while not done:
            observation, _, done, _, info = env.step(choose(observation))
            tokens, steps = tokens + info["committed"], steps + info["target_steps"]
    return tokens / steps


def main(traces: Path = Path("runs/traces"), episodes: int = 20) -> None:
    """Compares a rule with the arms: copy where the text repeats itself, else the best other arm.

    Args:
        traces: A folder that `draftgym collect` wrote.
        episodes: How many texts.
    """
    env: Any = gym.make("draftgym/RouterReplay-v0", traces=traces)
    arms = env.unwrapped.arms
    alone = {i: speed(env, lambda _, i=i: i, episodes) for i in range(len(arms))}
    for i, value in alone.items():
        print(f"{arms[i]!s:12} {value:.3f}")
    copying = max((i for i in alone if arms[i].drafter == "ngram"), key=alone.__getitem__)
    other = max((i for i in alone if arms[i].drafter != "ngram"), key=alone.__getitem__)
    repeat = signal_names(arms).index("repeat")

    def rule(observation: Any) -> int:
        return copying if observation["signals"][repeat] > 0.5 else other

    print(f"copy repeats {speed(env, rule, episodes):.3f} ({arms[copying]}, else {arms[other]})")


if __name__ == "__main__":
    tyro.cli(main)
