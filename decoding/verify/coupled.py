"""Coupled verification: sampling noise that drafter and target share, so that both draw alike.

The noise is a pure function of (seed, position, token id). The same triple gives the same number
whoever asks and whenever: the drafter and the target draw the same noise without talking to each
other, and a text sampled with it does not depend on how its tokens were grouped into rounds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.model.device import upload
from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    best_of,
    check_draft,
    check_rows,
    choices_of,
    chosen_tokens,
    walk,
)
from draftgym.decoding.verify.proposal import Proposal

_KEY_MASK = (1 << 128) - 1
_LARGEST_BELOW_ONE = np.float32(1 - 2**-24)


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for every token id at one position of a text.

    Entry v does not depend on `vocab_size`: a shorter row is a prefix of a longer one.

    Args:
        seed: Any integer; its low 128 bits (two's complement) are used.
        position: Absolute position in the sequence of the token that the noise chooses, 0 to
            2^64 - 1.
        vocab_size: Number of entries.

    Returns:
        Noise on the CPU, shape `[vocab_size]`, float32, finite.

    Raises:
        ValueError: If the position is out of range.
    """
    if not 0 <= position < 1 << 64:
        raise ValueError(f"the position must be between 0 and 2^64 - 1, got {position}")
    # Philox is counter-based. The position sits above 64 bits of counter, so that no row can run
    # into the next one. `random_raw` is the bare algorithm: unlike Generator's methods its stream
    # is fixed for good.
    philox = np.random.Philox(key=seed & _KEY_MASK, counter=position << 64)
    words = philox.random_raw((vocab_size + 1) // 2).astype("<u8", copy=False)
    bits = words.view("<u4")[:vocab_size]
    # float32 is fine near 0 and coarse near 1. The large Gumbel values, which decide an argmax,
    # come from small u in this form, so that the tail that matters has full resolution.
    uniform = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)
    exponential = -np.log1p(-np.minimum(uniform, _LARGEST_BELOW_ONE))
    return torch.from_numpy(-np.log(exponential))


class NoiseCache:
    """The latest rows of one seed's noise, as drafter and verifier ask for the same positions.

    Args:
        seed: Seed of the text.
        vocab_size: Length of every row.
        capacity: Number of positions kept; the least recently used goes first.
    """

    def __init__(self, seed: int, vocab_size: int, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.seed = seed
        self.vocab_size = vocab_size
        self.capacity = capacity
        self._rows: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, positions: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Noise of several positions.

        Args:
            positions: Absolute positions on the host, length n; may repeat.
            device: Where the rows are wanted. They stay there, so that the second caller on an
                accelerator pays no transfer; new ones go there together.

        Returns:
            A new tensor, shape `[n, vocab_size]`, float32.
        """
        wanted = positions.tolist() if isinstance(positions, Tensor) else positions
        if not len(wanted):
            return torch.empty(0, self.vocab_size, device=device)
        new = [int(position) for position in dict.fromkeys(wanted) if position not in self._rows]
        if len(new) > 1 and torch.device(device).type != "cpu":
            made = torch.stack([gumbel_noise(self.seed, at, self.vocab_size) for at in new])
            self._rows |= zip(new, upload(made, torch.device(device)), strict=True)
        return torch.stack([self.row(int(position), device) for position in wanted])

    def row(self, position: int, device: torch.device | str = "cpu") -> Tensor:
        """Noise of one position, shape `[vocab_size]`, float32; shared, so do not write into it."""
        row = self._rows.pop(position, None)
        if row is None:
            row = gumbel_noise(self.seed, position, self.vocab_size)
        self._rows[position] = row = upload(row, torch.device(device))
        while len(self._rows) > self.capacity:
            self._rows.popitem(last=False)
        return row


class CoupledRule(VerificationRule):
    """Sampling by argmax of logits / T + Gumbel noise shared between drafter and target.

    The noise depends on (seed, position, token id) only, so the target's own choice after a prefix
    is a function of that prefix: verification is the same walk as greedy's.

    Args:
        temperature: Above 0.
        seed: Seed of the text.
        vocab_size: Size of the target's vocabulary (width of its logits).
    """

    name = "coupled"
    places_together = 48
    """The noise of so many and of what is drafted behind them is kept (`NoiseCache`)."""

    def __init__(self, temperature: float, seed: int, vocab_size: int) -> None:
        self.temperature = temperature
        self.noise = NoiseCache(seed, vocab_size)

    @property
    def picks_best(self) -> bool:
        """Whether a chain is ranked as a tree is: what draws its tokens is shared noise."""
        return self.shaping is None

    @property
    def unit(self) -> float:
        """The temperature that logits are divided by; see `VerificationRule.unit`."""
        return self.temperature

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Argmax with the target's noise; see `VerificationRule.draft`."""
        choices = self.ranking(self.narrowed(logits), positions, vocab).argmax(-1)
        return *chosen_tokens(logits, choices, vocab), None

    def ranking(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Tensor:
        """Logits / T plus the target's noise; see `VerificationRule.ranking`.

        The target's choice is the argmax of *its* logits / T plus the same noise, so what is left
        to guess is only how far the logits differ.
        """
        check_draft(logits, vocab, self.noise.vocab_size)
        shared = positions[:1] if len(set(positions)) == 1 else positions  # one level of a tree
        noise = self.noise.rows(shared, logits.device)
        # Draft rows without a map are the first target ids (some models pad their vocabulary).
        noise = noise[:, : logits.shape[1]] if vocab is None else noise[:, vocab.to(noise.device)]
        return self._scores(logits, noise)

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """The target's own samples; on a processor only the logits; see `VerificationRule.look`."""
        check_rows(proposal, logits, self.noise.vocab_size)
        if logits.device.type == "cpu":
            return (logits,)
        after = [position + 1, *(position + 1 + proposal.depths()).tolist()]
        scores = self._scores(logits, self.noise.rows(after, logits.device))
        return best_of(scores, with_margins)

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """Walks the tree along the target's own samples; see `VerificationRule.decide`."""
        if len(seen) > 1:
            return walk(proposal, choices_of(*seen), with_margins)
        (logits,) = seen

        def choose(row: int, depth: int) -> tuple[int, float]:
            # Row by row: noise for rows off the path would be made for nothing.
            scores = self._scores(logits[row], self.noise.row(position + depth + 1))
            return choices_of(*best_of(scores[None], with_margins))(0, depth)

        return walk(proposal, choose, with_margins)

    def _scores(self, logits: Tensor, noise: Tensor) -> Tensor:
        return logits.float() / self.temperature + noise
