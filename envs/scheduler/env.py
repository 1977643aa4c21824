"""The scheduler environments: how much each of many users drafts, each round, over traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.options import check_options, never_begun
from draftgym.envs.reward import SchedulerReward
from draftgym.envs.scheduler.actions import (
    Actions,
    BeliefActions,
    LengthActions,
    ShareActions,
    TiltActions,
)
from draftgym.envs.scheduler.observation import observe_cell, scheduler_observation_space
from draftgym.policies.multispin.problem import Plan
from draftgym.rollouts.traces.file import as_traces
from draftgym.rollouts.traces.trace import TraceSet


class SchedulerEnv(gym.Env[Observation, NDArray[Any]]):
    """Many users draft by themselves and share an uplink and a target; the agent says how much.

    ## Description
    The system of Multi-SPIN (arXiv 2606.04581). Every user has a device with a small drafter and
    reads the answers to prompts of its own category. A step is a round: each device drafts as many
    tokens as it is told and uploads them through its share of the band; the server waits for the
    slowest, verifies all drafts in one pass of the target, and everybody's text goes on by what was
    accepted and one token of the target's own. Long drafts make a round worth more and longer, for
    all. Prompts end and new ones begin; users leave and others come.

    Acceptance is never drawn. The target wrote every text once, and the drafters were asked at
    every position (`draftgym collect`); so a draft of any length has, at any position,
    exactly the tokens accepted that live decoding would accept. Radio, devices and server are
    models with the papers' numbers (`draftgym.envs.cell.settings`), or your own.

    ## Action Space
    `MultiDiscrete([longest + 1] * K)`: a draft length for each of the K places; 0 leaves a user
    with the target's own token. The band is divided by the optimal rule for these lengths (the
    paper's Lemma 3) as far as channels are known. What is said of an empty place, or of a user that
    is still drafting, is not read. `action_masks()` tells which lengths matter.

    ## Observation Space
    `Dict(users, cell)`. `users` is a `Box(K, 25)` with a row per place, all 0 where it is empty; u
    is the time of a pass over all who are there without drafts.

    | Num | Observation | Min | Max |
    |-----|-------------|-----|-----|
    | 0 | 1 where somebody is there | 0 | 1 |
    | 1 | 1 where the action is read | 0 | 1 |
    | 2 | mean acceptance of the user's task (category and drafter), measured beforehand | 0 | 1 |
    | 3 | posterior mean of the acceptance of this prompt | 0 | 1 |
    | 4 | log(1 + tokens judged of this prompt, prior included) / 4 | 0 | 10 |
    | 5 | moving average of the user's acceptance, across prompts | 0 | 1 |
    | 6, 8, 10 | tokens drafted in the last three rounds, newest first / longest | 0 | 1 |
    | 7, 9, 11 | tokens accepted of them / longest | 0 | 1 |
    | 12 | entropy of the target's distribution at the last verified position (nats) | 0 | 10 |
    | 13 | top-1 minus top-2 probability of it | 0 | 1 |
    | 14 | top-1 probability of it | 0 | 1 |
    | 15 | longest run at the text's end that occurred before (at most 16) / 4 | 0 | 4 |
    | 16 | the drafter's probability of its next token, as the device reports it | 0 | 1 |
    | 17 | log(1 + seconds of drafting the longest draft / u) | 0 | 10 |
    | 18 | log(1 + seconds of uploading it over an equal share, channel as reported / u) | 0 | 10 |
    | 19 | reported signal-to-noise ratio, decibels / 20 | -10 | 10 |
    | 20 | log(1 + context length) / 8 | 0 | 10 |
    | 21 | share of the token limit still open | 0 | 1 |
    | 22 | log(the user's tokens per second / the mean of those present) | -10 | 10 |
    | 23 | length of the draft under way / longest | 0 | 1 |
    | 24 | signed log(1 + time until that draft is there / u) | -10 | 10 |

    `cell` is a `Box(4,)`:

    | Num | Observation | Min | Max |
    |-----|-------------|-----|-----|
    | 0 | log(1 + users present) | 0 | 10 |
    | 1 | log(u in seconds) | -10 | 10 |
    | 2 | the part of u that grows with users | 0 | 1 |
    | 3 | what a verified token of every user adds to u / u | 0 | 10 |

    Everything is clipped to [-10, 10].

    ## Rewards
    `committed tokens - price * seconds` of the round. With the price `goodput` it is the running
    tokens per second, so that the return says what the ratio of total tokens to total time gains
    (`draftgym.envs.reward`). With `objective="log"` tokens of users who have had less count
    more (proportional fairness, `draftgym.envs.reward`).

    ## Starting State
    A new user in every place: drafter, category, order of its texts, device and channel are drawn
    with the environment's seed. A seed also restarts the running price.

    ## Episode End
    The task goes on for ever; nothing terminates it. By its id the environment is truncated after
    256 steps; pass `max_episode_steps` to `gymnasium.make` for another number.

    ## Information
    `committed`, `drafted`, `taken` (who was verified) and `shares` by place, `tokens` (their ids),
    `question_ids`, `seconds` by piece (`draft`, `upload`, `wait`, `verify`, `reply`, together
    `total`), `idle`, `finished`, `rates` (tokens per second of each user so far), `price`.

    ## Arguments
    * `traces`: a folder of traces with a chain arm, or a loaded `TraceSet` or `ChainTable`.
    * `cell`: an `draftgym.envs.cell.settings.CellSettings`: users, radio, devices, payload,
      asynchronous batching, who comes and goes. Default: 8 users of `multispin-llama2`,
      synchronous.
    * `price`: tokens per second, or `goodput`.
    * `objective`: `sum` or `log`.
    * `render_mode`: `ansi` renders a line per place.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> from draftgym.envs.cell.settings import CellSettings
    >>> env = gym.make(  # doctest: +SKIP
    ...     "draftgym/Scheduler-v0", traces="runs/traces", cell=CellSettings(users=16, window=0.05)
    ... )
    ```

    ## Version History
    * v0: first version
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": ["ansi"],
        "render_fps": 4,
    }
    actions_of: type[Actions] = LengthActions
    """How actions are read."""

    def __init__(
        self,
        traces: str | Path | TraceSet | ChainTable,
        cell: CellSettings | None = None,
        price: float | str = "goodput",
        objective: str = "sum",
        render_mode: str | None = None,
    ) -> None:
        settings = cell or CellSettings()
        self.table = read_table(traces, settings)
        self.cell = Cell(self.table, settings)
        self.reward = SchedulerReward(self.cell, price, objective)
        self.actions = self.actions_of(self.cell.settings.users, self.cell.longest)
        self.render_mode = render_mode
        self.observation_space = scheduler_observation_space(settings.users)  # type: ignore[assignment]
        self.action_space = self.actions.space
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Fills every place with a new user; there are no options."""
        check_options(options or {})
        super().reset(seed=seed)
        if seed is not None:
            self.reward.restart()
        self.cell.reset([self.np_random])
        self.running = True
        return self._observe(), {"question_ids": question_ids(self.table, self.cell)[0].tolist()}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays a round.

        Raises:
            DraftgymError: An action that is not in the action space, or a step before `reset`.
        """
        self._check_running()
        if not self.action_space.contains(np.asarray(action)):
            raise DraftgymError(
                f"action {np.asarray(action).tolist()} is not one of {self.action_space}",
                "draw one with action_space.sample(), or scale your agent's output to it",
            )
        return self.play(self.actions.plan(self.cell, np.asarray(action)[None]))

    def play(self, plan: Plan) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays a round by any plan `[1, K]`, also by one that no action stands for."""
        self._check_running()
        ids = question_ids(self.table, self.cell)[0].tolist()
        weights = self.reward.weights(self.cell)
        self.played = self.cell.step(plan)
        reward = float(self.reward(weights, self.played)[0])
        return self._observe(), reward, False, False, self._info(self.played, ids)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which entries of the action matter, flat as masking agents want it."""
        return np.asarray(self.actions.masks(self.cell)[0])

    def render(self) -> str | None:  # type: ignore[override]
        """A line per place, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        users, table = self.cell.users, self.table
        lines = [f"{self.cell.clock[0]:.3f} s, {self.reward.price:.2f} tokens/s"]
        for place, question in enumerate(question_ids(self.table, self.cell)[0].tolist()):
            row, text = int(users.row[0, place]), int(users.text[0, place])
            done = row - int(table.first[text]) + 1
            where = f"{question}: {done} of {len(table.texts[text].tokens)} tokens"
            lines.append(f"{place}: {where if question else 'empty'}")
        return "\n".join(lines)

    def _check_running(self) -> None:
        if not self.running:
            raise never_begun()

    def _observe(self) -> Observation:
        return {name: value[0] for name, value in observe_cell(self.cell).items()}

    def _info(self, played: CellRound, ids: list[str | None]) -> dict[str, Any]:
        ends = zip(played.rows[0] + 1, played.committed[0], strict=True)
        tokens = [self.table.tokens[first : first + count].tolist() for first, count in ends]
        facts = _of_the_first(round_facts(self.cell, played))
        return facts | {"tokens": tokens, "question_ids": ids, "price": self.reward.price}


class SchedulerSharesEnv(SchedulerEnv):
    """`draftgym/Scheduler-v0` in which the agent divides the band as well: the ablation.

    ## Description
    As `SchedulerEnv`, which has the sections on observations, rewards, information and arguments.

    ## Action Space
    `Box(-1, 1, (2 K,))`. The first K entries are draft lengths, -1 being 0 and 1 the longest,
    rounded to the nearest. The others are shares of the band, -1 being 0 and 1 all of it, projected
    onto the simplex of those who are to draft or still upload. Who is left without a share drafts
    nothing, or waits with its upload.

    ## Observation Space
    ## Rewards
    ## Starting State
    ## Episode End
    ## Arguments
    As `SchedulerEnv`.

    ## Version History
    * v0: first version
    """

    actions_of = ShareActions


class SchedulerBeliefEnv(SchedulerEnv):
    """`draftgym/Scheduler-v0` in which the agent says how sure to be of each user.

    ## Description
    As `SchedulerEnv`, which has the sections on observations, rewards, information and arguments.
    Lengths that differ from everybody else's gain nothing in a round that waits for the slowest, so
    agents that set lengths one by one get stuck where all draft little. Here Multi-SPIN's
    optimisation (`draftgym.policies.multispin.curves`) makes lengths and shares of the band from
    one acceptance for each user, and the agent supplies what no formula has: that acceptance, from
    all that it sees.

    ## Action Space
    `Box(-1, 1, (K,))`: the acceptance to reckon with, -1 being 0 and 1 being 1.

    ## Observation Space
    ## Rewards
    ## Starting State
    ## Episode End
    ## Arguments
    As `SchedulerEnv`.

    ## Version History
    * v0: first version
    """

    actions_of = BeliefActions


class SchedulerTiltEnv(SchedulerEnv):
    """`draftgym/SchedulerBelief-v0` in which the agent also tilts the division of the band.

    ## Description
    As `SchedulerEnv`, which has the sections on observations, rewards, information and arguments.
    Agents that divide the band freely (`SchedulerSharesEnv`) lose most of what the optimal rule
    gains. Here lengths are those of `SchedulerBeliefEnv`, and the optimal rule divides the band for
    them, but by channel reports that the agent has corrected: a residual on the optimal division.
    Where reports are late or wrong, the rule would trust what it should not.

    ## Action Space
    `Box(-1, 1, (2 K,))`. The first K entries are acceptances to reckon with, -1 being 0 and 1
    being 1. The others are tilts of the reported signal-to-noise ratios, of up to 20 decibels up or
    down: who is taken for weaker gets a larger share. With 0 everywhere a step is that of
    `draftgym/SchedulerBelief-v0`. Of a user that is still drafting or uploading nothing is read:
    its report counts as it is.

    ## Observation Space
    ## Rewards
    ## Starting State
    ## Episode End
    ## Arguments
    As `SchedulerEnv`.

    ## Version History
    * v0: first version
    """

    actions_of = TiltActions


def question_ids(table: ChainTable, cell: Cell) -> NDArray[np.object_]:
    """Which text each user reads `[n, K]`; None in empty places."""
    ids = np.array(table.question_ids[cell.users.text], object)
    ids[~cell.users.active] = None
    return ids


def round_facts(cell: Cell, played: CellRound) -> dict[str, Any]:
    """What the environments tell of a step, `[n, K]` of users and `[n]` of cells."""
    names = ("committed", "drafted", "taken", "shares", "idle", "finished")
    pieces = vars(played.time) | {"total": played.time.total}
    told = {name: getattr(played, name) for name in names}
    return told | {"seconds": pieces, "rates": cell.users.rates}


def _of_the_first(facts: dict[str, Any]) -> dict[str, Any]:
    """The same of the first cell alone; numbers for arrays `[1]`."""
    return {
        name: _of_the_first(value)
        if isinstance(value, dict)
        else (float(value[0]) if value.ndim == 1 else value[0])
        for name, value in facts.items()
    }


def read_table(traces: str | Path | TraceSet | ChainTable, settings: CellSettings) -> ChainTable:
    """Traces in the form that cells read; a table is taken as it is."""
    if not isinstance(settings, CellSettings):
        raise DraftgymError(
            f"a {type(settings).__name__} is no cell", "give a CellSettings of draftgym.envs.cell"
        )
    if isinstance(traces, ChainTable):
        return traces
    return ChainTable(as_traces(traces), settings.arms)
