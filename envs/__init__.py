"""Gymnasium environments around real decoding.

Rooms: `router`, `scheduler`, `serving`, and what they are about: `cell`, `radio`,
`load`.

| id | class | what a step is |
|---|---|---|
| `draftgym/Router-v0` | `RouterEnv` | which drafter and how many tokens, each round of decoding |
| `draftgym/RouterMeasured-v0` | `RouterEnv` | the same, rewarded by wall-clock (nondeterministic) |
| `draftgym/RouterReplay-v0` | `RouterReplayEnv` | the same rounds from traces, without a model |
| `draftgym/Router-v1` | `TwoStageRouterEnv` | the arm, and while it drafts, how sure it must be |
| `draftgym/RouterReplay-v1` | `TwoStageReplayEnv` | the same from traces |
| `draftgym/Scheduler-v0` | `SchedulerEnv` | how many tokens each of many users drafts |
| `draftgym/SchedulerBelief-v0` | `SchedulerBeliefEnv` | what acceptance to expect of each user |
| `draftgym/SchedulerTilt-v0` | `SchedulerTiltEnv` | that, and a residual on the optimal shares |
| `draftgym/SchedulerShares-v0` | `SchedulerSharesEnv` | draft lengths and shares of the band |
| `draftgym/Serving-v0` | `ServingEnv` | an arm for each request of a server's batch |

`gymnasium.make_vec` steps many episodes of those that play traces (`RouterReplay`,
the schedulers and `Serving`) as array operations: `RouterReplayVectorEnv`, `SchedulerVectorEnv`
and their siblings.
"""

from draftgym.envs.router.live import RouterEnv
from draftgym.envs.router.replay import RouterReplayEnv
from draftgym.envs.router.two_stage import TwoStageReplayEnv, TwoStageRouterEnv
from draftgym.envs.scheduler.env import (
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
    SchedulerTiltEnv,
)
from draftgym.envs.serving.env import ServingEnv

__all__ = [
    "RouterEnv",
    "RouterReplayEnv",
    "SchedulerBeliefEnv",
    "SchedulerEnv",
    "SchedulerSharesEnv",
    "SchedulerTiltEnv",
    "ServingEnv",
    "TwoStageReplayEnv",
    "TwoStageRouterEnv",
]
