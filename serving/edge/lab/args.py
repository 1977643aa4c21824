"""What a lab is asked for, and whether that can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.seeds import check_seed
from draftgym.envs.cell.settings import edge_setting

SHORTEST_STEP = 0.01


@dataclass(frozen=True)
class DeviceKind:
    """A class of devices.

    Attributes:
        drafter: small, ngram, or the folder of a small LM.
        token_seconds: Seconds per drafted token at least; None for as fast as this host is.
    """

    drafter: str
    token_seconds: float | None

    def __str__(self) -> str:
        return self.drafter + ("" if self.token_seconds is None else f"@{self.token_seconds:g}")


def parse_kind(text: str) -> DeviceKind:
    """A class of devices as the command line tells it: DRAFTER, or DRAFTER@SECONDS.

    Raises:
        DraftgymError: It is neither.
    """
    drafter, at, seconds = text.rpartition("@")
    if not at:
        return DeviceKind(text, None)
    try:
        number = float(seconds)
    except ValueError:
        number = -1.0
    if not drafter or not 0 <= number < 3600:
        raise DraftgymError(f"{text!r} is no class of devices", "write small@0.06, or ngram")
    return DeviceKind(drafter, number)


@dataclass(frozen=True, kw_only=True)
class EdgeLabArgs:
    """Run devices and a server over links that are really slow; needs Linux and root.

    Attributes:
        devices: Devices, each a process in a network of its own.
        seconds: How long they write; texts that are then under way stay unfinished.
        prompts: What they write: train, heldout, or a JSON-lines file. Device i begins with
            prompt i.
        limit: So many prompts of it at most, from each category in turn.
        max_new_tokens: Tokens of a text at most.
        temperature: 0 (greedy), or above to sample.
        seed: Of channels, loss, jitter and sampling noise.
        kinds: Classes of devices in turn: a drafter (small, ngram, a folder), and behind an @ the
            seconds that a drafted token takes at least.
        target: The language model whose text is written.
        scheduler: Who plans; see `draftgym edge serve`.
        longest_draft: Longest draft; a trained scheduler brings its own.
        payload: What drafts of texts with a temperature carry; see `draftgym edge serve`.
        kept: Probabilities of a truncated distribution at most.
        server: File of this host as measured (draftgym measure-host); without it, a few passes
            are timed first.
        server_factor: With it, a pass takes so many times what that file says, at least.
        round_seconds: Time that a round waits for drafts.
        setting: Whose radio fades: multispin-llama2 or multispin-qwen3.5.
        band_hertz: Width of the band that devices share.
        channels: Recorded channels instead (CSV), for devices in turn.
        step_seconds: How long a drawn channel stays as it is.
        least_kbit: Kilobits per second that a device may send at any share, as a control channel.
        down_mbit: Megabits per second down to each device; default: any.
        delay_ms: Delay of every packet, each way.
        jitter_ms: Up to so much more or less.
        loss: Probability that a packet is lost, each way.
        queue_bytes: Bytes that may wait at each link, each way.
        dtype: Of the target: float32 (a text is the same whoever else is served), bfloat16, auto.
        device: Where target and small LMs compute, as `draftgym edge serve` takes it.
        drafter_dtype: Of small LMs.
        threads: CPU threads of the server; each device has one.
        faults: What goes wrong, each once: all, or names of the guide's table.
        check: Whether texts are compared with plain decoding, afterwards.
        folder: Keep logs, channels and what devices wrote here.
        json: Write everything that was measured to this file.
    """

    devices: int = 4
    seconds: float = 60.0
    prompts: str = "heldout"
    limit: int = 24
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = ("small@0.06", "ngram")
    target: str = "smollm2-135m"
    scheduler: str = "heterogeneous@beta+found"
    longest_draft: int = 16
    payload: Literal["tokens", "scalar", "truncated"] = "tokens"
    kept: int = 1024
    server: Path | None = None
    server_factor: float | None = None
    round_seconds: float = 2.0
    setting: str = "multispin-llama2"
    band_hertz: float = 1e6
    channels: Path | None = None
    step_seconds: float = 0.5
    least_kbit: float = 16.0
    down_mbit: float | None = None
    delay_ms: float = 10.0
    jitter_ms: float = 2.0
    loss: float = 0.0
    queue_bytes: int = 131072
    dtype: str = "float32"
    device: str = "auto"
    drafter_dtype: str = "auto"
    threads: int | None = None
    faults: tuple[str, ...] = ()
    check: bool = True
    folder: Path | None = None
    json: Path | None = None

    def validate(self) -> None:
        """Raises `DraftgymError` for what cannot work, before anything is started."""
        check_seed(self.seed)
        possible = {
            "devices": self.devices >= 1,
            "seconds": 0 < self.seconds < float("inf"),
            "limit": self.limit >= 1,
            "band_hertz": 0 < self.band_hertz < float("inf"),
            "step_seconds": SHORTEST_STEP <= self.step_seconds < float("inf"),
            "least_kbit": 0 <= self.least_kbit < float("inf"),
            "down_mbit": self.down_mbit is None or self.down_mbit > 0,
            "delay_ms": 0 <= self.delay_ms < 60_000,
            "jitter_ms": 0 <= self.jitter_ms <= self.delay_ms,
            "loss": 0 <= self.loss < 1,
            "queue_bytes": self.queue_bytes >= 2000,
            "kinds": bool(self.kinds),
        }
        for name, fine in possible.items():
            if not fine:
                raise DraftgymError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}",
                    "draftgym edge lab --help tells what can be",
                )
        for one in self.kinds:
            parse_kind(one)
        if edge_setting(self.setting).radio.band.noise_grows:
            raise DraftgymError(
                f"noise grows with the share in {self.setting!r}, which edge servers do not reckon "
                "with",
                "use multispin-llama2 or multispin-qwen3.5",
            )

    def kind(self, index: int) -> DeviceKind:
        """The class of a device."""
        return parse_kind(self.kinds[index % len(self.kinds)])
