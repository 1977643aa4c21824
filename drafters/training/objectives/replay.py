"""Training where verification found the drafter wrong (after Draft-OPD, arXiv 2605.29343).

Training on fixed texts of the target's looks everywhere alike; decoding is slowed by the places
where the drafter as it is now goes wrong. So every now and then the drafter decodes some of the
texts together with the target (`errors`), what verification rejected goes into a bounded buffer,
and each update trains there as well as on its batch.

From the paper: target-assisted rollout, so that texts stay the target's, and drafting again from
the positions that verification exposed as errors. Its formulas could not be had; the rest is ours.

- The target's part of the rollout is its recorded text: what greedy decoding writes does not depend
  on the drafter. A rollout thus costs drafts alone, and new texts come with a larger corpus.
- The loss at a replayed anchor is the recorded one. Up to the first wrong token, which is as far as
  verification gets, what the drafter reads there is its own draft: feedback on what is accepted and
  on what is rejected is the paper's. Behind it we follow the target's text, the paper (as we read
  its abstract) the draft; that would cost a pass of the target per update, as `vsd` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import FeatureBatch, FeatureCache
from draftgym.drafters.training.objectives.errors import (
    ERROR,
    FOUND,
    START,
    TEXT,
    ErrorBuffer,
    errors_of,
)
from draftgym.drafters.training.objectives.losses import Loss, Scored
from draftgym.drafters.training.objectives.objective import ObjectiveOutput, RecordedObjective
from draftgym.drafters.training.objectives.unroll import Unroller

Where = Literal["error", "round"]


@dataclass(frozen=True)
class ReplaySettings:
    """Where the drafter goes wrong, and how much that counts."""

    share: float = 0.5
    """Weight of the replayed anchors' loss, above 0; that of the batch's own has the rest to 1."""
    where: Where = "error"
    """error: draft again right before the wrong token. round: where the round that went wrong
    began, so that the error is met as deep in the draft as it was."""
    depth: int = 4
    """Tokens that a round drafts."""
    rollouts: int = 16
    """Random texts that are decoded anew each time."""
    every: int = 25
    """Updates between two times; the first comes before any."""
    size: int = 4096
    """Errors that are kept; the oldest go first, and those of a text when it is decoded anew."""
    texts: int = 2
    """Texts with errors that are visited in each update, beside those of its batch; all of their
    errors are anchors, but at most as many as --drafter.anchors."""


def check_replay(settings: ReplaySettings) -> None:
    """Raises `DraftgymError` for settings that cannot work."""
    if not 0 < settings.share <= 1:
        raise DraftgymError(
            f"--terms.replay.share is {settings.share}",
            "give a share above 0 and at most 1; without replay, train with --objective plain",
        )
    for knob in fields(settings):
        value = getattr(settings, knob.name)
        if isinstance(value, int) and value < 1:
            raise DraftgymError(f"--terms.replay.{knob.name} is {value}", "give at least 1")


class ReplayObjective(RecordedObjective):
    """The recorded loss of a batch, mixed with that at errors of the drafter in other texts.

    Which texts are decoded and replayed depends on the seeds alone; the buffer is part of the
    state, so that a resumed run goes on as if it had not been interrupted. While it is empty, this
    is the recorded loss.

    Args:
        unroller: The drafter in training.
        loss: What to minimise at both kinds of anchors.
        settings: How much of what.
        texts: What to train on.
        features: Where the target's hidden states of them come from.
        anchors: Random anchors per text and visit; None takes all.

    Attributes:
        buffer: Errors in `texts`.
    """

    def __init__(
        self,
        unroller: Unroller[Any],
        loss: Loss,
        settings: ReplaySettings,
        texts: Sequence[Text],
        features: FeatureCache,
        anchors: int | None = None,
    ) -> None:
        super().__init__(unroller, loss, anchors)
        self.settings, self.texts, self.features = settings, texts, features
        self.drafter, self.buffer = unroller.drafter(), ErrorBuffer()

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch; without a seed (validation) that of the recorded text alone."""
        if seed is None:
            return super().__call__(batch)
        if not self.buffer.filled or seed - self.buffer.filled >= self.settings.every:
            self.buffer = self.refilled(seed)
        scored = self.scored(batch, seed)
        loss = self.loss(scored)
        metrics = {"errors": len(self.buffer.errors), "replayed": 0.0}
        drawn = self.buffer.draw(self.settings.texts, self.anchors, seed)
        if drawn:
            again = self.replayed(drawn, seed)
            share = self.settings.share
            loss = (1 - share) * loss + share * (replayed_loss := self.loss(again))
            rows = torch.cat(drawn)
            metrics |= {
                "replayed": again.anchors / (again.anchors + scored.anchors),
                "replayed_loss": float(replayed_loss.detach()),
                "age": seed - float(rows[:, FOUND].double().mean()),
                "accepted_before": float((rows[:, ERROR] - rows[:, START] - 1).double().mean()),
            }
        return ObjectiveOutput(loss, scored.agreement(), metrics)

    def refilled(self, update: int) -> ErrorBuffer:
        """The buffer after decoding some texts with the drafter as it is now."""
        generator = torch.Generator().manual_seed(update)
        order = torch.randperm(len(self.texts), generator=generator)
        decoded: list[int] = order[: self.settings.rollouts].tolist()
        with self.unroller.drafting():
            errors = [self._errors(self.texts[index]) for index in decoded]
        return self.buffer.with_texts(decoded, errors, update, self.settings.size)

    def _errors(self, text: Text) -> Tensor:
        batch = self._features([text])
        taps = batch.taps[0].to(self.network.fc.weight.dtype)
        tokens = batch.tokens[0]
        recorded = RecordedText(tokens, text.prompt_length, taps, self.tap_layers, GreedyRule())
        depth = min(self.settings.depth, self.unroller.depth)
        return errors_of(self.drafter, recorded, depth)

    def replayed(self, drawn: Sequence[Tensor], seed: int) -> Scored:
        """Draft positions behind some errors.

        Args:
            drawn: Rows of the buffer, one tensor per text.
            seed: Of the candidates.
        """
        batch = self._features([self.texts[int(rows[0, TEXT])] for rows in drawn])
        before = [
            rows[:, START] if self.settings.where == "round" else rows[:, ERROR] - 1
            for rows in drawn
        ]
        anchors = pad_sequence(before, batch_first=True, padding_value=1)
        counts = torch.tensor([len(rows) for rows in drawn])
        valid = torch.arange(anchors.shape[1]) < counts[:, None]
        device = batch.tokens.device
        return self.unroller.score_text(batch, anchors.to(device), valid.to(device), seed)

    def _features(self, texts: Sequence[Text]) -> FeatureBatch:
        return self.features.batch(texts, self.tap_layers).to_train()

    def state(self) -> dict[str, Any]:
        """The buffer, and what tells its texts from others."""
        tokens = sum(len(text.tokens) for text in self.texts)
        return {"tokens": tokens, "errors": self.buffer.errors, "filled": self.buffer.filled}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the buffer back, unless it is of other texts; then it is made anew."""
        if state.get("tokens") == self.state()["tokens"]:
            self.buffer = ErrorBuffer(state["errors"], state["filled"])
