"""The router environment: which drafter, how many tokens, each round of real decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

from draftgym.decoding.arms import check_arms, default_arms, parse_arm
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.cost_model import CostModel, note_extrapolation
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.given import check_drafters, check_target, check_texts
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.observers.observation import Observation, RouterObserver
from draftgym.decoding.round import RoundRecord, play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import check_temperature, make_rule
from draftgym.drafters.loading import load_drafters
from draftgym.envs.router.base import RoundsEnv
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.prompts.sets import Prompt, as_prompts

LATENCIES = ("calibrated", "measured")


class RouterEnv(RoundsEnv):
    """Speculative decoding in which the agent picks a drafter and a draft length every round.

    ## Description
    An episode writes the answer to one prompt with a real target model. Each step is one round of
    speculative decoding: the chosen drafter proposes tokens, the target verifies them in one pass,
    and the accepted ones plus one token of the target's own are committed. Whatever is chosen, the
    text is the one that the target alone would have written; the agent only decides how soon it
    is there. The choice between an autoregressive and a block-diffusion drafter is WhiFlash's
    (arXiv 2606.07710); lists with several lengths give joint control of both.

    ## Action Space
    `Discrete(n)`, the index of an arm. Arms are given as text: `eagle3:4` drafts up to 4 tokens
    with the EAGLE-3 head, `eagle3:5x16` a tree of up to 16 tokens and 5 levels, `plain` none.
    Default: one arm per loaded drafter, a chain.

    ## Observation Space
    A `Dict` of facts that cost no drafter call.

    `hidden` is the target's final hidden state at the last verified position, `Box(d,)`.
    `signals` is a `Box` with these entries (`draftgym.decoding.observers.observation.signal_names`
    lists them):

    | Num | Observation | Min | Max |
    |-----|-------------|-----|-----|
    | 0 | entropy of the target's last distribution (nats) | 0 | log(vocabulary) |
    | 1 | top-1 minus top-2 probability of it | 0 | 1 |
    | 2 | top-1 probability of it | 0 | 1 |
    | 3 | longest run of tokens at the text's end that occurred before (at most 16) / 4 | 0 | 4 |
    | 4 | log(1 + context length) / 4 | 0 | Inf |
    | 5 | share of the token limit still open | 0 | 1 |
    | 6 | tokens committed in the last round / 4 | 0 | Inf |
    | 7, 9, .. | running mean of a drafter's accepted tokens (one entry per drafter) | 0 | Inf |
    | 8, 10, .. | log(1 + its backlog) / 4 | 0 | Inf |
    | last n | one-hot of the arm chosen last (all 0 at the start) | 0 | 1 |

    ## Rewards
    `committed - latency_price * (round seconds / target step seconds)`: tokens gained, minus the
    time of the round measured in steps of plain decoding. With `latency_price=1` the return is
    exactly the number of target steps saved over plain decoding (which earns 0 a round). With
    `goodput` the price is the speed that is being reached (`draftgym.envs.reward`).

    ## Starting State
    A prompt drawn from the prompt set with the environment's seed, prefilled, its first token
    written. `reset(options={"prompt": question_id})` names one; `"noise_seed"` fixes its sampling.
    A prompt whose text ends with its first token has no round: it is passed over where prompts are
    drawn, and refused where it was named. `reset(seed=...)` also restarts the running price: the
    same seed and actions give the same episodes again.

    ## Episode End
    Terminated when the target ends the text or `max_new_tokens` are written. There is no
    truncation of its own; pass `max_episode_steps` to `gymnasium.make` for a limit on rounds.

    ## Arguments
    * `target`: what `--target` takes, or a loaded `Target` (`draftgym.load_target`) to share it
      between environments or to choose its precision and threads.
    * `drafters`: loaded drafters by name; default: the shipped ones that fit, prompt lookup
      and suffix decoding.
    * `arms`: list of arm texts.
    * `prompts`: prompt set (`train`, `heldout`), a file, or a list of `Prompt`.
    * `max_new_tokens`: token limit of an episode, at least 2: the first comes with the prompt.
    * `skip_long_prompts`: whether prompts that do not fit the target with `max_new_tokens` are left
      out; else they are refused at once.
    * `temperature`: 0 verifies greedily, above 0 with coupled noise (seeded per episode).
    * `latency_price`: the knob between tokens and time; `goodput` for the running speed.
    * `latency`: `calibrated` rewards with the host's cost model and is reproducible, a `CostModel`
      likewise with another one; `measured` rewards with this round's wall-clock and is not.
    * `render_mode`: `ansi` renders the text written so far.

    ```pycon
    >>> import draftgym, gymnasium as gym
    >>> env = gym.make("draftgym/Router-v0")  # doctest: +SKIP
    ```

    ## Version History
    * v0: first version
    """

    levels: tuple[float, ...] = ()

    def __init__(
        self,
        target: str | Path | Target = "smollm2-135m",
        drafters: Mapping[str, Drafter] | None = None,
        arms: Sequence[str] | None = None,
        prompts: str | Path | Sequence[Prompt] = "train",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        latency_price: float | str = 1.0,
        latency: str | CostModel = "calibrated",
        render_mode: str | None = None,
        skip_long_prompts: bool = False,
    ) -> None:
        if isinstance(latency, str) and latency not in LATENCIES:
            raise DraftgymError(f"unknown latency {latency!r}", f"use {' or '.join(LATENCIES)}")
        if max_new_tokens < 2:
            raise DraftgymError(
                f"episodes of {max_new_tokens} tokens have no round: the first token comes with "
                "the prompt",
                "ask for 2 or more with max_new_tokens",
            )
        check_temperature(temperature)
        if drafters is not None:
            check_drafters(drafters)
        if arms:
            check_texts(arms, "arms", "eagle3:4")
        given = as_prompts(prompts)
        self.target = load_target(str(target)) if isinstance(target, str | Path) else target
        check_target(self.target)
        fitted = fit_prompts(self.target, given, max_new_tokens, skip_long_prompts)
        self.prompts, self._ids = fitted.prompts, fitted.ids
        self.drafters = dict(load_drafters(self.target) if drafters is None else drafters)
        chosen = tuple(map(parse_arm, arms)) if arms else default_arms(self.drafters)
        check_arms(chosen, self.drafters, self.target.decoder.draws_trees)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        names = [prompt.question_id for prompt in self.prompts]
        width = self.target.hidden_size
        super().__init__(chosen, names, width, latency_price, render_mode, self.levels)
        self.measured = latency == "measured"
        self.cost_model = (
            load_cost_model(self.target, self.drafters, () if self.measured else chosen)
            if isinstance(latency, str)
            else latency
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the next prompt; see the class for `options`.

        Raises:
            DraftgymError: Impossible options, or no text with a round to play.
        """
        told = options or {}
        index = self._next_text(seed, told, "prompt", "noise_seed")
        for _ in range(2 * len(self.prompts)):  # every prompt comes at least once
            if self._begin(self.prompts[index], told):
                return self._observe(), {"question_id": self.prompt.question_id}
            if told.get("prompt") is not None:
                raise DraftgymError(
                    f"prompt {told['prompt']!r} has no round to play: the target ends its text "
                    "with the first token",
                    "name another one, or leave the choice to the environment",
                )
            index = self._order.next(self.np_random, {})
        raise DraftgymError(
            "no prompt has a round to play: the target ends every text with its first token",
            "give prompts that the target answers at length",
        )

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one round with arm `action`."""
        index = self._index_of(action)
        return self._told(index, play_round(self.session, self.arms[index]))

    def _told(
        self, index: int, record: RoundRecord
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """What `step` says of a round with an arm (an index)."""
        self.observer.update(index, record)
        steps = self._round_seconds(record) / self.cost_model.step_seconds(record.context)
        reward = self._rewarded(index, len(record.committed), steps)
        info = {
            "arm": str(self.arms[index]),
            "committed": len(record.committed),
            "tokens": record.committed,
            "accepted": record.accepted,
            "drafted": len(record.drafted),
            "target_steps": steps,
        }
        self.running = not self.session.finished
        return self._observe(), reward, self.session.finished, False, info

    def render(self) -> str | None:  # type: ignore[override]
        """The text written so far, in render mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        return self.target.decode(self.session.new_tokens)

    def _begin(self, prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Writes the first token of a prompt's text; tells whether any round is left."""
        drawn = int(self.np_random.integers(2**62))
        noise_seed = int(options.get("noise_seed", drawn))
        rule = make_rule(None, self.temperature, noise_seed, self.target.vocab_size)
        ids = self._ids[prompt.question_id]
        self.prompt, self.observer = prompt, self._new_observer()
        self.session = Session(self.target, ids, rule, self.max_new_tokens, self.drafters)
        self.session.prefill()
        if not self.measured:
            note_extrapolation(self.cost_model, len(ids) + self.max_new_tokens)
        self.running = not self.session.finished
        return self.running

    def _new_observer(self) -> RouterObserver:
        return RouterObserver(self.arms)

    def _observe(self) -> Observation:
        return self.observer.observe(self.session)

    def _round_seconds(self, record: RoundRecord) -> float:
        if self.measured:
            return record.times.total
        return self.cost_model.round_seconds(record.asked, len(record.drafted), record.context)
