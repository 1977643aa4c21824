"""What a cell of many users is made of: one value for environments, training and baselines.

`CellSettings` is the whole of it. Its `setting` names the radio, devices, server and payload of an
experiment of the Multi-SPIN papers:

| name | radio | devices and server |
|------|-------|--------------------|
| `multispin-llama2` | 2606.04581, calibrated to 17.5 dB | TinyLlama-1.1B, Llama-2-7B |
| `multispin-qwen3.5` | 2606.04581, calibrated to 14 dB | Qwen3.5-0.8B, Qwen3.5-27B |
| `modes-qwen2.5` | 2608.29618, 10 dBm | Qwen2.5-0.5B, Qwen2.5-14B |
| `modes-r1-qwen` | 2608.29618, 10 dBm | DeepSeek-R1-Distill-Qwen 1.5B and 32B |

Guesses are the mean SNRs and the reference times of devices of `multispin-*` (not disclosed; they
were chosen together so that stated goodputs come out), and Qwen3.5's vocabulary. Everything else is
the papers'; `draftgym.envs.radio.radio` and `draftgym.envs.cell.devices` give each number's place.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.devices import (
    A100_LLAMA2_7B,
    A100_QWEN25,
    A100_QWEN25_14B,
    A100_QWEN35_27B,
    A100_R1_QWEN,
    A100_R1_QWEN_32B,
    M4_PRO_QWEN35,
    M4_PRO_TINYLLAMA,
    NO_NETWORK,
    AffineServer,
    DeviceClass,
    Server,
)
from draftgym.envs.radio.channel import Channel, ChannelReport, FadingChannel
from draftgym.envs.radio.channel_trace import ChannelTrace, TraceChannel
from draftgym.envs.radio.payload import Payload, make_payload
from draftgym.envs.radio.radio import Radio, mode_selection_radio, multispin_radio


@dataclass(frozen=True)
class EdgeSetting:
    """A cell: its radio, its devices, its server, and what devices upload.

    Attributes:
        radio: Uplink.
        device: Class of all devices.
        server: Verification time.
        payload: The paper's payload.
        vocabulary: Tokens of the paper's models.
        users: Devices in the cell unless a figure varies it.
        longest_draft: Longest draft in the paper's exhaustive searches.
    """

    radio: Radio
    device: DeviceClass
    server: Server
    payload: Payload
    vocabulary: int
    users: int
    longest_draft: int


def _multispin(
    radio: Radio, device: DeviceClass, server: AffineServer, vocabulary: int
) -> EdgeSetting:
    payload = make_payload("truncated", vocabulary)
    return EdgeSetting(radio, device, server, payload, vocabulary, users=20, longest_draft=25)


def _modes(device: DeviceClass, server: AffineServer) -> EdgeSetting:
    vocabulary = 151_665  # valid token ids of both pairs
    payload, radio = make_payload("scalar", vocabulary), mode_selection_radio()
    return EdgeSetting(radio, device, server, payload, vocabulary, users=20, longest_draft=20)


EDGE_SETTINGS = {
    "multispin-llama2": _multispin(
        multispin_radio(17.5), M4_PRO_TINYLLAMA, A100_LLAMA2_7B, vocabulary=32_000
    ),
    "multispin-qwen3.5": _multispin(
        multispin_radio(14.0), M4_PRO_QWEN35, A100_QWEN35_27B, vocabulary=248_000
    ),
    "modes-qwen2.5": _modes(A100_QWEN25, A100_QWEN25_14B),
    "modes-r1-qwen": _modes(A100_R1_QWEN, A100_R1_QWEN_32B),
}


def edge_setting(name: str) -> EdgeSetting:
    """A setting by its name.

    Raises:
        DraftgymError: An unknown name.
    """
    if name not in EDGE_SETTINGS:
        close = difflib.get_close_matches(name, EDGE_SETTINGS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DraftgymError(
            f"unknown setting {name!r}", f"{hint}there are {', '.join(EDGE_SETTINGS)}"
        )
    return EDGE_SETTINGS[name]


@dataclass(frozen=True)
class CellSettings:
    """A cell.

    Attributes:
        setting: Radio, device, server and payload: a name of the module's table, or one of your
            own.
        users: Places for users, K.
        fewest: A cell begins with at least so many users, at random, and never has more than it
            began with; None fills every place. One policy learns cells of many sizes so.
        arms: Chains that devices draft with, one per drafter, as text; None takes the longest
            traced one of every drafter. A new user gets one of them at random.
        longest_draft: Longest draft that may be asked for; None takes the longest that was traced.
        devices: Device classes by drafter, where they differ from the setting's (of a language
            model) and from prompt lookup's, which takes no time.
        payload: Another payload than the setting's, or a mode of it (`tokens`, `scalar`,
            `truncated`) over the setting's vocabulary.
        channel_traces: Recorded channels instead of the setting's fading.
        report_rounds_old: Age of what the scheduler knows of channels, in rounds.
        report_error_db: Standard deviation of its error, decibels.
        confidence: Whether devices begin to draft before they are told how much, and report how
            likely their drafters find the first token. It costs a device that is told to draft
            nothing the time of that token. Devices that draft in no time report it anyway.
        window: None plays synchronous rounds, as the papers do. A number of seconds makes the
            server verify whoever has arrived within it of the first arrival.
        latency: Seconds that the network adds to a draft's way, there and back, whatever is sent.
            None in the papers.
        overhead: Seconds of every round beside drafts, uploads and the pass, such as planning.
        prompt_token_seconds: Seconds that a token of a prompt takes the server, beside a pass of
            its own for each prompt, while everybody waits; 0 leaves prompts out, as both papers do.
        deadline: Seconds after which the server no longer waits for a draft; its user gets the
            target's own token. None waits for as long as it takes, as in the papers.
        leaving: Probability that a user leaves when its prompt is done; else it has another.
        absence: Mean seconds until a new user comes into the place of one that left (exponential).
        means: Mean acceptance of tasks as measured beforehand, by `category/arm`; missing ones are
            those of the traces themselves. Give those of the training traces when evaluating.

    Raises:
        DraftgymError: A number is impossible, or a name unknown.
    """

    setting: str | EdgeSetting = "multispin-llama2"
    users: int = 8
    fewest: int | None = None
    arms: tuple[str, ...] | None = None
    longest_draft: int | None = None
    devices: Mapping[str, DeviceClass] = field(default_factory=dict)
    payload: str | Payload | None = None
    channel_traces: tuple[ChannelTrace, ...] = ()
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
    means: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        possible = {
            "users": self.users >= 1,
            "fewest": self.fewest is None or 1 <= self.fewest <= self.users,
            "longest_draft": self.longest_draft is None or self.longest_draft >= 1,
            "report_rounds_old": self.report_rounds_old >= 0,
            "report_error_db": self.report_error_db >= 0,
            "window": self.window is None or self.window >= 0,
            "latency": 0 <= self.latency < float("inf"),
            "overhead": 0 <= self.overhead < float("inf"),
            "prompt_token_seconds": 0 <= self.prompt_token_seconds < float("inf"),
            "deadline": self.deadline is None or self.deadline > 0,
            "leaving": 0 <= self.leaving <= 1,
            "absence": 0 < self.absence < float("inf"),
        }
        for name, fine in possible.items():
            if not fine:
                raise DraftgymError(
                    f"a cell with {name} {getattr(self, name)}",
                    "give a number that can be: see draftgym.envs.cell.settings.CellSettings",
                )
        self.make_payload()

    @property
    def edge(self) -> EdgeSetting:
        """The setting itself."""
        return edge_setting(self.setting) if isinstance(self.setting, str) else self.setting

    def make_payload(self) -> Payload:
        """What devices upload."""
        if isinstance(self.payload, str):
            return make_payload(self.payload, self.edge.vocabulary)
        return self.edge.payload if self.payload is None else self.payload

    def make_channel(self, environments: int) -> Channel:
        """The users' channels in some environments."""
        shape = environments, self.users
        if self.channel_traces:
            return TraceChannel(self.channel_traces, self.edge.radio.band, shape)
        return FadingChannel(self.edge.radio, shape)

    def make_report(self) -> ChannelReport:
        """What the scheduler sees of them."""
        return ChannelReport(self.report_rounds_old, self.report_error_db)

    def device(self, drafter: str) -> DeviceClass:
        """The class of devices that draft with this drafter."""
        return self.devices.get(drafter, NO_NETWORK.get(drafter, self.edge.device))
