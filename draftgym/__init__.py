"""draftgym: Gymnasium environments around real speculative decoding.

Importing it registers the environments (`gym.make("draftgym/Router-v0")`). What most programs need
is here; the rooms behind it (`draftgym.decoding`, `draftgym.envs`, ...) have the rest.

    >>> from draftgym import SpeculativeDecoder, load_drafters, load_target, make_policy
    >>> target = load_target("smollm2-135m")
    >>> drafters = load_drafters(target)
    >>> decoder = SpeculativeDecoder(target, drafters, make_policy("eagle3", drafters, target))
    >>> decoder.generate("Why is the sky blue?", max_new_tokens=64).acceptance_length
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from draftgym.registration import register_environments, register_with_gymnasium

if TYPE_CHECKING:
    from draftgym.agents.router.args import RouterArgs
    from draftgym.agents.router.train import train_router
    from draftgym.agents.scheduler.args import SchedulerArgs
    from draftgym.agents.scheduler.train import train_scheduler
    from draftgym.decoding.arms import Arm, parse_arm
    from draftgym.decoding.decoder import SpeculativeDecoder
    from draftgym.decoding.drafting import Drafter
    from draftgym.decoding.errors import DraftgymError
    from draftgym.decoding.model.target import Target, load_target
    from draftgym.decoding.text.chat import Chat
    from draftgym.decoding.text.stops import Stops
    from draftgym.decoding.verify.sampling import SamplingSettings
    from draftgym.drafters.loading import load_drafters
    from draftgym.policies.base import Policy
    from draftgym.policies.registry import make_policy
    from draftgym.rollouts.traces.collect import CollectArgs, collect

__version__ = "0.4.0"

# torch's OpenMP (GNU's) reads this once, when torch is loaded. By default a thread without work
# spins for milliseconds, on a core that OpenVINO's threads wait for.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Loaded when first used: a program that decodes never imports a training library.
_HOME = {
    "Arm": "decoding.arms",
    "Chat": "decoding.text.chat",
    "CollectArgs": "rollouts.traces.collect",
    "Drafter": "decoding.drafting",
    "DraftgymError": "decoding.errors",
    "Policy": "policies.base",
    "RouterArgs": "agents.router.args",
    "SamplingSettings": "decoding.verify.sampling",
    "SchedulerArgs": "agents.scheduler.args",
    "SpeculativeDecoder": "decoding.decoder",
    "Stops": "decoding.text.stops",
    "Target": "decoding.model.target",
    "collect": "rollouts.traces.collect",
    "load_drafters": "drafters.loading",
    "load_target": "decoding.model.target",
    "make_policy": "policies.registry",
    "parse_arm": "decoding.arms",
    "train_router": "agents.router.train",
    "train_scheduler": "agents.scheduler.train",
}

__all__ = [
    "Arm",
    "Chat",
    "CollectArgs",
    "Drafter",
    "DraftgymError",
    "Policy",
    "RouterArgs",
    "SamplingSettings",
    "SchedulerArgs",
    "SpeculativeDecoder",
    "Stops",
    "Target",
    "collect",
    "load_drafters",
    "load_target",
    "make_policy",
    "parse_arm",
    "register_environments",
    "train_router",
    "train_scheduler",
]

register_with_gymnasium()


def __getattr__(name: str) -> Any:
    if name == "transformers":  # a module; with the real one behind it, it takes seconds to import
        return importlib.import_module("draftgym.transformers")
    if name not in _HOME:
        raise AttributeError(f"module 'draftgym' has no attribute {name!r}")
    return getattr(importlib.import_module(f"draftgym.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
