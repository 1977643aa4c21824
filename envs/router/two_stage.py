"""The router environments with two decisions a round: which arm, and how sure it must be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, SupportsInt

from draftgym.decoding.arms import Arm
from draftgym.decoding.observers.observation import Observation
from draftgym.decoding.observers.two_stage import LEVELS, TwoStageObserver, decides_twice, variants
from draftgym.decoding.round import RoundRecord, draft, play_round
from draftgym.envs.router.live import RouterEnv
from draftgym.envs.router.replay import RouterReplayEnv, RouterReplayVectorEnv
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.replay.two_stage import with_free_lookup


class TwoStageRouterEnv(RouterEnv):
    """Speculative decoding in which the agent picks an arm, and then how sure it must be.

    ## Description
    As `draftgym/Router-v0`, but that observations know what is free, and that a round may take two
    steps. The first one chooses an arm. When that has begun to draft, the second one sees how
    likely it finds its best first token, and chooses a level: paths that are less likely are
    neither drafted further nor verified. An arm that drafts nothing, a graft, and a cascade whose
    first parts have something to offer take one step.

    ## Action Space
    `Discrete(max(arms, levels))`. In a first step it is the index of an arm, in a second step that
    of a level, which are the probabilities 0, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8. Beyond the last one
    they begin again at the first.

    ## Observation Space
    `Dict(signals, hidden)`, as in `draftgym/Router-v0`, with more entries of `signals` behind
    (`draftgym.decoding.observers.two_stage.two_stage_names` lists them all):

    | Observation | Min | Max |
    |-------------|-----|-----|
    | `match_*`: of what lookup would propose now: tokens that match / 4 | 0 | Inf |
    | `drafted_*`: of the same: tokens / 4 | 0 | Inf |
    | `first_*`: probability of its likeliest first token | 0 | 1 |
    | `expected_*`: sum of the probabilities of its paths / 4 | 0 | Inf |
    | `first_*` of any other drafter: the same of its last draft | 0 | 1 |
    | `second`: whether this is a second step | 0 | 1 |
    | `first`: then, probability of the arm's likeliest first token | 0 | 1 |
    | last n: then, one-hot of the arm | 0 | 1 |

    Where texts are sampled, probabilities are chances that drafter and target draw alike.

    ## Rewards
    As in `draftgym/Router-v0`, in the step that plays the round; 0 in a first step that waits for
    a second one. Lookup that is asked for the sake of the observation is not charged: it takes
    some thousandths of a target step.

    ## Starting State
    As in `draftgym/Router-v0`.

    ## Episode End
    As in `draftgym/Router-v0`.

    ## Arguments
    As of `draftgym/Router-v0`.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> env = gym.make("draftgym/Router-v1")  # doctest: +SKIP
    ```

    ## Version History
    * v1: two decisions, and free facts
    * v0: one decision (`draftgym.envs.router.live.RouterEnv`)
    """

    levels = LEVELS
    observer: TwoStageObserver
    _pending: int | None = None

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes a decision, and plays the round if it is decided."""
        index = self._index_of(action)
        if self._pending is not None:
            arm = variants(self.arms[self._pending], self.levels)[index % len(self.levels)]
            return self._play(self._pending, arm)
        index %= len(self.arms)
        first = self._begun(self.arms[index])
        if first is None:
            return self._play(index, self.arms[index])
        self._pending = index
        signals, hidden = self.observer.seen
        seen = {"signals": self.observer.told(signals, index, first), "hidden": hidden.copy()}
        nothing = dict.fromkeys(("committed", "accepted", "drafted"), 0)
        info = {"arm": str(self.arms[index]), "tokens": [], **nothing, "target_steps": 0.0}
        return seen, self._rewarded(index, 0, 0.0), False, False, info

    def _begin(self, prompt: Prompt, options: Any) -> bool:
        self._pending = None
        return super()._begin(prompt, options)

    def _begun(self, arm: Arm) -> float | None:
        """How likely an arm finds its best first token; None if no second decision follows.

        It drafts here, and again when the round is played: both times the same.
        """
        self._caught_up: dict[str, int] = {}
        if not decides_twice(arm):
            return None
        heard: list[float] = []

        def ask(score: float) -> float:
            heard.append(math.exp(score))
            return 0.0

        made = draft(self.session, arm.ending_in(replace(arm.parts[-1], ask=ask)))
        self._caught_up = {one.arm.drafter: one.caught_up for one in made.asked}
        return heard[0] if heard else None

    def _play(self, index: int, arm: Arm) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The round of an arm (an index) as the second decision has it."""
        self._pending = None
        record = play_round(self.session, arm)
        missed = self._caught_up
        asked = tuple(
            replace(one, caught_up=one.caught_up + missed.get(one.arm.drafter, 0))
            for one in record.asked
        )
        return self._told(index, replace(record, asked=asked))

    def _new_observer(self) -> TwoStageObserver:
        return TwoStageObserver(self.arms, self.levels)

    def _observe(self) -> Observation:
        return {key: value.copy() for key, value in super()._observe().items()}

    def _round_seconds(self, record: RoundRecord) -> float:
        if self.measured:
            return record.times.total
        model = with_free_lookup(self.cost_model)
        return model.round_seconds(record.asked, len(record.drafted), record.context)


class TwoStageReplayEnv(RouterReplayEnv):
    """`draftgym/Router-v1` replayed from traces of real decoding.

    ## Description
    As `draftgym/RouterReplay-v0`: what is committed and observed is what `draftgym/Router-v1`
    gives, token for token, and time is the cost model's. The exact optimum of both is that of the
    arms with every level (`draftgym.decoding.observers.two_stage.variants`).

    ## Action Space
    As in `draftgym/Router-v1` (`TwoStageRouterEnv`).

    ## Observation Space
    As in `draftgym/Router-v1`.

    ## Rewards
    As in `draftgym/Router-v1`.

    ## Starting State
    As in `draftgym/RouterReplay-v0`.

    ## Episode End
    As in `draftgym/RouterReplay-v0`.

    ## Arguments
    As of `draftgym/RouterReplay-v0`. Traces must hold the drafted tokens.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> env = gym.make("draftgym/RouterReplay-v1", traces="runs/traces")  # doctest: +SKIP
    ```

    ## Version History
    * v1: two decisions, and free facts
    """

    levels = LEVELS


class TwoStageReplayVectorEnv(RouterReplayVectorEnv):
    """`draftgym/RouterReplay-v1` many times, stepped together: what `gymnasium.make_vec` makes.

    See `RouterReplayVectorEnv`; `played` counts rounds by the arm of the first decision.
    """

    levels = LEVELS
