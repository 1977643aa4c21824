"""Who is told of rounds beside their devices: a base station, a file.

A base station divides the band, so it must know each plan: `BaseStation` sends it every device's
share. `RoundLog` keeps what rounds took. Neither ever makes a round wait.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.round import RoundRecord

if TYPE_CHECKING:
    from draftgym.serving.edge.server.cell import WireCell
    from draftgym.serving.edge.server.member import Member


@dataclass(frozen=True)
class RoundFacts:
    """A round that is over; lists have an entry per draft that was verified, empty ones included.

    Attributes:
        began: When it was planned, Unix seconds.
        seconds: From then to the verdicts.
        planning, verifying: Seconds of it that the plan and the pass took.
        peers: Addresses of the devices.
        places: Their places in the scheduler's observation.
        lengths: Tokens that each was told to draft.
        shares: Part of the band of each when the round ended.
        drafted, accepted, committed: Tokens.
        arrived: Seconds from the round's beginning to the draft, below 0 where a draft of an
            earlier round was there.
        snr_db, token_seconds: What each has reported.
    """

    began: float
    seconds: float
    planning: float
    verifying: float
    peers: Sequence[str]
    places: Sequence[int]
    lengths: Sequence[int]
    shares: Sequence[float]
    drafted: Sequence[int]
    accepted: Sequence[int]
    committed: Sequence[int]
    arrived: Sequence[float]
    snr_db: Sequence[float]
    token_seconds: Sequence[float]


class Witness(Protocol):
    """Is told what a server does, and returns at once."""

    def planned(self, shares: Mapping[str, float]) -> None:
        """The band is divided anew.

        Args:
            shares: Part of the band by the address of a device; others write no text.
        """

    def played(self, facts: RoundFacts) -> None:
        """A round is over."""

    def ended(self, totals: Any) -> None:
        """The server ends; `totals` is a dataclass of numbers."""


class BaseStation:
    """Sends plans to a Unix datagram socket as JSON: the share by address; a `Witness`.

    What the other side does not take at once is lost: the next plan replaces it.

    Args:
        path: Where the base station listens.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def planned(self, shares: Mapping[str, float]) -> None:
        """See `Witness.planned`."""
        with suppress(OSError):
            self._socket.sendto(json.dumps(dict(shares)).encode(), self._path)

    def played(self, facts: RoundFacts) -> None:
        """Nothing to do with the band; see `Witness.played`."""

    def ended(self, totals: Any) -> None:
        """See `Witness.ended`."""
        self._socket.close()


class RoundLog:
    """Appends rounds to a file, a JSON object a line, the totals last; a `Witness`.

    Args:
        path: The file; what is there stays.

    Raises:
        DraftgymError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise DraftgymError(f"{path}: {error.strerror}", "name another file") from error

    def planned(self, shares: Mapping[str, float]) -> None:
        """Told with its round; see `Witness.planned`."""

    def played(self, facts: RoundFacts) -> None:
        """See `Witness.played`."""
        self._add(asdict(facts))

    def ended(self, totals: Any) -> None:
        """See `Witness.ended`."""
        self._add({"totals": asdict(totals)})
        with suppress(OSError):
            self._file.close()

    def _add(self, told: Mapping[str, Any]) -> None:
        """Appends a line; a disk that is full ends the log, and not the rounds."""
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps(told) + "\n")
        except OSError as error:
            print(f"{self._file.name}: {error.strerror}; the log ends here", file=sys.stderr)
            with suppress(OSError):
                self._file.close()


def round_facts(
    cell: WireCell,
    members: Sequence[Member],
    records: Sequence[RoundRecord],
    moments: tuple[float, float, float],
) -> RoundFacts:
    """What witnesses are told of a round, before its cell forgets it.

    Args:
        cell: The cell.
        members: Whose drafts were verified.
        records: What was.
        moments: When the round began, the seconds that its plan took, and when it ended, by the
            server's clock.
    """
    began, planning, now = moments
    places = [int(one.place or 0) for one in members]
    return RoundFacts(
        began=time.time() - (now - began),
        seconds=now - began,
        planning=planning,
        verifying=records[0].times.verify,
        peers=[one.peer for one in members],
        places=places,
        lengths=cell.uploads.planned[0, places].tolist(),
        shares=cell.uploads.share[0, places].tolist(),
        drafted=[len(one.drafted) for one in records],
        accepted=[one.accepted for one in records],
        committed=[len(one.committed) for one in records],
        arrived=[one.arrived_at - began for one in members],
        snr_db=[one.snr_db for one in members],
        token_seconds=[one.token_seconds for one in members],
    )
