"""The spaces that every router environment shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from draftgym.decoding.arms import Arm
from draftgym.decoding.observation import signal_names


def router_spaces(arms: Sequence[Arm], hidden: int) -> tuple[spaces.Dict, spaces.Discrete]:
    """Observation and action space.

    Args:
        arms: What can be chosen.
        hidden: Width of the target's hidden state, d.
    """
    observation: dict[str, spaces.Space[Any]] = {
        "signals": spaces.Box(0.0, np.inf, (len(signal_names(arms)),), np.float32),
        "hidden": spaces.Box(-np.inf, np.inf, (hidden,), np.float32),
    }
    return spaces.Dict(observation), spaces.Discrete(len(arms))
