"""A learned scheduler serves users in any order and any number, and its folder acts as it does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from draftgym.agents.scheduler.totals import play_cells
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES, observe_cell
from draftgym.envs.scheduler.planners import LearnedPlanner
from draftgym.policies.folder import BODY
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LENGTHS,
    SHARES,
    TILTS,
    LearnedScheduler,
    SchedulerHead,
    load_scheduler,
    save_scheduler,
)
from tests.handmade.users import MODES, user_table, user_traces

KINDS = (BELIEFS, LENGTHS, SHARES, TILTS)
LONGEST = 6
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


def policy_of(kind: str, longest: int = LONGEST) -> LearnedScheduler:
    """A scheduler with random weights; its outputs are spread, so that it says different things."""
    torch.manual_seed(0)
    head = SchedulerHead(kind, longest, USER_FEATURES, CELL_FEATURES)
    network = head.network(16)
    seen = observed(user_table())
    with torch.no_grad():
        raw = network(torch.from_numpy(seen["users"]), torch.from_numpy(seen["cell"])).flatten(0, 1)
        network.outputs.weight.div_(raw.std(0)[:, None])
        network.outputs.bias.sub_(raw.mean(0)).div_(raw.std(0))
    return LearnedScheduler(network, head, {"chat/small:6": 0.5})


def observed(table: ChainTable, users: int = 8, mode: str = "synchronous") -> Observation:
    """What many cells look like after some rounds."""
    cell = Cell(table, replace(MODES[mode], users=users), 20)
    cell.reset(np.random.default_rng(0))
    for _ in range(6):
        lengths = np.random.default_rng(1).integers(0, LONGEST + 1, cell.shape)
        cell.step(cell.best_plan(lengths))
    return observe_cell(cell)


def by_user(actions: NDArray[np.float32], users: int) -> NDArray[np.float32]:
    """Actions with an axis of users `[n, components, K]`."""
    return actions.reshape(len(actions), -1, users)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_users_does_not_matter(kind: str, table: ChainTable) -> None:
    policy, seen = policy_of(kind), observed(table)
    order = np.random.default_rng(2).permutation(8)
    straight, _ = policy.predict(seen, deterministic=True)
    shuffled, _ = policy.predict(seen | {"users": seen["users"][:, order]}, deterministic=True)
    assert len(np.unique(straight)) > 2
    np.testing.assert_allclose(
        by_user(shuffled, 8), by_user(straight, 8)[..., order], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_empty_places_change_nothing(kind: str, table: ChainTable) -> None:
    policy, seen = policy_of(kind), observed(table)
    room = np.zeros((20, 5, len(USER_FEATURES)), np.float32)
    wide = seen | {"users": np.concatenate([seen["users"], room], axis=1)}
    few, many = (
        policy.predict(seen, deterministic=True)[0],
        policy.predict(wide, deterministic=True)[0],
    )
    np.testing.assert_allclose(by_user(many, 13)[..., :8], by_user(few, 8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("users", [1, 4, 16])
def test_one_network_serves_any_number_of_users(kind: str, users: int, table: ChainTable) -> None:
    cell = Cell(table, replace(MODES["synchronous"], users=users), 3)
    policy = policy_of(kind)
    rng = np.random.default_rng(0)
    reached = play_cells(lambda one: LearnedPlanner(policy, one), cell, rng, 12)
    assert (reached.tokens >= 12 * users).all()
    assert policy.lengths(observe_cell(cell), cell.problem()).shape == (3, users)


@pytest.mark.parametrize("kind", KINDS)
def test_users_see_each_other(kind: str, table: ChainTable) -> None:
    policy, seen = policy_of(kind), observed(table)
    changed = seen["users"].copy()
    changed[:, 0] *= -1
    changed[:, 0, :2] = 1.0
    others = by_user(policy.predict(seen, deterministic=True)[0], 8)[..., 1:]
    after = by_user(policy.predict(seen | {"users": changed}, deterministic=True)[0], 8)[..., 1:]
    assert not np.array_equal(others, after)


def test_who_does_not_decide_drafts_nothing(table: ChainTable) -> None:
    seen = observed(table, mode="window")
    deciding = seen["users"][..., USER_FEATURES.index("deciding")] > 0
    assert (~deciding).any()
    for deterministic in (True, False):
        lengths, _ = policy_of(LENGTHS).predict(seen, deterministic=deterministic)
        assert (lengths[~deciding] == 0).all() and lengths[deciding].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_acts_as_what_was_saved(kind: str, table: ChainTable, tmp_path: Path) -> None:
    policy, seen, origin = policy_of(kind), observed(table), user_traces().origin
    save_scheduler(policy, table.arms, origin, tmp_path / "policy", {"rounds": 1})
    loaded = load_scheduler(tmp_path / "policy", origin)
    np.testing.assert_array_equal(
        loaded.predict(seen, deterministic=True)[0], policy.predict(seen, deterministic=True)[0]
    )
    assert loaded.task_acceptance == policy.task_acceptance and loaded.name == tmp_path.name
    single = {key: value[3] for key, value in seen.items()}
    np.testing.assert_allclose(
        loaded.predict(single, deterministic=True)[0],
        policy.predict(seen, deterministic=True)[0][3],
        rtol=0,
        atol=1e-5,
    )
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert names == {"policy.safetensors", "policy.json"}


def test_deployment_needs_no_training_library(table: ChainTable, tmp_path: Path) -> None:
    save_scheduler(policy_of(LENGTHS), table.arms, user_traces().origin, tmp_path, {})
    code = (
        "import sys, types, pathlib, numpy as np\n"
        "from draftgym.policies.schedulers.learned import load_scheduler\n"
        "who = types.SimpleNamespace(name='handmade', fingerprint='f' * 32)\n"
        "policy = load_scheduler(pathlib.Path(sys.argv[1]), who)\n"
        "numbers = len(policy.head.user_features)\n"
        "users, cell = np.ones((5, numbers), np.float32), np.ones(4, np.float32)\n"
        "print(policy.lengths({'users': users, 'cell': cell}).shape)\n"
        "print([m for m in ('stable_baselines3', 'gymnasium') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert done.stdout.split("\n")[:2] == ["(5,)", "[]"], done.stderr


def test_folders_that_cannot_serve_are_refused_with_a_remedy(
    table: ChainTable, tmp_path: Path
) -> None:
    origin = user_traces().origin
    save_scheduler(policy_of(LENGTHS), table.arms, origin, tmp_path, {})
    with pytest.raises(DraftgymError, match="trained for target"):
        load_scheduler(tmp_path, replace(origin, target_fingerprint="0" * 32))
    body = json.loads((tmp_path / BODY).read_text())
    for changes, problem in [
        ({"head": "guess"}, "kind 'guess'"),
        ({"user_features": 3}, "policy.json"),
        ({"longest_draft": 9}, "cannot read"),
        ({"kind": "router"}, "not 'scheduler'"),
    ]:
        (tmp_path / BODY).write_text(json.dumps(body | changes))
        with pytest.raises(DraftgymError, match=problem) as caught:
            load_scheduler(tmp_path, origin)
        assert caught.value.remedy


def test_cells_of_another_longest_draft_are_refused(table: ChainTable) -> None:
    cell = Cell(table, MODES["synchronous"])
    cell.reset(np.random.default_rng(0))
    with pytest.raises(DraftgymError, match="up to 4 tokens"):
        LearnedPlanner(policy_of(LENGTHS, longest=4), cell)
