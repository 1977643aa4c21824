"""A trained router, loaded from its exported folder: safetensors and JSON, nothing unpickled.

The folder holds `policy.safetensors` (the network) and `policy.json` (arms, signals, sizes, the
target's fingerprint, provenance). Deployment needs neither Stable-Baselines3 nor gymnasium.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from decoding.arms import Arm, parse_arm
from decoding.errors import DraftgymError
from decoding.observation import signal_names
from decoding.target import Target
from policies.base import Policy
from policies.network import RouterNetwork

FORMAT = 1
WEIGHTS, BODY = "policy.safetensors", "policy.json"
KEYS = {"format", "arms", "signals", "hidden_size", "width", "target", "target_fingerprint"}
AGAIN = "train again with train_router.py, or name another folder"


class LearnedPolicy(Policy):
    """Picks an arm with a trained network.

    Args:
        network: The network.
        arms: Arms in the network's order.
        name: How tables call it.
        seed: Seed of the choices when asked to sample.
    """

    observes = True

    def __init__(
        self, network: RouterNetwork, arms: Sequence[Arm], name: str = "learned", seed: int = 0
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.arms = tuple(arms)
        self.name = name
        self.rng = np.random.default_rng(seed)

    @torch.inference_mode()
    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The best-scored arm, or one drawn from the softmax of the scores."""
        scores = self.network(
            torch.from_numpy(observation["signals"]), torch.from_numpy(observation["hidden"])
        ).numpy()
        if not deterministic:
            scores = scores + self.rng.gumbel(size=scores.shape)
        return np.asarray(scores.argmax(-1), dtype=np.int64)


def save_learned_policy(
    network: RouterNetwork,
    arms: Sequence[Arm],
    target: Target,
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the deployable form of a trained router."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "format": FORMAT,
        "arms": [str(arm) for arm in arms],
        "signals": signal_names(arms),
        "hidden_size": target.hidden_size,
        "width": network.scores.in_features,
        "target": target.name,
        "target_fingerprint": target.fingerprint,
        "provenance": dict(provenance),
    }
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / f"{WEIGHTS}.partial")
    (folder / f"{WEIGHTS}.partial").replace(folder / WEIGHTS)
    (folder / BODY).write_text(json.dumps(body, indent=2) + "\n")


def load_learned_policy(folder: Path, target: Target) -> LearnedPolicy:
    """Loads an exported router.

    Raises:
        DraftgymError: Not a policy folder, damaged files, or a router of another target.
    """
    body = _read_body(folder)
    if body["target_fingerprint"] != target.fingerprint:
        raise DraftgymError(
            f"policy {folder} was trained for target {body['target']!r} (fingerprint "
            f"{body['target_fingerprint']}), {target.name!r} has {target.fingerprint}",
            f"name that target with --target, or {AGAIN}",
        )
    arms = _read_arms(folder, body)
    try:
        network = RouterNetwork(len(body["signals"]), body["hidden_size"], len(arms), body["width"])
        weights = load_file(folder / WEIGHTS)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())  # torch lists what is missing on further lines
        raise DraftgymError(f"cannot read {folder / WEIGHTS}: {reason}", AGAIN) from error
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise DraftgymError(f"policy {folder} has NaN or infinite weights", AGAIN)
    return LearnedPolicy(network, arms, name=folder.name)


def _read_arms(folder: Path, body: Mapping[str, Any]) -> tuple[Arm, ...]:
    if not isinstance(body["arms"], list) or not body["arms"]:
        raise DraftgymError(f"{folder / BODY} lists no arms", AGAIN)
    try:
        arms = tuple(parse_arm(str(text)) for text in body["arms"])
    except DraftgymError as error:
        raise DraftgymError(f"{folder / BODY}: {error.problem}", AGAIN) from error
    if body["signals"] != signal_names(arms):
        raise DraftgymError(f"policy {folder} reads signals that this version lacks", AGAIN)
    return arms


def _read_body(folder: Path) -> dict[str, Any]:
    path = folder / BODY
    if not path.is_file():
        raise DraftgymError(
            f"{folder} is not a policy folder (no {BODY})", "name the folder train_router.py wrote"
        )
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        missing = KEYS - set(body)
    except (OSError, ValueError, TypeError) as error:
        raise DraftgymError(f"cannot read {path}: {error}", AGAIN) from error
    if missing or body["format"] != FORMAT:
        what = f"lacks {sorted(missing)}" if missing else f"has format {body['format']}"
        raise DraftgymError(f"{path} {what}", AGAIN)
    return body
