"""The router environment over traces: the same rounds without a model, thousands a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsInt

import numpy as np

from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.observation import Observation
from draftgym.envs.router.base import RoundsEnv
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


class RouterReplayEnv(RoundsEnv):
    """`draftgym/Router-v0` replayed from traces of real decoding.

    ## Description
    The target wrote every text once, and every arm was asked at every position what it would have
    drafted there (`draftgym collect`). A policy cannot change the text, so these
    counterfactuals hold the rounds of any policy: what is committed, and what is observed, is what
    live decoding gives, token for token. Only time is modelled: by the cost model that was measured
    with the traces.

    To train with Stable-Baselines3, `draftgym.agents.router.vec_env.ReplayVecEnv` steps many
    episodes as array operations.

    ## Action Space
    `Discrete(n)`, the index of an arm, as in `draftgym/Router-v0`.

    ## Observation Space
    `Dict(signals, hidden)`, as in `draftgym/Router-v0` (`draftgym.envs.router.live.RouterEnv` has
    the table).

    ## Rewards
    `committed - latency_price * target steps`, as in `draftgym/Router-v0`.

    ## Starting State
    A text drawn with the environment's seed, its first token written.
    `reset(options={"prompt": question_id})` names one.

    ## Episode End
    Terminated where the text ends. There is no truncation.

    ## Arguments
    * `traces`: a folder of traces, or a loaded `TraceSet`.
    * `arms`: list of arm texts; default: all traced arms and `plain`.
    * `latency_price`: the knob between tokens and time; `goodput` for the running speed.
    * `cost_model`: a `CostModel` to use instead of the traces' own.
    * `render_mode`: `ansi` renders where the episode is.

    ```pycon
    >>> import gymnasium as gym
    >>> import envs
    >>> env = gym.make("draftgym/RouterReplay-v0", traces="runs/traces")  # doctest: +SKIP
    ```

    ## Version History
    * v0: first version
    """

    def __init__(
        self,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        latency_price: float | str = 1.0,
        cost_model: CostModel | None = None,
        render_mode: str | None = None,
    ) -> None:
        read = traces if isinstance(traces, TraceSet) else read_traces(Path(traces))
        chosen = [parse_arm(arm) for arm in arms or (*read.origin.arms, PLAIN)]
        self.replay = Replay(read, chosen, 1, cost_model)
        texts = self.replay.texts
        names, hidden = [text.question_id for text in texts], texts[0].hidden.shape[1]
        super().__init__(chosen, names, hidden, latency_price, render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins the next text; see the class for `options`."""
        index = self._next_text(seed, options)
        self.replay.start(np.zeros(1, dtype=np.int64), np.array([index]))
        self.text, self.position = self.replay.texts[index], 0
        return self._observe(), {"question_id": self.text.question_id}

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one round with arm `action`."""
        index = self._index_of(action)
        played = self.replay.step(np.array([index]))
        committed, steps = int(played.committed[0]), float(played.steps[0])
        start = self.position + 1
        self.position += committed
        info = {
            "arm": str(self.arms[index]),
            "committed": committed,
            "tokens": self.text.tokens[start : start + committed].tolist(),
            "target_steps": steps,
        }
        reward = self._rewarded(index, committed, steps)
        return self._observe(), reward, bool(played.done[0]), False, info

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and position, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        return f"{self.text.question_id}: {self.position + 1} of {len(self.text.tokens)} tokens"

    def _observe(self) -> Observation:
        return {name: value[0] for name, value in self.replay.observe().items()}
