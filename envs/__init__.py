"""Gymnasium environments around real decoding. Importing this package registers them.

* `draftgym/Router-v0` - `RouterEnv`: which drafter and how many tokens, each round.
* `draftgym/RouterMeasured-v0` - the same rewarded by wall-clock; its spec says nondeterministic.
* `draftgym/RouterReplay-v0` - `RouterReplayEnv`: the same rounds from traces, without a model.
* `draftgym/Scheduler-v0` - `SchedulerEnv`: how many tokens each of many users drafts, each round.
* `draftgym/SchedulerBelief-v0` - `SchedulerBeliefEnv`: what acceptance a closed form is to expect.
* `draftgym/SchedulerShares-v0` - `SchedulerSharesEnv`: the band is the agent's to divide as well.
"""

from gymnasium.envs.registration import register

from envs.replay import RouterReplayEnv
from envs.router import RouterEnv
from envs.scheduler import SchedulerBeliefEnv, SchedulerEnv, SchedulerSharesEnv

__all__ = [
    "RouterEnv",
    "RouterReplayEnv",
    "SchedulerBeliefEnv",
    "SchedulerEnv",
    "SchedulerSharesEnv",
]

register(id="draftgym/Router-v0", entry_point="envs.router:RouterEnv")
register(
    id="draftgym/RouterMeasured-v0",
    entry_point="envs.router:RouterEnv",
    kwargs={"latency": "measured"},
    nondeterministic=True,
)
register(id="draftgym/RouterReplay-v0", entry_point="envs.replay:RouterReplayEnv")
for _name in ("Scheduler", "SchedulerBelief", "SchedulerShares"):
    register(
        id=f"draftgym/{_name}-v0",
        entry_point=f"envs.scheduler:{_name}Env",
        max_episode_steps=256,
    )
