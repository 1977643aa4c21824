"""What a step of many cells did: tokens by user, time by piece."""

from __future__ import annotations

from dataclasses import dataclass

from draftgym.envs.cell.text_table import Ints, Mask
from draftgym.envs.cell.users import Turnover
from draftgym.policies.multispin.uplink import Floats


@dataclass(frozen=True)
class CellTime:
    """Where the time of a step went, seconds `[n]` each.

    What comes before verification is of the user that came last: a batch waits for it.

    Attributes:
        draft: Its drafting.
        upload: Its upload.
        wait: For the window to close.
        verify: The pass.
        reply: Uploads of distributions where a token was rejected (2608.29618), the longest one.
    """

    draft: Floats
    upload: Floats
    wait: Floats
    verify: Floats
    reply: Floats

    @property
    def total(self) -> Floats:
        """All pieces together."""
        return self.draft + self.upload + self.wait + self.verify + self.reply


@dataclass(frozen=True)
class CellRound:
    """A step of n cells with K places.

    Attributes:
        present: Who was there `[n, K]`.
        taken: Who was verified `[n, K]`.
        drafted: Tokens verified of each `[n, K]`; 0 of the others.
        committed: Tokens committed `[n, K]`; 0 of who was not verified.
        rows: Rows of the table at which these rounds began `[n, K]`.
        shares: Parts of the band `[n, K]`.
        time: Where the time went.
        idle: Seconds afterwards in which nobody was there `[n]`; no agent is to blame for them.
        turnover: Who finished, began and came.
    """

    present: Mask
    taken: Mask
    drafted: Ints
    committed: Ints
    rows: Ints
    shares: Floats
    time: CellTime
    idle: Floats
    turnover: Turnover
