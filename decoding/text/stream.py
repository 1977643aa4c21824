"""Token ids in, pieces of text out, while a text is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from draftgym.decoding.text.stops import NO_STOPS, Stops

UNFINISHED = "\ufffd"
"""What half a character decodes to."""

LONGEST_WINDOW = 64
"""Tokens that are decoded anew with each round, before some of them are forgotten."""

KEPT = 16
"""Newest tokens that are never forgotten: what the next token may still change."""


class TextStream:
    """Token ids in, pieces of text out; a piece is never taken back.

    Bytes of one character can come in several tokens, so text that may still change (unfinished
    characters, trailing blanks, which some tokenizers drop before punctuation) is held back.

    The pieces are those of decoding all tokens each time. Only the newest tokens are: older ones
    are forgotten at a place where both sides decode by themselves to what they decode to together.

    Args:
        decode: Token ids to text.
        emit: Takes the pieces.
        stops: What ends the text: it ends before a stop string.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        emit: Callable[[str], None],
        stops: Stops = NO_STOPS,
    ) -> None:
        self._decode, self._emit, self._stops = decode, emit, stops
        self._window: list[int] = []
        self._limit = LONGEST_WINDOW
        self._before = ""  # of the text before the window, what was not shown or may begin a stop
        self._shown = 0  # characters of it and the window's text
        self._longest_stop = max((len(one) for one in stops.strings), default=0)

    def add(self, tokens: Sequence[int]) -> None:
        """Takes a round's tokens and emits what is settled."""
        self._window += tokens
        newest = self._decode(self._window)
        text = self._before + newest
        settled = self._stops.cut(text)
        whole = settled == text
        settled = settled.rstrip().rstrip(UNFINISHED).rstrip()
        if whole:  # behind it, a stop string may go on
            settled = settled[: len(settled) - self._stops.held_back(settled)].rstrip()
        self._show(settled)
        if len(self._window) > self._limit:
            self._forget(newest)

    def close(self) -> None:
        """Emits what was held back."""
        self._show(self._stops.cut(self._before + self._decode(self._window)))

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._emit(text[self._shown :])
            self._shown = len(text)

    def _forget(self, newest: str) -> None:
        """Shortens the window, whose text is `newest`; the later, the longer there is no place."""
        for place in range(len(self._window) - KEPT, max(len(self._window) - 2 * KEPT, 0), -1):
            head = self._decode(self._window[:place])
            tail = self._decode(self._window[place:])
            # Some tokenizers drop the blank before the first word: it belongs to the forgotten.
            blank = newest[len(head) : len(newest) - len(tail)]
            parted = newest == head + blank + tail and not blank.strip()
            if parted and tail and not tail.startswith(UNFINISHED):
                self._before += head + blank
                gone = max(min(self._shown, len(self._before) - self._longest_stop), 0)
                self._before, self._shown = self._before[gone:], self._shown - gone
                self._window, self._limit = self._window[place:], LONGEST_WINDOW
                return
        self._limit = 2 * len(self._window)
