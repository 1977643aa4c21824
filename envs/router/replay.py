"""The router environment over traces: the same rounds without a model, thousands a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.given import check_texts
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.options import check_options
from draftgym.envs.reward import Reward, RoundReward, restart
from draftgym.envs.router.base import RoundsEnv, TextOrder, router_spaces
from draftgym.envs.vector import ArrayVectorEnv, Facts, Seeds
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.replay.two_stage import TwoStageReplay
from draftgym.rollouts.traces.file import as_traces
from draftgym.rollouts.traces.trace import TraceSet

OPTIONS = ("prompt", "noise_seed")
"""Those of live decoding; noise is the traces', so that its seed changes nothing."""


class RouterReplayEnv(RoundsEnv):
    """`draftgym/Router-v0` replayed from traces of real decoding.

    ## Description
    The target wrote every text once, and every arm was asked at every position what it would have
    drafted there (`draftgym collect`). A policy cannot change the text, so these
    counterfactuals hold the rounds of any policy: what is committed, and what is observed, is what
    live decoding gives, token for token. Only time is modelled: by the cost model that was measured
    with the traces.

    `gymnasium.make_vec` steps many episodes as array operations (`RouterReplayVectorEnv`);
    `draftgym.agents.common.vec_env` hands these to Stable-Baselines3.

    ## Action Space
    `Discrete(n)`, the index of an arm, as in `draftgym/Router-v0`.

    ## Observation Space
    `Dict(signals, hidden)`, as in `draftgym/Router-v0` (`draftgym.envs.router.live.RouterEnv` has
    the table). Over traces that others published `hidden` has no entries, and entropy, margin and
    top-1 probability are always 0: nobody told them.

    ## Rewards
    `committed - latency_price * target steps`, as in `draftgym/Router-v0`.

    ## Starting State
    A text drawn with the environment's seed, its first token written.
    `reset(options={"prompt": question_id})` names one. Texts of a single token have no round and
    are left out. A seed also restarts the running price.

    ## Episode End
    Terminated where the text ends. There is no truncation.

    ## Arguments
    * `traces`: a folder of traces, or a loaded `TraceSet`.
    * `arms`: list of arm texts; default: all traced arms and `plain`.
    * `latency_price`: the knob between tokens and time; `goodput` for the running speed.
    * `cost_model`: a `CostModel` to use instead of the traces' own.
    * `render_mode`: `ansi` renders where the episode is.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> env = gym.make("draftgym/RouterReplay-v0", traces="runs/traces")  # doctest: +SKIP
    >>> envs = gym.make_vec(  # doctest: +SKIP
    ...     "draftgym/RouterReplay-v0", num_envs=512, traces="runs/traces"
    ... )
    ```

    ## Version History
    * v0: first version
    """

    levels: tuple[float, ...] = ()

    def __init__(
        self,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        latency_price: float | str = 1.0,
        cost_model: CostModel | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.replay = _replay(traces, arms, 1, cost_model, self.levels)
        texts, choices = self.replay.texts, self.replay.choices
        names, hidden = [text.question_id for text in texts], texts[0].hidden.shape[1]
        super().__init__(choices, names, hidden, latency_price, render_mode, self.levels)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins the next text; see the class for `options`."""
        index = self._next_text(seed, options or {}, *OPTIONS)
        self.replay.start(np.zeros(1, dtype=np.int64), np.array([index]))
        self.text, self.position, self.running = self.replay.texts[index], 0, True
        return self._observe(), {"question_id": self.text.question_id}

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one round with arm `action`."""
        played = self.replay.step(np.array([self._index_of(action)]))
        index = int(played.arms[0])
        committed, steps = int(played.committed[0]), float(played.steps[0])
        start = self.position + 1
        self.position += committed
        info = {
            "arm": str(self.arms[index]),
            "committed": committed,
            "tokens": self.text.tokens[start : start + committed].tolist(),
            "target_steps": steps,
        }
        reward, done = self._rewarded(index, committed, steps), bool(played.done[0])
        self.running = not done
        return self._observe(), reward, done, False, info

    def render(self) -> str | None:  # type: ignore[override]
        """Prompt and position, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        return f"{self.text.question_id}: {self.position + 1} of {len(self.text.tokens)} tokens"

    def _observe(self) -> Observation:
        return {name: value[0] for name, value in self.replay.observe().items()}


class RouterReplayVectorEnv(ArrayVectorEnv):
    """`draftgym/RouterReplay-v0` many times, stepped together: what `gymnasium.make_vec` makes.

    Each episode is one of `RouterReplayEnv`, which has the sections on actions, observations and
    rewards. A price of `goodput` is the speed of all episodes together. Information is that of
    single environments without `arm` and `tokens`.

    `reset(seed=7)` deals the texts to all episodes from one shuffled order, so that each is played
    once before any comes again. `reset(seed=[7, 8, ...])` gives every episode the order that a
    single environment has with that seed. Seeds also restart the running price.

    Args:
        num_envs: Episodes, n.
        traces, arms, latency_price, cost_model: See `RouterReplayEnv`.

    Attributes:
        replay: The episodes.
        reward: What rounds are worth; see `RoundsEnv`.
        played: Rounds by arm since `forget_counts` `[A]`.
        tokens: Tokens committed since then.
        steps: Their time in target steps.

    Raises:
        DraftgymError: An arm was not traced, or no text has a round to play.
    """

    levels: tuple[float, ...] = ()

    def __init__(
        self,
        num_envs: int,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        latency_price: float | str = 1.0,
        cost_model: CostModel | None = None,
    ) -> None:
        self.replay = _replay(traces, arms, num_envs, cost_model, self.levels)
        self.reward: Reward = RoundReward(latency_price)
        texts, chosen = self.replay.texts, self.replay.choices
        self._ids = np.array([text.question_id for text in texts], object)
        self._shared = TextOrder(self._ids.tolist(), shared=True)
        self._own: list[tuple[TextOrder, np.random.Generator]] = []
        self.forget_counts()
        hidden = texts[0].hidden.shape[1]
        super().__init__(num_envs, *router_spaces(chosen, hidden, self.levels))

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.played = np.zeros(len(self.replay.choices), np.int64)
        self.tokens = self.steps = 0.0

    def snapshot(self) -> dict[str, Any]:
        """Where all episodes stand, to be kept; traces are left out."""
        drawn = self._np_random, self._np_random_seed
        told = {"orders": (self._shared, self._own), "rng": drawn, "reward": self.reward}
        return told | {"replay": self.replay.snapshot(), "running": self._running}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts the episodes where these stand; no reset is needed."""
        self._shared, self._own = snapshot["orders"]
        self._np_random, self._np_random_seed = snapshot["rng"]
        self.reward, self._running = snapshot["reward"], snapshot["running"]
        self.replay.restore(snapshot["replay"])

    def _seed(self, seed: Seeds, mask: NDArray[np.bool_]) -> None:
        names = self._shared.names
        restart(self.reward)
        if isinstance(seed, int):
            self._np_random, self._np_random_seed = np_random(seed)
            self._shared, self._own = TextOrder(names, shared=True), []
            return
        if not self._own:
            self._own = [(TextOrder(names), np_random()[0]) for _ in range(self.num_envs)]
        for index, one in enumerate(seed):
            if one is not None and mask[index]:
                self._own[index] = TextOrder(names), np_random(one)[0]

    def _begin(self, episodes: NDArray[np.int64], options: dict[str, Any]) -> Facts:
        check_options(options, *OPTIONS)
        orders = self._own or [(self._shared, self.np_random)] * self.num_envs
        dealt = (orders[episode] for episode in episodes.tolist())
        texts = np.array([order.next(rng, options) for order, rng in dealt])
        self.replay.start(episodes, texts)
        return {"question_id": self._ids[self.replay.text_of]}

    def _observe(self, episodes: NDArray[np.int64] | None = None) -> Observation:
        return self.replay.observe(episodes)

    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Facts]:
        played = self.replay.step(actions)
        committed, steps, never = played.committed, played.steps, np.zeros(self.num_envs, bool)
        self.played += np.bincount(played.arms[played.played], minlength=len(self.played))
        self.tokens += float(committed.sum())
        self.steps += float(steps.sum())
        facts = {"committed": committed, "target_steps": steps}
        return self.reward(committed, steps, played.arms), played.done, never, facts


def _replay(
    traces: str | Path | TraceSet,
    arms: Sequence[str] | None,
    count: int,
    cost_model: CostModel | None,
    levels: Sequence[float],
) -> Replay:
    """Episodes over traces; by default with every traced arm and `plain`."""
    read = as_traces(traces)
    if arms:
        check_texts(arms, "arms", "eagle3:4")
    chosen = [parse_arm(arm) for arm in arms or (*read.origin.arms, PLAIN)]
    if levels:
        return TwoStageReplay(read, chosen, count, cost_model, levels)
    return Replay(read, chosen, count, cost_model)
