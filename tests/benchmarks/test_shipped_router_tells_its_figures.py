"""A shipped router is the trained one, its card says what the figures say, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.routers.routing import RoutingArgs
from benchmarks.routers.ship import ShipArgs, clock_policies, ship_router
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.folder import BODY, WEIGHTS
from draftgym.policies.registry import make_policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(routing_run: RoutingArgs) -> RoutingArgs:
    """A finished comparison."""
    return routing_run


@pytest.fixture(scope="module")
def figures(made: RoutingArgs) -> dict[str, Any]:
    return dict(json.loads(made.json.read_text()))


@pytest.fixture
def args(made: RoutingArgs, tmp_path: Path) -> ShipArgs:
    return ShipArgs(routing=made.json, run=made.run, to=tmp_path / "shipped" / "router")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(figures: dict[str, Any], path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**figures, **changes}))
    return path


def broken(run: Path, copy: Path) -> Path:
    """A run whose weights are damaged."""
    shutil.copytree(run, copy)
    for path in copy.rglob(WEIGHTS):
        path.write_bytes(b"torn")
    return copy


@pytest.mark.parametrize("learner", ["ppo", "dqn", "advantage"])
def test_it_is_the_policy_of_median_speed(
    learner: Any, args: ShipArgs, made: RoutingArgs, figures: dict[str, Any]
) -> None:
    seed = figures["heldout"]["routers"][learner]["median_seed"]
    run = made.run / f"{learner}-{seed}"
    policy = run if learner == "advantage" else run / "policy"
    shipped = ship_router(replace(args, learner=learner))
    assert set(contents(shipped)) == {WEIGHTS, BODY, "README.md"}
    for name in (WEIGHTS, BODY):
        assert (shipped / name).read_bytes() == (policy / name).read_bytes()
    assert list(shipped.parent.iterdir()) == [shipped]


@pytest.mark.parametrize("learner", ["ppo", "dqn", "advantage"])
def test_the_card_says_what_the_figures_say(
    learner: Any, args: ShipArgs, figures: dict[str, Any]
) -> None:
    card = (ship_router(replace(args, learner=learner)) / "README.md").read_text()
    row = figures["heldout"]["routers"][learner]
    gain, low, high = (f"{100 * value:+.1f}" for value in row["gain"])
    assert f"{gain} % over the best single arm, `{figures['heldout']['best_single']}`" in card
    assert f"95 %: {low} to {high}" in card
    seeds = row["gain_by_seed"]
    assert f"{100 * min(seeds):+.1f} % to {100 * max(seeds):+.1f} %" in card
    assert f"seed {row['median_seed']}, the one of median speed among 2" in card
    warm = figures["sampled"]["routers"][learner]["gain_by_seed"][row["median_seed"]]
    assert f"trained at T = 0; at T = 1 {100 * warm:+.1f} %" in card
    for name, fingerprint in figures["traces"]["train"]["drafters"].items():
        assert f"{name} `{fingerprint}`" in card
    assert "8 to train, 4 held out" in card
    assert figures["environment"]["command"] in card
    choices = next(line for line in card.splitlines() if line.startswith("| choices"))
    for arm, share in zip(figures["arms"], row["arm_shares"], strict=True):
        assert (f"`{arm}` {100 * share:.0f} %" in choices) == (share > 0.01)


def test_another_seed_gets_no_figures_of_the_median_one(
    args: ShipArgs, figures: dict[str, Any]
) -> None:
    row = figures["heldout"]["routers"]["ppo"]
    other = 1 - row["median_seed"]
    card = (ship_router(replace(args, seed=other)) / "README.md").read_text()
    assert f"{100 * row['gain_by_seed'][other]:+.1f} % over the best single arm" in card
    assert "median" not in card
    assert "| choices" not in card


def test_figures_of_one_temperature_still_make_a_card(
    args: ShipArgs, figures: dict[str, Any], tmp_path: Path
) -> None:
    cold = {key: value for key, value in figures.items() if key != "sampled"}
    path = rewrite(cold, tmp_path / "cold.json")
    card = (ship_router(replace(args, routing=path)) / "README.md").read_text()
    assert "| temperature" not in card
    assert "| held-out | by replay" in card


def test_shipping_again_changes_nothing(args: ShipArgs) -> None:
    first = contents(ship_router(args))
    assert contents(ship_router(args)) == first


def test_a_missing_policy_is_refused_and_the_shipped_one_stays(
    args: ShipArgs, tmp_path: Path
) -> None:
    before = contents(ship_router(args))
    with pytest.raises(DraftgymError, match="holds no trained policy") as caught:
        ship_router(replace(args, run=tmp_path / "nowhere"))
    assert "--run" in caught.value.remedy
    assert contents(args.to) == before


def test_damaged_weights_never_replace_the_shipped_ones(
    args: ShipArgs, made: RoutingArgs, tmp_path: Path
) -> None:
    before = contents(ship_router(args))
    with pytest.raises(DraftgymError):
        ship_router(replace(args, run=broken(made.run, tmp_path / "broken")))
    assert contents(args.to) == before


def test_a_policy_of_other_figures_is_refused(
    args: ShipArgs, figures: dict[str, Any], tmp_path: Path
) -> None:
    train = figures["traces"]["train"]
    drafters = {**train["drafters"], "eagle3": "other weights"}
    others = {**figures["traces"], "train": {**train, "drafters": drafters}}
    for changes, told in (
        ({"traces": others}, "drafters"),
        ({"arms": figures["arms"][::-1]}, "arms"),
    ):
        path = rewrite(figures, tmp_path / "others.json", **changes)
        with pytest.raises(DraftgymError, match=f"other {told}"):
            ship_router(replace(args, routing=path))
    assert not args.to.exists()


def test_a_folder_of_other_things_is_not_replaced(args: ShipArgs) -> None:
    args.to.mkdir(parents=True)
    (args.to / "thesis.txt").write_text("mine")
    with pytest.raises(DraftgymError, match="something else"):
        ship_router(args)
    assert list(contents(args.to)) == ["thesis.txt"]


def test_a_kill_between_the_two_renames_loses_nothing(
    args: ShipArgs, made: RoutingArgs, tmp_path: Path
) -> None:
    before = contents(ship_router(args))
    args.to.rename(args.to.with_name(f".{args.to.name}.previous"))
    with pytest.raises(DraftgymError):
        ship_router(replace(args, run=broken(made.run, tmp_path / "broken")))
    assert contents(args.to) == before
    assert contents(ship_router(args)) == before
    assert list(args.to.parent.iterdir()) == [args.to]


def test_a_damaged_file_of_figures_is_refused(args: ShipArgs, tmp_path: Path) -> None:
    for text in ("", "[]", '{"heldout": {}}'):
        path = tmp_path / "damaged.json"
        path.write_text(text)
        with pytest.raises(DraftgymError, match=r"benchmarks\.routers\.routing"):
            ship_router(replace(args, routing=path))


def test_policies_for_the_clock_are_the_compared_ones(
    made: RoutingArgs, figures: dict[str, Any], target: Target, drafters: dict[str, Drafter]
) -> None:
    specs = clock_policies(ShipArgs(routing=made.json, run=made.run))
    entropy, neural, *learned = (make_policy(spec, drafters, target) for spec in specs)
    pair = list(figures["thresholds"])[-1].removeprefix("entropy ")
    assert "/".join(map(str, entropy.arms)) == "/".join(map(str, neural.arms)) == pair
    assert [Path(spec).is_dir() for spec in specs] == [False, True, True, True, True]
    assert all([str(arm) for arm in policy.arms] == figures["arms"] for policy in learned)
