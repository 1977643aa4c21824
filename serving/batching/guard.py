"""Whether speculation pays: the guard of a batch."""

from __future__ import annotations

Key = tuple[int, tuple[str, ...]]
"""How many texts are in the batch, and the names of those who choose."""


class Guard:
    """Lets all be drafted, until its real self is here."""

    def allows(self, key: Key) -> bool:
        """Whether the next round may draft."""
        return True

    def tell(self, key: Key, speculated: bool, seconds: float, tokens: int) -> None:
        """Takes in what a round took."""
