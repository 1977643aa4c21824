"""The routers that `benchmarks.routers.routing` compared: its figures, and where each policy lies.

    $ python -m benchmarks.routers.compared --routing runs/routing.json --run runs/routing

prints those worth a comparison by the clock, as `evaluate.py --policies` takes them: of every
learner the seed of median speed, and WhiFlash's two on the pair of arms with the largest prize.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.routers.contenders import LEARNERS, router_folder
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.policies.folder import BODY, WEIGHTS

AGAIN = "run python -m benchmarks.routers.routing again"


@dataclass(frozen=True, kw_only=True)
class ComparedArgs:
    """Print the routers that benchmarks.routers.routing compared.

    Attributes:
        routing: Its figures.
        run: Its folder of trained routers.
    """

    routing: Path = Path("runs/routing.json")
    run: Path = Path("runs/routing")


def read_figures(path: Path) -> dict[str, Any]:
    """The figures of `benchmarks.routers.routing`.

    Raises:
        DraftgymError: The file is missing, damaged, or holds something else.
    """
    remedy = f"make it with python -m benchmarks.routers.routing --json {path}"
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DraftgymError(f"cannot read {path}: {error}", remedy) from error
    if not isinstance(figures, dict) or "routers" not in figures.get("heldout", {}):
        raise DraftgymError(f"{path} holds no figures of benchmarks.routers.routing", remedy)
    return figures


def row_of(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A router's figures on the held-out texts; raises `DraftgymError` where it has none."""
    rows = figures["heldout"]["routers"]
    if name not in rows:
        raise DraftgymError(f"{name!r} was not compared", f"choose from {', '.join(rows)}")
    return dict(rows[name])


def exported_policy(run: Path, name: str, seed: int) -> Path:
    """The policy folder of a compared router.

    Raises:
        DraftgymError: It is not there.
    """
    folder = router_folder(run, name, seed)
    exported = folder / "policy"  # of reinforcement, whose run folder holds other files, too
    folder = exported if exported.is_dir() else folder
    missing = [part for part in (BODY, WEIGHTS) if not (folder / part).is_file()]
    if missing:
        raise DraftgymError(
            f"{folder} holds no trained policy (no {' and no '.join(missing)})",
            f"name the folder of benchmarks.routers.routing with --run, or {AGAIN}: it trains what "
            "is missing",
        )
    return folder


def clock_policies(args: ComparedArgs) -> list[str]:
    """What to compare by the clock, as `evaluate.py --policies` takes it.

    Raises:
        DraftgymError: No figures, or a policy is missing.
    """
    figures = read_figures(args.routing)
    if not figures.get("thresholds"):
        raise DraftgymError(f"{args.routing} tells no entropy thresholds", AGAIN)
    entropy, threshold = list(figures["thresholds"].items())[-1]  # WhiFlash's own pair is first
    pair = entropy.removeprefix("entropy ")
    named = [f"neural {pair}", *LEARNERS]
    seeds = [int(row_of(figures, name)["median_seed"]) for name in named]
    folders = [exported_policy(args.run, *one) for one in zip(named, seeds, strict=True)]
    return [f"entropy:{threshold:.6g}@{pair.replace('/', ',')}", *map(str, folders)]


if __name__ == "__main__":
    with exit_on_user_error():
        print(*clock_policies(tyro.cli(ComparedArgs, description=__doc__)))
