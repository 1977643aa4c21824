"""The serving environment: an arm for each request of a server's batch, each round, over traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.given import check_texts
from draftgym.decoding.observers.observation import Observation, drafter_names
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.settings import GOODPUT, ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.options import check_options, never_begun
from draftgym.envs.serving.observation import serving_observation_space
from draftgym.envs.serving.reward import ServingReward, within
from draftgym.policies.serving.observation import observe
from draftgym.rollouts.traces.file import as_traces
from draftgym.rollouts.traces.trace import TraceSet


class ServingEnv(gym.Env[Observation, NDArray[Any]]):
    """A server writes many texts in one batch; the agent picks an arm for each of them, each round.

    ## Description
    Requests arrive, wait for a place, and are read and written in one batch, as `draftgym serve`
    does it. A step is a round: every request that is being written drafts with the arm that it is
    given (or not at all), and one pass of the target verifies all drafts and reads parts of the
    prompts of those who came later. A drafted token makes the pass longer for everybody, so what
    doubles the speed of one request can slow a full server down.

    Acceptance is never drawn. The target wrote every text once, and the arms were asked at every
    position (`draftgym collect`), so a round commits exactly the tokens that live decoding would
    commit. Time is a model of the whole batch (`draftgym.decoding.costs.server_costs`): published
    costs of a large model on an accelerator, or this host's, as `draftgym measure-host` measured
    them.

    ## Action Space
    `MultiDiscrete([arms] * K)`: the index of an arm for each of the K places. What is said of an
    empty place, or of a request whose prompt is still being read, is not read. `action_masks()`
    tells which arms matter.

    ## Observation Space
    `Dict(requests, server)`. `requests` is a `Box(K, F)` with a row per place, all 0 where it is
    empty; u is the time of a pass over all who are there without drafts.

    | Num | Observation |
    |-----|-------------|
    | 0 | 1 where there is a request |
    | 1 | 1 where its arm is read |
    | 2 | log(1 + tokens of its prompt that are still to be read) / 8 |
    | 3 | log(1 + time since it arrived / u) / 8 |
    | 4 | log(1 + mean time between its tokens so far / u) / 4 |
    | per lookup | newest tokens that agree with where it copies from, tokens found, over 4 |
    | | how likely it thinks its first 1, 2 and 4 are right; how many it thinks are, over 4 |
    | per drafter | accepted of judged tokens and log(1 + judged) / 4, lately and overall |
    | | accepted tokens of the last draft, over 4, and whether that was all of it |
    | the rest | `signals` of `draftgym/Router-v0`: text, progress, acceptance, last arm |

    From the lookups on, all are 0 until the prompt has been read. `server` is a `Box(G,)`:

    | Num | Observation |
    |-----|-------------|
    | 0 | log(1 + requests in the batch) / 4 |
    | 1 | log(1 + those of them that are being written) / 4 |
    | 2 | log(1 + requests in the queue) / 4 |
    | 3 | log(1 + tokens of prompts in the batch that are still to be read) / 8 |
    | 4 | log(u in seconds) / 4 |
    | 5 | what a drafted token of each that is being written adds to a pass / u |
    | per drafter | time of drafting a token for each of them / u |

    ## Rewards
    With `objective="goodput"` tokens committed, minus the seconds of the round at a price; with the
    price `goodput` that is the running tokens per busy second, so that the return says what the
    ratio of total tokens to total time gains (`draftgym.envs.reward`). With `objective="latency"`
    the share of the episode's requests that end in this round within their objective for the time
    to the first token and the time per token; the return is the share of all of them.

    ## Starting State
    The first request has arrived. When requests come and what they ask for is drawn with the
    environment's seed alone; no action changes it. A seed also restarts the running price.

    ## Episode End
    Terminated when all requests of the episode are served. There is no truncation of its own.

    ## Information
    `committed`, `drafted`, `read` (rows of the prompt), `began` and `finished` by place, `seconds`
    by piece (`draft`, `pass`, together `total`), `idle` seconds behind the round, `queue`, `price`;
    `question_ids` and `tokens` (ids) by place; `first_token_seconds` and `token_seconds` of every
    request of the episode, infinite before they are known, and which were `within` the objective.

    ## Arguments
    * `traces`: a folder of traces, or a loaded `TraceSet`.
    * `arms`: list of arm texts, cascades and grafts included; default: all traced arms and `plain`.
    * `server`: a `draftgym.envs.load.settings.ServerSettings`: places, arrivals (Poisson,
      bursts, recorded), costs, how prompts are read. Default: 16 places, 64 requests at 4 a second,
      costs of Llama-3.1-8B on an H100.
    * `objective`: `goodput` or `latency`.
    * `price`: tokens per second, or `goodput`.
    * `render_mode`: `ansi` renders a line per place.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> from draftgym.envs.load.arrivals import Bursts
    >>> from draftgym.envs.load.settings import ServerSettings
    >>> env = gym.make(  # doctest: +SKIP
    ...     "draftgym/Serving-v0",
    ...     traces="runs/traces",
    ...     arms=["plain", "eagle3:2", "eagle3:4", "ngram:8@3>eagle3:2"],
    ...     server=ServerSettings(places=32, arrivals=Bursts(busy_rate=20.0)),
    ... )
    ```

    ## Version History
    * v0: first version
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": ["ansi"],
        "render_fps": 4,
    }

    def __init__(
        self,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        server: ServerSettings | None = None,
        objective: str = GOODPUT,
        price: float | str = GOODPUT,
        render_mode: str | None = None,
    ) -> None:
        self.load = make_load(traces, arms, server)
        self.reward = ServingReward(self.load, objective, price)
        self.render_mode = render_mode
        places, texts = self.load.shape[1], self.load.texts
        self._tokens = np.concatenate([text.tokens for text in texts.texts])
        self.observation_space = serving_observation_space(texts, places)  # type: ignore[assignment]
        self.action_space = spaces.MultiDiscrete(np.full(places, len(texts.arms)))  # type: ignore[assignment]
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draws new requests; there are no options."""
        check_options(options or {})
        super().reset(seed=seed)
        if seed is not None:
            self.reward.restart()
        self.load.reset([self.np_random])
        self.running = True
        return self._observe(), {}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays a round.

        Raises:
            DraftgymError: An action that is not in the action space, or a step before `reset`.
        """
        if not self.running:
            raise never_begun()
        action = np.asarray(action)
        if not self.action_space.contains(action):
            raise DraftgymError(
                f"action {action.tolist()} is not one of {self.action_space}",
                "draw one with action_space.sample()",
            )
        ids, rows = question_ids(self.load), self.load.row[0].copy()
        played = self.load.step(action[None])
        reward, done = float(self.reward(played)[0]), bool(self.load.done[0])
        self.running = not done
        info = first_server(round_facts(self.load, played) | request_facts(self.load))
        info |= {"question_ids": ids[0].tolist(), "price": self.reward.price}
        info["tokens"] = self._committed(played, rows)
        return self._observe(), reward, done, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which entries of an action matter `[K * arms]`, for masking agents."""
        return np.asarray(arm_masks(self.load)[0])

    def render(self) -> str | None:  # type: ignore[override]
        """A line per place, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        load, ids = self.load, question_ids(self.load)[0]
        lines = [f"{load.clock[0]:.3f} s, {load.waiting[0]} waiting"]
        for place, name in enumerate(ids):
            if name is None:
                continue
            unread, written = load.unread[0, place], load.row[0, place] + 1
            written -= load.texts.first[load.text[0, place]]
            state = f"{unread} of the prompt to read" if unread else f"{written} tokens"
            lines.append(f"{place}: {name}, {state}")
        return "\n".join(lines)

    def _observe(self) -> Observation:
        return {name: value[0] for name, value in observe(self.load).items()}

    def _committed(self, played: ServedRound, rows: NDArray[np.int64]) -> list[list[int]]:
        """Ids of the tokens that each place got: first ones stand in the row, others behind it."""
        copies = self.load.settings.copies
        starts = np.where(played.began[0], rows, rows + 1)
        ends = starts + played.committed[0] // copies
        return [self._tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)]


def make_load(
    traces: str | Path | TraceSet,
    arms: Sequence[str] | None,
    server: ServerSettings | None,
    count: int = 1,
) -> Load:
    """Servers over traces; by default with every traced arm and `plain`.

    Raises:
        DraftgymError: Traces, arms or settings cannot be.
    """
    settings = ServerSettings() if server is None else server
    if not isinstance(settings, ServerSettings):
        raise DraftgymError(
            f"a {type(settings).__name__} is no server",
            "give a ServerSettings of draftgym.envs.load.settings",
        )
    read = as_traces(traces)
    if arms:
        check_texts(arms, "arms", "eagle3:4")
    chosen = [parse_arm(arm) for arm in arms or (*read.origin.arms, PLAIN)]
    costs: ServerCosts = settings.make_costs(drafter_names(chosen))
    texts = ServedTexts(read, chosen, costs.model, settings.look_up)
    return Load(texts, settings, costs, count)


def question_ids(load: Load) -> NDArray[np.object_]:
    """Which text is in each place `[n, K]`; None in empty places."""
    ids = np.array([text.question_id for text in load.texts.texts], object)[load.text]
    ids[~load.active] = None
    return np.asarray(ids)


def arm_masks(load: Load) -> NDArray[np.bool_]:
    """Which arms matter `[n, K * A]`: all where one is read, else the first."""
    arms = len(load.texts.arms)
    masks = load.deciding[..., None] | (np.arange(arms) == 0)
    return np.asarray(masks.reshape(load.count, -1))


def round_facts(load: Load, played: ServedRound) -> dict[str, Any]:
    """What the environments tell of a round, `[n, K]` of places and `[n]` of servers."""
    names = ("committed", "drafted", "read", "began", "finished")
    told: dict[str, Any] = {name: getattr(played, name) for name in names}
    pieces = {"draft": played.draft_seconds, "pass": played.pass_seconds, "total": played.seconds}
    return told | {"seconds": pieces, "idle": played.idle, "queue": load.waiting}


def request_facts(load: Load) -> dict[str, Any]:
    """What the environments tell of the requests of an episode `[n, N]`."""
    return {
        "first_token_seconds": load.requests.first_token_seconds,
        "token_seconds": load.requests.token_seconds,
        "within": within(load.requests, load.settings.latency),
    }


def first_server(facts: dict[str, Any]) -> dict[str, Any]:
    """The same of the first server alone; numbers for arrays `[1]`."""
    return {
        name: first_server(value)
        if isinstance(value, dict)
        else (value[0].item() if value.ndim == 1 else value[0])
        for name, value in facts.items()
    }
