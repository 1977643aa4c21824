"""What each token adds to a text, so that tokens can be shown one by one without losing a byte."""

from __future__ import annotations

from collections.abc import Sequence

from draftgym.decoding.model.target import Target


class Pieces:
    """Splits texts into their tokens' pieces; the same tokens are split only once.

    Args:
        target: Decodes token ids.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._special = {*target.stop_tokens, *getattr(target.tokenizer, "all_special_ids", ())}
        self._known: dict[tuple[int, ...], list[str]] = {}

    def of(self, tokens: Sequence[int]) -> list[str]:
        """One piece per token; together they are exactly what the target decodes the tokens to.

        A character whose bytes come in several tokens belongs to the last of them, and the pieces
        of the others are empty. So are those of special tokens.
        """
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = self._split(list(tokens))
        return self._known[key]

    def after(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """Pieces of tokens that were drafted behind others and may not have been kept.

        Args:
            before: Some tokens of the text in front of them: some tokenizers drop a text's first
                blank, and a character may have begun there.
            tokens: What was drafted.
        """
        return self._split([*before, *tokens], len(before))

    def name(self, token: int) -> str | None:
        """What a token without a text is called, if it is special (end of text, padding)."""
        if token not in self._special:
            return None
        return str(self._target.tokenizer.convert_ids_to_tokens(token))

    def _split(self, tokens: list[int], skipped: int = 0) -> list[str]:
        """Pieces of the tokens behind the first `skipped`."""
        whole = self._target.decode(tokens)
        settled = _agreement(self._target.decode(tokens[:skipped]), whole)
        pieces = []
        for count in range(skipped + 1, len(tokens) + 1):
            # Half a character decodes to something that the whole text has not got there.
            text = whole if count == len(tokens) else self._target.decode(tokens[:count])
            end = max(settled, _agreement(text, whole))
            pieces.append(whole[settled:end])
            settled = end
        return pieces


def _agreement(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
