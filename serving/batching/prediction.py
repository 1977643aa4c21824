"""Predicted outputs: what a client expects in the answer is where prompt lookup copies from, too.

OpenAI's `prediction` is made for edits: most of the answer is the text that the client has.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.verify.proposal import Proposal


class PredictedLookup(Drafter):
    """Prompt lookup in a predicted text and, first of all, in the text itself.

    Args:
        lookup: Looks up in texts.
        prediction: Token ids of the predicted text.
    """

    def __init__(self, lookup: Drafter, prediction: Sequence[int]) -> None:
        self.lookup, self.prediction = lookup, list(prediction)
        self.name, self.looks_up = lookup.name, lookup.looks_up
        self.max_draft_length = lookup.max_draft_length

    @property
    def fingerprint(self) -> str:
        """That of the lookup: it decides how, and the text decides what."""
        return self.lookup.fingerprint

    def new_state(self, capacity: int) -> object:
        """An empty index."""
        return self.lookup.new_state(capacity + len(self.prediction))

    def catch_up(self, state: object, context: DraftContext, full: bool = False) -> int:
        """Indexes the prediction, then the text."""
        return self.lookup.catch_up(state, _Behind(self.prediction, context), full)

    def propose(self, state: object, context: DraftContext, shape: DraftShape) -> Proposal:
        """Copies from whichever matched last."""
        return self.lookup.propose(state, _Behind(self.prediction, context), shape)


class _Behind:
    """A context behind a predicted text, for a drafter that reads token ids alone."""

    def __init__(self, prediction: list[int], context: DraftContext) -> None:
        self.rule, self._context = context.rule, context
        self.token_ids = [*prediction, *context.token_ids]

    @property
    def prompt_length(self) -> int:
        """That of the text."""
        return self._context.prompt_length

    @property
    def tokens(self) -> Tensor:
        """The text's own tokens."""
        return self._context.tokens

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps of the text."""
        return self._context.features(layers, start, stop)
