"""What a server has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftgym.decoding.round import RoundRecord


@dataclass
class Totals:
    """What a server has done.

    Attributes:
        rounds: Passes over drafts.
        seconds: What rounds took, from the plan to the verdict.
        verified: Drafts verified, empty ones included.
        late: Times that a round did not wait for a draft any longer.
        drafted, committed: Tokens.
        texts: Texts that were written to their end.
    """

    rounds: int = 0
    seconds: float = 0.0
    verified: int = 0
    late: int = 0
    drafted: int = 0
    committed: int = 0
    texts: int = 0

    def add(self, seconds: float, records: Sequence[RoundRecord]) -> None:
        """Counts a round."""
        self.rounds += 1
        self.seconds += seconds
        self.verified += len(records)
        self.drafted += sum(len(record.drafted) for record in records)
        self.committed += sum(len(record.committed) for record in records)
