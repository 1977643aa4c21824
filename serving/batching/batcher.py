"""The batch: one thread that owns the target, and a queue before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.batching.requests import Listener, TextRequest


class QueueFull(Exception):
    """So many texts wait already that no more are taken.

    Args:
        retry_after: Seconds after which it is worth asking again.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class BatchSettings:
    """Limits of a batch.

    Attributes:
        most_running: Texts in a pass.
        most_waiting: Texts that wait for a place; more are refused.
        prompt_rows: Rows of prompts that ride in a pass beside texts that are being written.
        cache_bytes: Memory for keys, values and taps, also of finished texts whose beginnings are
            kept for others.
        guard: Whether speculation is left out while it is slower than plain decoding.
    """

    most_running: int = 32
    most_waiting: int = 256
    prompt_rows: int = 64
    cache_bytes: int = 2 << 30
    guard: bool = True


class Batcher:
    """Writes texts of one target, many at a time.

    Args:
        target: The target.
        drafters: Drafters by name.
        policies: Who chooses arms, by name; the first is used where a request names none.
        settings: Limits.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        policies: Mapping[str, BatchPolicy],
        settings: BatchSettings,
    ) -> None:
        raise NotImplementedError

    def submit(self, request: TextRequest, listener: Listener) -> int:
        """Puts a text into the queue; its number.

        Args:
            request: What is to be written.
            listener: Told of its events, on the batch's thread.

        Raises:
            DraftgymError: The request can never be served (too long for the context or for the
                cache, a token that the target lacks, an unknown policy).
            QueueFull: Too many wait.
        """
        raise NotImplementedError

    def cancel(self, number: int) -> None:
        """Forgets a text, within a round; its listener hears nothing more."""
        raise NotImplementedError
