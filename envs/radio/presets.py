"""The experimental settings of both Multi-SPIN papers, by name.

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
from dataclasses import dataclass

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
    AffineServer,
    DeviceClass,
    Server,
)
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
