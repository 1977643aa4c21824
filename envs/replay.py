"""The router environment over traces: the same rounds without a model, thousands a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsInt

import gymnasium as gym
import numpy as np

from decoding.arms import PLAIN, Arm, parse_arm
from decoding.errors import DraftgymError
from decoding.latency import CostModel
from decoding.observation import Observation
from envs.reward import RoundReward
from envs.spaces import router_spaces
from rollouts.replay import Replay
from rollouts.trace import TraceSet
from rollouts.trace_file import read_traces


class RouterReplayEnv(gym.Env[Observation, np.int64]):
    """`draftgym/Router-v0` replayed from traces of real decoding.

    ## Description
    The target wrote every text once, and every arm was asked at every position what it would have
    drafted there (`python -m rollouts.collect`). A policy cannot change the text, so these
    counterfactuals hold the rounds of any policy: what is committed, and what is observed, is what
    live decoding gives, token for token. Only time is modelled: by the cost model that was measured
    with the traces.

    To train with Stable-Baselines3, `agents.replay_vec_env.ReplayVecEnv` steps many episodes as
    array operations.

    ## Action Space
    `Discrete(n)`, the index of an arm, as in `draftgym/Router-v0`.

    ## Observation Space
    `Dict(signals, hidden)`, as in `draftgym/Router-v0` (`envs.router.RouterEnv` has the table).

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

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": ["ansi"],
        "render_fps": 10,
    }

    def __init__(
        self,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        latency_price: float | str = 1.0,
        cost_model: CostModel | None = None,
        render_mode: str | None = None,
    ) -> None:
        read = traces if isinstance(traces, TraceSet) else read_traces(Path(traces))
        self.arms: tuple[Arm, ...] = tuple(map(parse_arm, arms or (*read.origin.arms, PLAIN)))
        self.replay = Replay(read, self.arms, 1, cost_model)
        self.reward = RoundReward(latency_price)
        self.render_mode = render_mode
        hidden = self.replay.texts[0].hidden.shape[1]
        self.observation_space, self.action_space = router_spaces(self.arms, hidden)  # type: ignore[assignment]
        self._order: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins the next text; see the class for `options`."""
        super().reset(seed=seed)
        if seed is not None:
            self._order = []
        index = self._next_text(options or {})
        self.replay.start(np.zeros(1, dtype=np.int64), np.array([index]))
        self.text, self.position = self.replay.texts[index], 0
        return self._observe(), {"question_id": self.text.question_id}

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one round with arm `action`."""
        index = int(action)
        if not self.action_space.contains(index):
            raise ValueError(f"action {action!r} is not one of the {len(self.arms)} arms")
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
        reward = float(self.reward([committed], [steps])[0])
        return self._observe(), reward, bool(played.done[0]), False, info

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and position, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        return f"{self.text.question_id}: {self.position + 1} of {len(self.text.tokens)} tokens"

    def _observe(self) -> Observation:
        return {name: value[0] for name, value in self.replay.observe().items()}

    def _next_text(self, options: dict[str, Any]) -> int:
        wanted = options.get("prompt")
        if wanted is not None:
            for index, text in enumerate(self.replay.texts):
                if text.question_id == str(wanted):
                    return index
            raise DraftgymError(
                f"no trace of question_id {wanted!r}", "name one of the traced prompts"
            )
        if not self._order:  # every text once, in a new order, before any comes again
            self._order = self.np_random.permutation(len(self.replay.texts)).tolist()
        return int(self._order.pop())
