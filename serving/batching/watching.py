"""What a batch tells those who count: rounds, texts, queue and guard, as they happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from draftgym.decoding.round import RoundRecord
from draftgym.serving.batching.requests import TextStatistics


@dataclass(frozen=True)
class PhaseSeconds:
    """Wall-clock seconds of a round of the whole batch, by phase.

    Attributes:
        choose: Observations, policies and the guard.
        draft: Drafters: catching up, then proposing.
        verify: The pass, prompts included, until its verdicts are known.
        commit: Everything behind it.
    """

    choose: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    commit: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What the guard knows of batches of some size under some policies.

    Attributes:
        fewest: Fewest texts of such a batch.
        most: Most texts.
        policies: Names of the policies in play, sorted.
        speculates: Whether speculation is on but for probes.
        gain: Goodput with speculation over goodput without; None until both were measured.
    """

    fewest: int
    most: int
    policies: tuple[str, ...]
    speculates: bool
    gain: float | None


@dataclass(frozen=True)
class RoundFacts:
    """What a round of the batch was.

    Attributes:
        records: One per text that was being written; none where the pass only read prompts. Their
            `arm` is what was drafted with, plain where request or guard allowed nothing.
        prompt_rows: Rows of prompts in the pass.
        seconds: Of the phases.
        held_back: Whether the guard left speculation out.
        judged: What the guard knows, where a verdict of it changed.
        predicted: Seconds of drafting and of the pass by the server's costs; None where there are
            none, or where they say nothing of this round.
    """

    records: Sequence[RoundRecord]
    prompt_rows: int
    seconds: PhaseSeconds
    held_back: bool = False
    judged: Sequence[Judged] = ()
    predicted: tuple[float, float] | None = None


class Watch(Protocol):
    """Told of everything on the batch's thread; it must not wait."""

    def queue(self, running: int, waiting: int, cache_bytes: int) -> None:
        """How full the batch is, whenever that changes.

        Args:
            running: Texts whose prompts are being read or which are being written.
            waiting: Texts in the queue.
            cache_bytes: Memory of the pool that is in use, kept beginnings included.
        """

    def refused(self) -> None:
        """A text was refused because the queue is full; called on the thread that submitted it."""

    def began(self, statistics: TextStatistics, new_tokens: int) -> None:
        """A prompt has been read.

        Args:
            statistics: What is known of the text by now: prompt, queue, first token.
            new_tokens: 1, or 0 where nothing was to be written.
        """

    def round(self, facts: RoundFacts) -> None:
        """A pass is over, and its tokens have been committed."""

    def text(self, statistics: TextStatistics, new_tokens: int, outcome: str) -> None:
        """A text is over.

        Args:
            statistics: How it came about.
            new_tokens: Tokens that were written.
            outcome: `stop`, `length`, `abort` (its reader left) or `error`.
        """


class NoWatch:
    """Counts nothing."""

    def queue(self, running: int, waiting: int, cache_bytes: int) -> None:
        """Nothing."""

    def refused(self) -> None:
        """Nothing."""

    def began(self, statistics: TextStatistics, new_tokens: int) -> None:
        """Nothing."""

    def round(self, facts: RoundFacts) -> None:
        """Nothing."""

    def text(self, statistics: TextStatistics, new_tokens: int, outcome: str) -> None:
        """Nothing."""
