"""Where a text ends beside the token limit: the target's own end, extra tokens, and strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target

StopReason = int | str
"""The token id or the string that ended a text."""


@dataclass(frozen=True)
class Stops:
    """What ends a text beside what the target ends it with.

    Attributes:
        token_ids: Tokens that end it; the token itself is the text's last one.
        strings: Strings that end it. The last token is the one that completes the string, which may
            lie in several tokens; the text ends before it.
        ignore_eos: Whether the target's own stop tokens end nothing (benchmarks of one length).
    """

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if any(not text for text in self.strings):
            raise DraftgymError("a stop string is empty", "give some text with --stop")

    def cut(self, text: str) -> str:
        """A text up to the first of the strings in it."""
        found = [at for one in self.strings if (at := text.find(one)) >= 0]
        return text[: min(found)] if found else text

    def held_back(self, text: str) -> int:
        """How many characters at its end may be the beginning of a stop string."""
        sizes = (size for one in self.strings for size in range(len(one) - 1, 0, -1))
        return max((n for n in sizes if text.endswith(self._beginnings(n))), default=0)

    def _beginnings(self, size: int) -> tuple[str, ...]:
        return tuple(one[:size] for one in self.strings if len(one) > size)


NO_STOPS = Stops()
"""Texts end where the target ends them."""


class StopCheck:
    """Finds the token that ends a text; a function of the text's own tokens alone.

    Args:
        target: Whose text it is.
        stops: What ends it.

    Raises:
        DraftgymError: Stop strings for a target without a tokenizer, or a token id that it lacks.
    """

    def __init__(self, target: Target, stops: Stops) -> None:
        own: frozenset[int] = frozenset() if stops.ignore_eos else target.stop_tokens
        self.tokens = own | frozenset(stops.token_ids)
        self.strings = stops.strings
        strange = [one for one in stops.token_ids if not 0 <= one < target.vocab_size]
        if strange:
            raise DraftgymError(
                f"stop token {strange[0]} is none of the {target.vocab_size} of target "
                f"{target.name!r}",
                "correct --stop-token-ids",
            )
        self._decode: Callable[[list[int]], str] = target.decode
        if self.strings:
            self._decode([])  # a target without a tokenizer says so
        # A token has a byte of text at least, but for special ones and halves of characters.
        self._window = max((len(one.encode()) for one in self.strings), default=0) + 16

    def first(self, before: Sequence[int], tokens: Sequence[int]) -> tuple[int, StopReason] | None:
        """Where a text ends among its newest tokens, and why.

        Args:
            before: The tokens before them (without the prompt's); read for stop strings alone.
            tokens: The newest ones.

        Returns:
            How many of `tokens` belong to the text, and the token or string that ends it; None
            where it goes on.
        """
        for count, token in enumerate(tokens, start=1):
            if token in self.tokens:
                return count, token
            if self.strings and (found := self._string_in([*before, *tokens[:count]])):
                return count, found
        return None

    def _string_in(self, tokens: list[int]) -> str | None:
        """The stop string that the newest token completes: the one that begins first."""
        text = self._decode(tokens[-self._window :])
        found = [(text.find(one), one) for one in self.strings if one in text]
        return min(found)[1] if found else None
