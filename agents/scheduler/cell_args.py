"""Cells of many users as the command line describes them, for training and for comparing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from draftgym.envs.cell.host import read_host
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import TextFacts
from draftgym.envs.radio.channel_trace import read_channel_traces


@dataclass(frozen=True, kw_only=True)
class CellArgs:
    """A cell of users; `draftgym.envs.cell.settings` has settings by name.

    Attributes:
        setting: Radio, device, server and payload, such as multispin-llama2.
        server: File of a measured host (draftgym measure-host): the server verifies as that host
            does, instead of as the setting's.
        device_factor: Devices draft so many times as slowly as that host does, or, without one, as
            the setting's. Default: as the setting's.
        users: Places for users.
        fewest: Cells begin with so many users at least, at random. Default: all places are taken.
        arms: Chains that devices draft with, one per drafter (small:8 ngram:16). Default: the
            longest traced one of every drafter.
        longest_draft: Longest draft that may be asked for. Default: the longest that was traced.
        payload: What devices upload: tokens, scalar or truncated. Default: the setting's.
        channels: CSV files of recorded channels (draftgym.envs.radio.channel_trace), followed by
            users at random, instead of the setting's fading.
        channel_hertz: Bandwidth over which recorded rates were reached; needed for rates alone.
        report_rounds_old: Age of what the scheduler knows of channels, in rounds.
        report_error_db: Standard deviation of its error, decibels.
        confidence: Whether devices begin to draft at once and report how sure they are of the first
            token, for who reads it: trained schedulers. Rules do without, and without its time.
            Prompt lookup takes none and always tells.
        window: Verify whoever has arrived within so many seconds. Default: wait for everybody.
        latency: Seconds that the network adds to a draft's way, there and back.
        overhead: Seconds of every round beside drafts, uploads and the pass, such as planning.
        prompt_token_seconds: Seconds that a token of a prompt takes the server, beside a pass of
            its own for each prompt. Default: prompts take no time.
        deadline: Seconds after which a draft is no longer waited for. Default: none.
        leaving: Probability that a user leaves when its text is done.
        absence: Mean seconds until another comes.
    """

    setting: str = "multispin-llama2"
    server: Path | None = None
    device_factor: float | None = None
    users: int = 8
    fewest: int | None = None
    arms: tuple[str, ...] = ()
    longest_draft: int | None = None
    payload: str | None = None
    channels: tuple[Path, ...] = ()
    channel_hertz: float | None = None
    report_rounds_old: int = 0
    report_error_db: float = 0.0
    confidence: bool = False
    window: float | None = None
    latency: float = 0.0
    overhead: float = 0.0
    prompt_token_seconds: float = 0.0
    deadline: float | None = None
    leaving: float = 0.0
    absence: float = 10.0

    def settings(self, means: Mapping[str, float] | None = None) -> CellSettings:
        """The cell.

        Args:
            means: Mean acceptance of tasks as measured beforehand; None: of the traces played.

        Raises:
            DraftgymError: A number is impossible, a name unknown, no host in the file, or a
                recording is damaged.
        """
        named = asdict(self) | {"arms": self.arms or None, "means": means or {}}
        server, factor = named.pop("server"), named.pop("device_factor")
        files, hertz = named.pop("channels"), named.pop("channel_hertz")
        recorded = [trace for file in files for trace in read_channel_traces(file, hertz)]
        settings = CellSettings(**named, channel_traces=tuple(recorded))
        if server is not None:
            return read_host(server).serve(settings, factor)
        if factor is None:
            return settings
        edge = replace(settings.edge, device=settings.edge.device.slowed(factor))
        return replace(settings, setting=edge)


def known_means(means: Mapping[str, float], table: TextFacts) -> dict[str, float]:
    """Those of these means that belong to tasks of the table."""
    return {task: means[task] for task in table.task_names if task in means}


def means_of(table: TextFacts) -> dict[str, float]:
    """Mean acceptance of each task over these texts."""
    return dict(zip(table.task_names, table.task_acceptance().tolist(), strict=True))
