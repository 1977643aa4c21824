"""What a batch is asked for, and what it tells while it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from draftgym.decoding.text.stops import NO_STOPS, StopReason, Stops
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING, SamplingSettings


@dataclass(frozen=True, eq=False)
class TextRequest:
    """A text to write.

    Attributes:
        prompt: Token ids `[m]`, at least one.
        max_new_tokens: Tokens to write at most; 0 only reads the prompt.
        temperature: 0 for greedy; above, sampled with noise of `seed` (coupled verification).
        seed: Of the noise: the same seed gives the same text, whoever else is there.
        sampling: Top-k, top-p, min-p, repetition penalty.
        stops: What ends the text beside the target itself.
        policy: Who chooses the arms of its rounds, by name; None for the server's.
        max_draft: Most tokens that a round drafts; 0 for plain decoding, None for no limit.
        prediction: Token ids that the text is expected to contain; prompt lookup copies from them.
        logprobs: How many alternatives are told beside the log-probability of every new token; None
            tells none.
        prompt_logprobs: The same of the prompt's tokens. The prompt is then read as a whole, its
            beginning is not taken over from other texts.
    """

    prompt: Tensor
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    sampling: SamplingSettings = PLAIN_SAMPLING
    stops: Stops = NO_STOPS
    policy: str | None = None
    max_draft: int | None = None
    prediction: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the target finds a token, without temperature and sampling settings.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability.
        top: The likeliest tokens with theirs, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class TextStatistics:
    """How a text came about.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reused_tokens: Positions of it that were known from other texts.
        drafted: Drafted tokens of each round, 0 where it was plain.
        accepted: Accepted tokens of each round.
        arms: Rounds by the name of their arm.
        queue_seconds: From submission until its prompt began to be read.
        first_token_seconds: From submission to its first token.
        seconds: From submission to its end.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    arms: dict[str, int] = field(default_factory=dict)
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class PromptRead:
    """The prompt has been read.

    Attributes:
        logprobs: Of its tokens but the first, where they were asked for.
    """

    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class NewTokens:
    """A round committed tokens, one at least.

    Attributes:
        tokens: Their ids. A stop token is the last one of a text; where a stop string ends it, the
            last one completes the string (`Stops.cut`).
        arm: What drafted, as in `eagle3:4`; `plain` where nothing was drafted.
        accepted: So many at the beginning were drafted; the others are the target's own.
        logprobs: Of each, where they were asked for.
    """

    tokens: Sequence[int]
    arm: str
    accepted: int
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Finished:
    """The text is complete; nothing follows.

    Attributes:
        reason: `stop` or `length`.
        stop_reason: The token id or the stop string that ended it.
        statistics: How it came about.
    """

    reason: str
    stop_reason: StopReason | None
    statistics: TextStatistics


@dataclass(frozen=True)
class Failed:
    """The text cannot be written or finished; nothing follows.

    Attributes:
        problem: What is wrong.
        is_ours: Whether the fault is the server's, and not the request's.
    """

    problem: str
    is_ours: bool


Event = PromptRead | NewTokens | Finished | Failed
Listener = Callable[[Event], None]
"""Told of a text's events, in order, on the thread that decodes; it must not wait."""
