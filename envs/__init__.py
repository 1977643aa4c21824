"""Gymnasium environments around real decoding. Importing this package registers them.

* `draftgym/Router-v0` - `RouterEnv`: which drafter and how many tokens, each round.
* `draftgym/RouterMeasured-v0` - the same rewarded by wall-clock; its spec says nondeterministic.
* `draftgym/RouterReplay-v0` - `RouterReplayEnv`: the same rounds from traces, without a model.
"""

from gymnasium.envs.registration import register

from envs.replay import RouterReplayEnv
from envs.router import RouterEnv

__all__ = ["RouterEnv", "RouterReplayEnv"]

register(id="draftgym/Router-v0", entry_point="envs.router:RouterEnv")
register(
    id="draftgym/RouterMeasured-v0",
    entry_point="envs.router:RouterEnv",
    kwargs={"latency": "measured"},
    nondeterministic=True,
)
register(id="draftgym/RouterReplay-v0", entry_point="envs.replay:RouterReplayEnv")
