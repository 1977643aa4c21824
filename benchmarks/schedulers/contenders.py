"""Who plays in `benchmarks.schedulers.comparison`: rules, and trained policies pooled by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from draftgym.agents.scheduler.evaluation import chosen_schedulers
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.envs.cell.cell import Cell
from draftgym.envs.scheduler.planners import MakePlanner
from draftgym.policies.folder import PolicyTarget, policy_name, read_body

FIXED = "fixed"
CLOSED_FORM = "heterogeneous@beta"
ONLINE = (
    CLOSED_FORM,
    "heterogeneous@average",
    f"{CLOSED_FORM}+found",
    "heterogeneous@average+found",
    "alike@beta",
)
"""Closed forms with what a server can learn while it serves: the rivals of trained schedulers."""
ORACLE = "oracle"
FORCED = "heterogeneous@beta, forced"
"""Drafts of one token or more, as the paper has it: nobody may skip drafting in a fade."""
EVERYBODY, ONE_BY_ONE = "homogeneous@given", "heterogeneous@given"
"""One length for all, and a length for each, by who knows the acceptance."""
RULES = (
    FIXED,
    "uniform-bandwidth@beta",
    "p2p@beta",
    "homogeneous@mean",
    "homogeneous@beta",
    "homogeneous@average",
    EVERYBODY,
    "heterogeneous@mean",
    *ONLINE,
    ONE_BY_ONE,
    "heterogeneous@too-high",
    "heterogeneous@too-low",
    "gelato@beta",
    ORACLE,
)


@dataclass(frozen=True)
class Contender:
    """A rule, or a way of training.

    Attributes:
        name: How tables call it.
        planners: Who plans; of a way of training one per seed.
        confidence: Whether devices report theirs, for each of these.
        trained: Whether it was trained.
    """

    name: str
    planners: tuple[MakePlanner, ...]
    confidence: tuple[bool, ...] = (False,)
    trained: bool = False


def rule_contenders(target: PolicyTarget) -> list[Contender]:
    """The rules.

    Args:
        target: Whose texts are played.
    """
    found = [Contender(name, (make,)) for name, make in chosen_schedulers(RULES, target).items()]
    forced = chosen_schedulers([CLOSED_FORM], target, min_length=1)
    return [*found, Contender(FORCED, tuple(forced.values()))]


def trained_contenders(specs: Sequence[str], target: PolicyTarget) -> list[Contender]:
    """Trained policies; those of one method are one contender.

    Args:
        specs: `method=FOLDER,FOLDER`, one folder per training seed, or a folder alone.
        target: Whose texts are played.

    Raises:
        DraftgymError: A folder holds no scheduler for this target, or two have one name.
    """
    found: list[Contender] = []
    for spec in specs:
        method, folders = read_group(spec)
        if method in {one.name for one in found} | {*RULES, FORCED}:
            raise DraftgymError(
                f"{method!r} is named twice",
                "pool the seeds of a method: --policies ppo=FOLDER,FOLDER sac=FOLDER",
            )
        planners = (chosen_schedulers([f"{folder}/"], target) for folder in folders)
        each = tuple(make for named in planners for make in named.values())
        confident = tuple(trained_with_confidence(folder) for folder in folders)
        found.append(Contender(method, each, confident, trained=True))
    return found


def read_group(spec: str) -> tuple[str, list[Path]]:
    """Name and folders of `method=FOLDER,FOLDER` or of a folder alone.

    Raises:
        DraftgymError: No folder is named.
    """
    method, equals, rest = spec.strip().partition("=")
    if not equals or "/" in method:  # a folder's own name may have the sign
        method, rest = "", spec.strip()
    folders = [user_path(part.strip()) for part in rest.split(",") if part.strip()]
    if not folders or (not method and len(folders) > 1):
        raise DraftgymError(
            f"--policies {spec!r} names no {'method' if folders else 'folder'}",
            "write ppo=FOLDER,FOLDER with a folder for each training seed, or a folder alone",
        )
    return method or policy_name(folders[0]), folders


def trained_with_confidence(folder: Path) -> bool:
    """Whether devices reported their confidence to a policy in training; false if untold."""
    settings = read_body(folder).get("provenance", {}).get("settings", {})
    return bool(settings.get("cell", {}).get("confidence", False))


def rehearse(contenders: Sequence[Contender], cell: Cell) -> None:
    """Makes every planner once, so that what cannot play is found before an hour has passed.

    Raises:
        DraftgymError: A policy drafts more than these cells allow, or reads other observations.
    """
    cell.reset(np.random.default_rng(0))
    for contender in contenders:
        for make in contender.planners:
            make(cell)
