"""The decoder that deploys a policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from draftgym.decoding.arms import PLAIN, Arm, check_arms
from draftgym.decoding.drafting import LAZY_KV_ONLY, CatchUp, Drafter
from draftgym.decoding.given import (
    check_drafters,
    check_policy,
    check_target,
    is_text,
    refuse_beside_ids,
    token_ids,
)
from draftgym.decoding.model.interface import ModelInputs
from draftgym.decoding.model.prompts.messages import Message
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.two_stage import observer_of
from draftgym.decoding.round import RoundRecord, play_round
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import NO_STOPS, StopReason, Stops
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING, SamplingSettings


class RoutingPolicy(Protocol):
    """Whatever chooses an arm each round; Stable-Baselines3's `predict` shape.

    Attributes:
        arms: What it chooses from.
        observes: Whether it reads observations (a fixed arm does not, and saves their cost).
    """

    @property
    def arms(self) -> Sequence[Arm]:
        """What it chooses from."""

    @property
    def observes(self) -> bool:
        """Whether it reads observations."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """An arm's index and the policy's next state."""


@dataclass(frozen=True)
class DecodedRound:
    """A round with the time its decision took.

    Attributes:
        record: What happened.
        decide_seconds: Observation and policy.
    """

    record: RoundRecord
    decide_seconds: float


@dataclass
class Generation:
    """A finished text with its statistics.

    Attributes:
        tokens: New token ids.
        prompt_tokens: Length of the prompt.
        rounds: Every round in order.
        prefill_seconds: Time to the first token.
        decode_seconds: Time of all rounds, decisions included, streaming not.
        finish_reason: `stop` or `length`.
        first_margin: The target's margin at the first token, when margins were asked for.
        seed: Of its sampling noise: `generate` writes the text again with it.
        stop_reason: The token id or the stop string that ended it; None at the token limit.
        reused: Positions of the prompt that were known from the turn before.
    """

    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    rounds: list[DecodedRound] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish_reason: str = "running"
    first_margin: list[float] = field(default_factory=list)
    seed: int = 0
    stop_reason: StopReason | None = None
    reused: int = 0

    @property
    def acceptance_length(self) -> float:
        """Committed tokens per round, the target's own token included."""
        committed = sum(len(item.record.committed) for item in self.rounds)
        return committed / max(1, len(self.rounds))

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the decoding stage per second (the first token belongs to prefill)."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def margins(self) -> list[float]:
        """The target's margin at every token, when they were asked for."""
        return self.first_margin + [m for item in self.rounds for m in item.record.margins]


@dataclass
class Memory:
    """What is kept from one turn of a talk to the next.

    Attributes:
        session: That of the turn before.
    """

    session: Session | None = None


class SpeculativeDecoder:
    """Writes texts with a target, drafters and a policy.

    Example:
        >>> decoder = SpeculativeDecoder(target, drafters, policy)  # doctest: +SKIP
        >>> decoder.generate("Why is the sky blue?").tokens  # doctest: +SKIP

    Args:
        target: The target.
        drafters: Drafters by name.
        policy: Chooses an arm each round; its arms must name loaded drafters.

    Raises:
        DraftgymError: One of them is something else, such as a name or an agent of SB3.
    """

    def __init__(
        self, target: Target, drafters: Mapping[str, Drafter], policy: RoutingPolicy
    ) -> None:
        check_target(target)
        check_drafters(drafters)
        check_policy(policy)
        check_arms(policy.arms, drafters, target.decoder.draws_trees)
        self.target, self.policy = target, policy
        used = {part.drafter for arm in policy.arms for part in arm.parts}
        self.drafters = {name: drafter for name, drafter in drafters.items() if name in used}

    def generate(
        self,
        prompt: str | Sequence[Message] | Tensor | Sequence[int],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        verification: str | VerificationRule | None = None,
        on_tokens: Callable[[list[int]], None] | None = None,
        with_margins: bool = False,
        catching_up: CatchUp = LAZY_KV_ONLY,
        template_options: Mapping[str, Any] | None = None,
        stops: Stops = NO_STOPS,
        sampling: SamplingSettings = PLAIN_SAMPLING,
        memory: Memory | None = None,
        images: Sequence[Any] = (),
        inputs: ModelInputs | None = None,
    ) -> Generation:
        """Writes one text.

        Args:
            prompt: Text or messages (put through the chat template), or token ids `[m]`.
            max_new_tokens: Tokens to write at most.
            temperature: 0 for greedy.
            seed: Seed of the sampling noise; with `coupled` verification the same seed gives the
                same text, whatever the policy.
            verification: `greedy`, `coupled` or `rejection`; None picks by temperature. A rule of
                your own takes the place of temperature, seed and sampling.
            on_tokens: Called with each round's new token ids (streaming).
            with_margins: Whether to record the target's margins.
            catching_up: When and how drafters encode what they missed; changes no text.
            template_options: What the chat template reads beside the messages (`Target.encode`).
            stops: What ends the text beside the target itself.
            sampling: Top-k, top-p, min-p and repetition penalty; the target's text under them is
                the same whatever the policy.
            memory: Kept between the turns of a talk: of a prompt that begins with the same tokens
                as the turn before, only the rest is run.
            images: Shown to a target that sees, before the text: paths, or images of Pillow. In
                messages they are parts of their contents.
            inputs: With token ids: what belongs to their images (`Target.encode_with_images`).

        Raises:
            DraftgymError: Empty or too long prompt, bad temperature or rule.
        """
        if is_text(prompt):
            options = template_options or {}
            ids, inputs = self.target.encode_with_images(prompt, images, **options)
        else:
            ids = token_ids(prompt)
            refuse_beside_ids(images)
        rule = verification
        if not isinstance(rule, VerificationRule):
            rule = make_rule(rule, temperature, seed, self.target.vocab_size, sampling)
        session = Session(
            *(self.target, ids, rule, max_new_tokens, self.drafters),
            catching_up=catching_up,
            stops=stops,
            inputs=inputs,
        )
        result = Generation(prompt_tokens=len(ids), seed=seed)
        start = time.perf_counter()
        if memory is not None:
            if memory.session is not None:
                result.reused = session.go_on_from(memory.session)
            memory.session = session
        tell = on_tokens or (lambda tokens: None)
        for tokens in self._rounds(result, session, with_margins, start):
            tell(tokens)
        return result

    def _rounds(
        self, result: Generation, session: Session, with_margins: bool, start: float
    ) -> Iterator[list[int]]:
        """Plays rounds until the text ends, filling `result` and yielding new tokens."""
        observer = observer_of(self.policy)
        state = None
        verdict = session.prefill(with_margins)
        result.first_margin = verdict.margins
        result.prefill_seconds = time.perf_counter() - start
        yield session.new_tokens
        while not session.finished:
            deciding = time.perf_counter()
            observation = observer.observe(session) if self.policy.observes else {}
            episode_start = np.array([not result.rounds])
            action, state = self.policy.predict(observation, state, episode_start, True)
            decided = time.perf_counter() - deciding
            record = play_round(session, observer.arm(self.policy, int(action)), with_margins)
            observer.update(int(action), record)
            result.rounds.append(DecodedRound(record, decided))
            result.decode_seconds += time.perf_counter() - deciding
            yield record.committed
        result.tokens = session.new_tokens
        result.finish_reason = session.finish_reason
        result.stop_reason = session.stop_reason


class PlainPolicy:
    """Drafts nothing: plain decoding, the reference for text and speed."""

    arms = (Arm(PLAIN, 0),)
    observes = False

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Always the only arm."""
        return 0, state
