"""The environments by the names that `gymnasium.make` knows.

`import draftgym` registers them; `gym.make("draftgym:draftgym/Router-v0")` does both at once
(gymnasium reads no entry points since its version 1.0).
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

GYMNASIUM = "gymnasium.envs.registration"


def register_environments() -> None:
    """Registers every environment of `draftgym.envs` with gymnasium; once is enough."""
    from gymnasium.envs.registration import register, registry

    if "draftgym/Router-v0" in registry:
        return
    router, scheduler = "draftgym.envs.router", "draftgym.envs.scheduler"
    register(id="draftgym/Router-v0", entry_point=f"{router}.live:RouterEnv")
    register(
        id="draftgym/RouterMeasured-v0",
        entry_point=f"{router}.live:RouterEnv",
        kwargs={"latency": "measured"},
        nondeterministic=True,
    )
    register(
        id="draftgym/RouterReplay-v0",
        entry_point=f"{router}.replay:RouterReplayEnv",
        vector_entry_point=f"{router}.replay:RouterReplayVectorEnv",
    )
    twice = f"{router}.two_stage"
    register(id="draftgym/Router-v1", entry_point=f"{twice}:TwoStageRouterEnv")
    register(
        id="draftgym/RouterReplay-v1",
        entry_point=f"{twice}:TwoStageReplayEnv",
        vector_entry_point=f"{twice}:TwoStageReplayVectorEnv",
    )
    for name in ("Scheduler", "SchedulerBelief", "SchedulerShares", "SchedulerTilt"):
        register(
            id=f"draftgym/{name}-v0",
            entry_point=f"{scheduler}.env:{name}Env",
            vector_entry_point=f"{scheduler}.vector:{name}VectorEnv",
            max_episode_steps=256,
        )
    serving = "draftgym.envs.serving"
    register(
        id="draftgym/Serving-v0",
        entry_point=f"{serving}.env:ServingEnv",
        vector_entry_point=f"{serving}.vector:ServingVectorEnv",
    )


def register_with_gymnasium() -> None:
    """Registers now if gymnasium is loaded, else as soon as it is.

    A program that only decodes must not load gymnasium, and `import draftgym` cannot know.
    """
    if GYMNASIUM in sys.modules:
        register_environments()
    else:
        sys.meta_path.insert(0, _WhenGymnasiumLoads())


class _WhenGymnasiumLoads(MetaPathFinder):
    """Finds gymnasium's registry as Python does, and registers once it has been executed."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != GYMNASIUM:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_register(module: ModuleType) -> None:
                execute(module)
                register_environments()

            spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec
