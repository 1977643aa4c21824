"""What a peer is: an engine of others that writes greedy texts, token ids in and token ids out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from draftgym.decoding.model.target import Target

Write = Callable[[list[int], int], list[int]]
"""New token ids of a greedy text behind a prompt's, given the most tokens that it may have; the
last one is a stop token where the text ended by itself. Nothing is kept from one call to the next.
"""


@dataclass(frozen=True)
class Peer:
    """An engine with its model, ready to write.

    Attributes:
        name: What tables call it.
        version: Of the engine.
        weights: In which numbers it holds the weights: a dtype as torch names it, or the name of a
            quantisation.
        write: Writes a text.
    """

    name: str
    version: str
    weights: str
    write: Write


@dataclass(frozen=True)
class Conditions:
    """What all write under.

    Attributes:
        target: Ours: its weights, its dtype, its threads.
        stop_tokens: Token ids that end a text.
        context: Positions that the longest text needs.
        gguf: The user's own GGUF file of the target's weights, for engines that read such files.
    """

    target: Target
    stop_tokens: frozenset[int]
    context: int
    gguf: Path | None = None
