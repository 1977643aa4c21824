"""SpecDec++ (arXiv 2405.19715): a head that says, from the drafter's state, what will be accepted.

A small residual network on the state, trained with a binary cross-entropy in which rejected tokens
count more. The state that has read a token is known when the next one is drafted, so a chain stops
one token late: behind the first at which all before it are accepted with too small a chance.

`python -m benchmarks.routers.stopping --head FOLDER` trains one and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import DraftedToken, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.folder import (
    ACCEPTANCE,
    AGAIN,
    PolicyTarget,
    policy_name,
    read_policy,
    write_policy,
)
from draftgym.policies.routers.stopping import StoppingPolicy, log_probability

BLOCKS, REJECTED = 3, 6.0
"""Residual layers, and the weight of rejected tokens: the paper's."""


class AcceptanceHead(nn.Module):
    """Residual layers and a logit, behind a normalisation of what is read.

    Args:
        width: Numbers that it reads.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(BLOCKS))
        self.last = nn.Linear(width, 1)

    def forward(self, facts: Tensor) -> Tensor:
        """Logits of acceptance `[n]` of tokens with these facts `[n, k]`."""
        read = (facts.float() - self.mean) / self.spread
        for layer in self.layers:
            read = read + F.silu(layer(read))
        logits: Tensor = self.last(read)[:, 0]
        return logits


class AcceptancePolicy(StoppingPolicy):
    """Stops where a head finds it too unlikely that all tokens so far are accepted.

    Args:
        head: The head.
        arm: Whose last part is stopped.
        least: Chance that all are.
        drafter: Fingerprint of the drafter whose states it was trained on.
        name: How tables call it.
    """

    def __init__(
        self, head: AcceptanceHead, arm: Arm, least: float, drafter: str, name: str = "acceptance"
    ) -> None:
        super().__init__(arm, name)
        self.head, self._drafter = head.eval().requires_grad_(False), drafter
        self._least = log_probability(least, name)

    def check_drafter(self, drafters: Mapping[str, Drafter]) -> None:
        """Raises `DraftgymError` also where the drafter is another than it was trained on."""
        super().check_drafter(drafters)
        drafter = drafters[self.arms[0].parts[-1].drafter]
        if drafter.fingerprint != self._drafter:
            raise DraftgymError(
                f"policy {self.name!r} reads states of another {drafter.name} than this one",
                "train its head again, with python -m benchmarks.routers.stopping --head FOLDER",
            )

    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """See `StoppingPolicy`; what is remembered is the chance of the path so far, as its log."""
        if token.depth == 1:
            return False, 0.0
        with torch.inference_mode():
            chance = F.logsigmoid(self.head(torch.from_numpy(token.state)[None]))
        path = state + float(chance)
        return path < self._least, path


def save_acceptance_policy(
    head: AcceptanceHead,
    arm: Arm,
    least: float,
    drafter: Drafter,
    target: PolicyTarget,
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the deployable form; arguments as `AcceptancePolicy`.

    Args:
        head: The head.
        arm: Whose last part is stopped.
        least: Chance that all are accepted.
        drafter: Whose states it reads.
        target: Whom it was trained for.
        folder: Where to.
        provenance: How it was made.
    """
    facts = {
        "least": least,
        "width": len(head.mean),
        "drafter_fingerprint": drafter.fingerprint,
        "provenance": dict(provenance),
    }
    write_policy(folder, ACCEPTANCE, head, [arm], target.name, target.fingerprint, facts)


def load_acceptance_policy(folder: Path, target: PolicyTarget) -> AcceptancePolicy:
    """Loads an exported head.

    Raises:
        DraftgymError: Not the folder of one, damaged files, or one of another target.
    """
    stored = read_policy(folder, ACCEPTANCE, target, {"least", "width", "drafter_fingerprint"})
    body = stored.body
    if not isinstance(body["width"], int) or not isinstance(body["least"], float):
        raise DraftgymError(f"policy {folder} has a width or a chance that is no number", AGAIN)
    head = stored.load(lambda: AcceptanceHead(body["width"]))
    drafter, name = str(body["drafter_fingerprint"]), policy_name(folder)
    return AcceptancePolicy(head, stored.arms[0], body["least"], drafter, name)
