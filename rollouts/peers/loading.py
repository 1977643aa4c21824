"""The table of peers: what each needs, and loading those that a run is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.text import one_line
from draftgym.decoding.model.target import Target
from draftgym.decoding.text.stops import StopCheck
from draftgym.rollouts.decode.interleaved import DecodeSettings
from draftgym.rollouts.peers.gguf_files import check_source
from draftgym.rollouts.peers.peer import Conditions, Peer

PeerName = Literal["llama.cpp", "transformers", "openvino-genai"]

PEERS: dict[PeerName, tuple[str, str]] = {
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
    "transformers": ("transformers", "transformers"),
    "openvino-genai": ("openvino_genai", "openvino-genai"),
}
"""The module that each needs, which ours is called after, and what pip is asked for."""

READ_GGUF = ("llama.cpp", "openvino-genai")
"""Those that read GGUF files, and run on the processor."""


def check_peers(
    names: Sequence[PeerName], target: str, gguf: Path | None, settings: DecodeSettings
) -> None:
    """Finds what would stop a comparison, before anything is computed.

    Args:
        names: Keys of `PEERS`.
        target: What the user calls the target.
        gguf: The user's own GGUF file of its weights.
        settings: How texts are written.

    Raises:
        DraftgymError: A peer is not installed, has no file to read, or cannot write such texts.
    """
    reading = [name for name in names if name in READ_GGUF]
    if gguf is not None and not reading:
        raise DraftgymError(
            "--against-gguf names a file that nobody reads",
            f"name {' or '.join(READ_GGUF)} with --against",
        )
    for name in names:
        module, requirement = PEERS[name]
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise DraftgymError(
                f"--against {name} needs {module}, which is not installed, or not for this "
                f"machine: {one_line(error)}",
                f"pip install {requirement}",
            ) from error
    if reading:
        check_source(target, gguf)
    if names and (settings.temperature or settings.sampling.repetition_penalty != 1):
        raise DraftgymError(
            "peers write greedy texts, and nothing else can be compared token for token",
            "leave out --against, or compare at --temperature 0 without a repetition penalty",
        )
    if names and settings.stops.strings:
        raise DraftgymError(
            "peers do not know stop strings", "leave out --against, or end texts by token ids"
        )


def load_peers(
    names: Sequence[PeerName],
    target: Target,
    gguf: Path | None,
    settings: DecodeSettings,
    longest: int,
) -> dict[str, Peer]:
    """Peers by their names in tables; several for each engine.

    Args:
        names: Keys of `PEERS`.
        target: The loaded target.
        gguf: The user's own GGUF file of its weights.
        settings: How texts are written; `check_peers` has seen them.
        longest: Tokens of the longest prompt, about.

    Raises:
        DraftgymError: One cannot be loaded, or does not run where the target runs.
    """
    conditions = Conditions(
        target,
        StopCheck(target, settings.stops).tokens,
        min(target.context_limit, longest + 2 * settings.max_new_tokens),
        gguf,
    )
    peers: list[Peer] = []
    for name in dict.fromkeys(names):
        if name in READ_GGUF and target.device.type != "cpu":
            raise DraftgymError(
                f"{name} runs on the processor, and the target on {target.device}",
                "compare both there with --device cpu",
            )
        module = importlib.import_module(f"draftgym.rollouts.peers.{PEERS[name][0]}")
        peers += module.load(conditions)
    return {peer.name: peer for peer in peers}
