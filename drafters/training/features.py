"""What the target says about a batch of texts: taps and final hidden states, padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decoding.target import Target
from decoding.transformer import NewRows
from drafters.training.corpus import Text


@dataclass(frozen=True)
class FeatureBatch:
    """A padded batch. B = texts, S = longest text.

    Attributes:
        tokens: Token ids `[B, S]`, zero behind the end.
        lengths: Tokens of each text `[B]`.
        prompt_lengths: Prompt tokens of each text `[B]`.
        taps: Concatenated taps `[B, S, k * d]`.
        hidden: Final hidden states after the last norm `[B, S, d]`.
    """

    tokens: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    taps: Tensor
    hidden: Tensor

    @property
    def response_tokens(self) -> int:
        """Response tokens in the batch."""
        return int((self.lengths - self.prompt_lengths).sum())


def target_features(
    target: Target, texts: Sequence[Text], tap_layers: Sequence[int]
) -> FeatureBatch:
    """Runs the target once over whole texts, all in one ragged pass."""
    decoder = target.decoder
    rows = [NewRows(decoder.new_cache(len(text.tokens)), text.tokens) for text in texts]
    outputs = decoder.forward(rows, tap_layers, with_logits=False)
    # Clones: autograd cannot save tensors that were made in inference mode.
    taps = [output.taps.flatten(1).clone() for output in outputs]
    hidden = [output.hidden.clone() for output in outputs]
    return FeatureBatch(
        tokens=pad_sequence([text.tokens for text in texts], batch_first=True),
        lengths=torch.tensor([len(text.tokens) for text in texts]),
        prompt_lengths=torch.tensor([text.prompt_length for text in texts]),
        taps=pad_sequence(taps, batch_first=True),
        hidden=pad_sequence(hidden, batch_first=True),
    )
