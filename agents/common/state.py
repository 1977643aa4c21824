"""What a run needs beside SB3's agent to go on as if it had never stopped.

It lies in the agent's own file (`model.zip`, which SB3 reads as ever), so that both are of one
moment: replay buffer, generators of random numbers, and where the episodes stand.
"""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer

STATE = "draftgym.pickle"
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""What a replay buffer remembers, by the names of SB3."""


def write_agent(agent: Any, path: Path, episodes: Any, with_buffer: bool) -> None:
    """Writes an agent with what it needs to go on.

    Args:
        agent: SB3's.
        path: The file.
        episodes: Where the episodes stand; None where a resumed run begins new ones.
        with_buffer: Whether to write what the replay buffer remembers (megabytes).
    """
    with path.open("wb") as file:
        agent.save(file)
    buffer = getattr(agent, "replay_buffer", None) if with_buffer else None
    state = {
        "episodes": episodes,
        "random": _generators(agent),
        "buffer": None if buffer is None else _remembered(buffer),
    }
    with (
        zipfile.ZipFile(path, "a") as archive,
        archive.open(STATE, "w", force_zip64=True) as entry,
    ):
        pickle.dump(state, entry, protocol=pickle.HIGHEST_PROTOCOL)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_agent` wrote beside the agent; nothing in files of before 0.3."""
    with zipfile.ZipFile(path) as archive:
        if STATE not in archive.namelist():
            return {}
        with archive.open(STATE) as entry:
            state: dict[str, Any] = pickle.load(entry)
            return state


def restore_buffer(agent: Any, remembered: dict[str, Any]) -> None:
    """Fills an agent's replay buffer with what it remembered."""
    buffer: Any = agent.replay_buffer
    for name in ARRAYS:
        mine, theirs = getattr(buffer, name), remembered[name]
        for target, value in zip(_arrays(mine), _arrays(theirs), strict=True):
            target[: len(value)] = value
    buffer.pos, buffer.full = remembered["pos"], remembered["full"]


def restore_generators(agent: Any, generators: dict[str, Any]) -> None:
    """Lets everything random go on where it stopped."""
    random.setstate(generators["python"])
    np.random.set_state(generators["numpy"])
    torch.set_rng_state(generators["torch"])
    agent.action_space.np_random.bit_generator.state = generators["actions"]


def _generators(agent: Any) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "actions": agent.action_space.np_random.bit_generator.state,
    }


def _remembered(buffer: ReplayBuffer) -> dict[str, Any]:
    """The rounds that there are, without the empty places."""
    size = buffer.size()
    kept: dict[str, Any] = {"pos": buffer.pos, "full": buffer.full}
    for name in ARRAYS:
        value = getattr(buffer, name)
        kept[name] = (
            {key: one[:size] for key, one in value.items()}
            if isinstance(value, dict)
            else value[:size]
        )
    return kept


def _arrays(value: Any) -> list[Any]:
    return [value[key] for key in sorted(value)] if isinstance(value, dict) else [value]
