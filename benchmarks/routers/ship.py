"""Ships a router that `benchmarks.routers.routing` trained: copies its policy and writes its card.

    $ python -m benchmarks.routers.ship --routing runs/routing.json --run runs/routing \
        --to checkpoints/router-smollm2-135m

The seed is the one of median speed, as the figures report it. The learner is yours to name: to pick
the best one by held-out figures would be to tune on the texts that results are reported on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.routers.card import router_card
from benchmarks.routers.compared import AGAIN, exported_policy, read_figures, row_of
from benchmarks.routers.trained_on import drafters_of
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import command_line
from draftgym.policies.folder import BODY, WEIGHTS, read_body
from draftgym.policies.routers.learned import load_learned_policy


@dataclass(frozen=True, kw_only=True)
class ShipArgs:
    """Ship a trained router.

    Attributes:
        routing: Figures of benchmarks.routers.routing.
        run: Its folder of trained routers.
        to: Folder of the shipped policy; the one that is there is replaced.
        learner: Whose policy.
        seed: Which of its seeds; default: the one of median speed.
    """

    routing: Path = Path("runs/routing.json")
    run: Path = Path("runs/routing")
    to: Path
    learner: Literal["ppo", "dqn", "advantage"] = "ppo"
    seed: int | None = None


@dataclass(frozen=True)
class _Named:
    """Whom the policy says it is for."""

    name: str
    fingerprint: str


def ship_router(args: ShipArgs) -> Path:
    """Copies, writes the card, replaces; returns the shipped folder.

    Raises:
        DraftgymError: No figures, no policy, a policy of other figures, or a folder of other
            things; nothing has been replaced then.
    """
    figures = read_figures(args.routing)
    row = row_of(figures, args.learner)
    seed = int(row["median_seed"]) if args.seed is None else args.seed
    if not 0 <= seed < len(row["gain_by_seed"]):
        raise DraftgymError(
            f"{args.learner} has no seed {seed}", f"choose from 0 to {len(row['gain_by_seed']) - 1}"
        )
    policy = exported_policy(args.run, args.learner, seed)
    body = read_body(policy)
    _check_same(figures, body, seed, args.run)
    _check_replaceable(args.to)
    fresh = args.to.with_name(f".{args.to.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    fresh.mkdir(parents=True)
    for name in (WEIGHTS, BODY):
        shutil.copyfile(policy / name, fresh / name)
    load_learned_policy(fresh, _Named(body["target"], body["target_fingerprint"]))
    card = router_card(figures, body, args.learner, seed, command_line())
    (fresh / "README.md").write_text(card, encoding="utf-8")
    _replace(args.to, fresh)
    return args.to


def _check_same(figures: Mapping[str, Any], body: Mapping[str, Any], seed: int, run: Path) -> None:
    """A card would attach these figures to whatever policy lies there."""
    settings = body.get("provenance", {}).get("settings", {})
    pairs = {
        "arms": (body.get("arms"), figures["arms"]),
        "seed": (settings.get("seed"), seed),
    }
    origin, drafters = figures.get("traces", {}).get("train"), drafters_of(run)
    if origin is not None:
        pairs["target"] = (body.get("target_fingerprint"), origin["target_fingerprint"])
        pairs["drafters"] = (drafters or origin["drafters"], origin["drafters"])
    for name, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise DraftgymError(
                f"the policy of {run} has other {name} ({mine}) than the figures ({theirs})",
                f"name the figures and the folder of one run, or {AGAIN}",
            )


def _check_replaceable(to: Path) -> None:
    previous = _previous(to)
    if previous.is_dir() and not to.exists():
        previous.rename(to)  # a run was killed between the two steps of `_replace`
    if to.exists() and not (to / BODY).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise DraftgymError(
            f"{to} holds something else than a policy", "name another folder with --to"
        )


def _replace(to: Path, fresh: Path) -> None:
    """Puts a whole folder in the place of another, which is whole until then."""
    previous = _previous(to)
    shutil.rmtree(previous, ignore_errors=True)
    if to.exists():
        to.rename(previous)
    try:
        fresh.rename(to)
    except OSError:
        if previous.exists():
            previous.rename(to)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(to: Path) -> Path:
    return to.with_name(f".{to.name}.previous")


if __name__ == "__main__":
    with exit_on_user_error():
        print(f"shipped: {ship_router(tyro.cli(ShipArgs, description=__doc__))}")
