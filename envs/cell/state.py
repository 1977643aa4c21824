"""What is known of cells before a round is planned, whoever plays it: schedulers read this alone.

`draftgym.envs.cell.cell.Cell` plays rounds by models of radio, devices and server;
`draftgym.serving.edge.server.cell.WireCell` is told what really happened. Both are this, so a
scheduler plans and observes alike in an environment and over a network.
"""

from __future__ import annotations

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import Mask, TextFacts
from draftgym.envs.cell.uploads import Uploads
from draftgym.envs.cell.users import Users
from draftgym.envs.radio.radio import best_shares, known_efficiency
from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem
from draftgym.policies.multispin.uplink import Floats


class CellState:
    """n cells of K places.

    Args:
        table: Their texts.
        settings: What the cells are made of.
        count: n.

    Attributes:
        users: Who is there.
        reported: SNRs as the scheduler knows them `[n, K]`.
        clock: Seconds since the beginning `[n]`.
        uploads: Drafts under way; none between synchronous rounds.
        longest: Longest draft that may be asked for.
        pass_seconds: Seconds of verifying all K users without drafts; the unit of observations.

    Raises:
        DraftgymError: Drafts are to be longer than the texts tell of, or a mean belongs to no task.
    """

    reported: Floats

    def __init__(self, table: TextFacts, settings: CellSettings, count: int = 1) -> None:
        self.table, self.settings, self.count = table, settings, count
        self.shape = count, settings.users
        self.longest = settings.longest_draft or table.longest
        if self.longest > table.longest:
            raise DraftgymError(
                f"drafts of {self.longest} tokens; these traces tell of {table.longest}",
                "ask for shorter ones, or trace longer chains",
            )
        self.payload, self.band = settings.make_payload(), settings.edge.radio.band
        self.verification = settings.edge.server.affine()
        self.pass_seconds = float(self.verification.seconds(settings.users, 0))
        self.users = Users(table, settings, count, 1 / self.pass_seconds)
        self.clock = np.zeros(count)
        self._text_acceptance = table.text_acceptance()
        self.uploads = Uploads(self.shape, settings.deadline)

    @property
    def deciding(self) -> Mask:
        """Whose draft lengths the next step reads `[n, K]`."""
        return self.users.active & ~self.uploads.in_flight

    @property
    def sending(self) -> Mask:
        """Whose upload under way still needs the band `[n, K]`."""
        return np.asarray(self.uploads.bits_left(self.clock) > 0)

    def problem(self, min_length: int = 0) -> RoundProblem:
        """The next round as a closed form sees it, of those who decide `[n, K]`.

        The channel is the reported one. Where others are still uploading, those who decide have the
        part of the band that they are of the users. Acceptance is each text's likeliest constant
        one: the truth of that model, which only a scheduler with the belief `given` reads. Where
        noise grows with bandwidth, efficiencies are those at equal shares.

        Args:
            min_length: Shortest draft; 1 in the paper.
        """
        users, deciding = self.users, self.deciding
        part = np.maximum(deciding.sum(-1), 1) / np.maximum(users.active.sum(-1), 1)
        return RoundProblem(
            draft_seconds=users.token_seconds,
            payload_bits=np.asarray(self.payload.bits_per_token, float),
            efficiency=known_efficiency(self.band, self.reported, 1 / self.settings.users),
            acceptance=self._text_acceptance[users.arm, users.text],
            bandwidth=self.band.hertz * part,
            verification=self.verification,
            min_length=min_length,
            max_length=self.longest,
            active=deciding,
        )

    def draft_seconds(self, tokens: Lengths, asked: Mask) -> Floats:
        """Time of drafting so many tokens, and of asking for them where somebody is `[n, K]`."""
        return tokens * self.users.token_seconds + asked * self.settings.latency

    def best_plan(self, lengths: Lengths, snr: Floats | None = None) -> Plan:
        """These lengths, with the shares that end their uploads soonest as far as is known.

        Args:
            lengths: Read for those who decide `[n, K]`.
            snr: Channels to reckon with `[n, K]`; None: as reported.
        """
        snr, deciding = self.reported if snr is None else snr, self.deciding
        lengths = np.where(deciding, lengths, 0)
        begin = self.uploads.begin + self.draft_seconds(lengths, lengths > 0)
        ready = np.where(deciding, begin, self.uploads.ready)
        work = np.maximum(ready - self.clock[:, None], 0.0)
        left = self.uploads.bits_left(self.clock)
        bits = np.where(deciding, self.payload.draft_bits(lengths), left)
        work = np.where(bits > 0, work, 0.0)
        return Plan(lengths, best_shares(self.band, snr, work, bits))
