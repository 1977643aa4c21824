"""The space of what is observed of a server (`draftgym.policies.serving.observation`)."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from draftgym.envs.load.texts import ServedTexts
from draftgym.policies.serving.observation import request_features, server_features

BOUND = 1e6


def serving_observation_space(texts: ServedTexts, places: int) -> spaces.Dict:
    """Space of an observation of one server.

    Args:
        texts: What is served.
        places: K.
    """
    numbers = len(request_features(texts.arms, texts.lookups))
    return spaces.Dict(
        {
            "requests": spaces.Box(0.0, BOUND, (places, numbers), np.float32),
            "server": spaces.Box(-BOUND, BOUND, (len(server_features(texts.arms)),), np.float32),
        }
    )
