"""Folders of trained policies: safetensors and JSON, nothing unpickled.

A folder holds `policy.safetensors` (the network, where there is one) and `policy.json` (kind, arms,
sizes, hashes of the target and of these weights, provenance). Deployment needs neither
Stable-Baselines3 nor gymnasium.

A folder is replaced as one: new weights under another name, the JSON with their hash, the name. A
process that is killed in between leaves either policy whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, replacing, write_json
from draftgym.decoding.model.fingerprint import Fingerprinted, fits, other_target

FORMAT = 1
WEIGHTS, BODY = "policy.safetensors", "policy.json"
NEXT_WEIGHTS = "policy.next.safetensors"
"""Weights of a writer that was killed before it could give them their name."""
KEYS = {"format", "arms", "target", "target_fingerprint"}
"""What every kind of policy writes; a folder without `kind` is a router's."""
ROUTER, NEURAL, SCHEDULER = "router", "neural", "scheduler"
ACCEPTANCE, FORECAST, RULE = "acceptance", "forecast", "rule"
FOR_BATCHES = (FORECAST, RULE)
AGAIN = "train again, or name another folder"

Network = TypeVar("Network", bound=nn.Module)
PolicyTarget = Fingerprinted
"""Whom a policy is for: a loaded target, or what is known of one that is not."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy folder whose JSON has been checked.

    Attributes:
        folder: Where it lies.
        body: The JSON.
        arms: Arms in the network's order.
    """

    folder: Path
    body: dict[str, Any]
    arms: tuple[Arm, ...]

    def load(self, build: Callable[[], Network]) -> Network:
        """The network that `build` makes, with the stored weights.

        Raises:
            DraftgymError: The weights are missing, damaged, not finite or of other sizes.
        """
        path = weights_path(self.folder, self.body)
        try:
            network = build()
            weights = load_file(path)
            network.load_state_dict(weights)
        except (OSError, SafetensorError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())  # torch lists what is missing on further lines
            raise DraftgymError(f"cannot read {path}: {reason}", AGAIN) from error
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise DraftgymError(f"policy {self.folder} has NaN or infinite weights", AGAIN)
        return network.eval().requires_grad_(False)


def write_policy(
    folder: Path,
    kind: str,
    network: nn.Module,
    arms: Sequence[Arm],
    target: str,
    target_fingerprint: str,
    facts: Mapping[str, Any],
) -> None:
    """Writes the deployable form of a trained policy, replacing what was there as one.

    Args:
        folder: Where to.
        kind: Which policy reads it.
        network: Its weights are written.
        arms: Arms in the network's order.
        target: Name of the target it was trained for.
        target_fingerprint: Hash of that target's weights.
        facts: What this kind needs beside `KEYS`, and `provenance`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with replacing(folder / NEXT_WEIGHTS) as partial:
        save_file(weights, partial)
    hashed = {"weights_sha256": _sha256(folder / NEXT_WEIGHTS)}
    write_body(folder, kind, arms, target, target_fingerprint, {**hashed, **facts})
    (folder / NEXT_WEIGHTS).replace(folder / WEIGHTS)


def write_body(
    folder: Path,
    kind: str,
    arms: Sequence[Arm],
    target: str,
    target_fingerprint: str,
    facts: Mapping[str, Any],
) -> None:
    """Writes the JSON of a policy, which is all that one without a network has.

    Args:
        folder: Where to.
        kind: Which policy reads it.
        arms: What it chooses from.
        target: Name of the target it was made for.
        target_fingerprint: Hash of that target's weights.
        facts: What this kind needs beside `KEYS`, and `provenance`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "format": FORMAT,
        "kind": kind,
        "arms": [str(arm) for arm in arms],
        "target": target,
        "target_fingerprint": target_fingerprint,
        **facts,
    }
    write_json(folder / BODY, body)


def weights_path(folder: Path, body: Mapping[str, Any]) -> Path:
    """The weights that a folder's JSON was written with.

    Raises:
        DraftgymError: They are missing, or others.
    """
    wanted = body.get("weights_sha256")
    if wanted is None:  # an older version's
        return folder / WEIGHTS
    for path in (folder / WEIGHTS, folder / NEXT_WEIGHTS):
        if path.is_file() and _sha256(path) == wanted:
            return path
    raise DraftgymError(
        f"cannot read {folder / WEIGHTS}: it is missing, damaged, or not the file that {BODY} was "
        "written with",
        AGAIN,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_policy(folder: Path, kind: str, target: PolicyTarget, keys: set[str]) -> StoredPolicy:
    """Reads and checks the JSON of a policy folder.

    Args:
        folder: The folder.
        kind: What it should hold.
        target: The target it is for.
        keys: What this kind needs beside `KEYS`.

    Raises:
        DraftgymError: No policy folder, damaged, of another kind, version or target.
    """
    body = read_body(folder)
    missing = (KEYS | keys) - set(body)
    found = kind_of(body)
    if found != kind:
        raise DraftgymError(
            f"{folder} holds a policy of kind {found!r}, not {kind!r}", "name another folder"
        )
    if missing or body["format"] != FORMAT:
        what = f"lacks {sorted(missing)}" if missing else f"has format {body['format']}"
        raise DraftgymError(f"{folder / BODY} {what}", AGAIN)
    if not fits(body["target_fingerprint"], target):
        raise other_target(
            f"policy {folder}",
            body["target_fingerprint"],
            target,
            f"target_fingerprint in its {BODY}",
            f"name that target with --target, or {AGAIN}",
            f"target {body['target']!r}",
        )
    return StoredPolicy(folder, body, _read_arms(folder, body))


def policy_name(folder: Path) -> str:
    """How tables call a folder's policy: trainers export to `<run>/policy`, so that is `<run>`."""
    return folder.resolve().parent.name if folder.name == "policy" else folder.name


def read_kind(folder: Path) -> str:
    """Which policy reads a folder.

    Raises:
        DraftgymError: No policy folder, or a damaged one.
    """
    return kind_of(read_body(folder))


def kind_of(body: Mapping[str, Any]) -> str:
    """The kind that a policy's JSON names."""
    return str(body.get("kind", ROUTER))


def _read_arms(folder: Path, body: Mapping[str, Any]) -> tuple[Arm, ...]:
    if not isinstance(body["arms"], list) or not body["arms"]:
        raise DraftgymError(f"{folder / BODY} lists no arms", AGAIN)
    try:
        return tuple(parse_arm(str(text)) for text in body["arms"])
    except DraftgymError as error:
        raise DraftgymError(f"{folder / BODY}: {error.problem}", AGAIN) from error


def read_body(folder: Path) -> dict[str, Any]:
    """The JSON object of a policy folder.

    Raises:
        DraftgymError: There is none, or it is damaged.
    """
    path = folder / BODY
    if not path.is_file():
        raise DraftgymError(
            f"{folder} is not a policy folder (no {BODY})",
            "name the folder that train_router.py or a trainer in agents/ wrote",
        )
    return read_json(path, AGAIN)
