"""A policy folder gives back the policy that was saved, or says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import Observation, signal_names
from draftgym.policies.folder import BODY, WEIGHTS
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    RouterNetwork,
    load_learned_policy,
    save_learned_policy,
)
from tests.tiny import ARMS, tiny_target

CHOICE = tuple(map(parse_arm, ARMS))


def observations(count: int, target: Target) -> Observation:
    """A batch of random ones."""
    rng = np.random.default_rng(0)
    return {
        "signals": rng.uniform(0, 3, (count, len(signal_names(CHOICE)))).astype(np.float32),
        "hidden": rng.normal(size=(count, target.hidden_size)).astype(np.float32),
    }


@pytest.fixture
def network(target: Target) -> RouterNetwork:
    """An untrained router."""
    torch.manual_seed(3)
    return RouterNetwork(len(signal_names(CHOICE)), target.hidden_size, len(CHOICE), width=16)


@pytest.fixture
def folder(target: Target, network: RouterNetwork, tmp_path: Path) -> Path:
    """The same, saved."""
    save_learned_policy(network, CHOICE, target, tmp_path / "router", {"rounds": 7})
    return tmp_path / "router"


def test_a_loaded_policy_acts_as_the_saved_one(
    target: Target, network: RouterNetwork, folder: Path, drafters: dict[str, Drafter]
) -> None:
    batch = observations(200, target)
    wanted, _ = LearnedPolicy(network, CHOICE).predict(batch, deterministic=True)
    loaded = load_learned_policy(folder, target)
    actions, _ = loaded.predict(batch, deterministic=True)
    assert len(set(wanted.tolist())) > 1
    assert actions.tolist() == wanted.tolist()
    assert loaded.arms == CHOICE and loaded.name == "router"
    named, _ = make_policy(str(folder), drafters, target).predict(batch, deterministic=True)
    assert named.tolist() == wanted.tolist()


def test_arrays_are_scored_as_tensors_are(target: Target, network: RouterNetwork) -> None:
    batch = observations(50, target)
    with torch.no_grad():
        wanted = network.eval()(*(torch.from_numpy(batch[key]) for key in ("signals", "hidden")))
    found = network.on_host()(batch["signals"], batch["hidden"])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_saving_again_replaces_the_policy(
    target: Target, network: RouterNetwork, folder: Path
) -> None:
    with torch.no_grad():
        network.scores.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    save_learned_policy(network, CHOICE, target, folder, {})
    actions, _ = load_learned_policy(folder, target).predict(observations(20, target))
    assert set(actions.tolist()) == {2}
    assert sorted(path.name for path in folder.iterdir()) == sorted([BODY, WEIGHTS])


def change(**keys: object) -> Callable[[Path], None]:
    """Changes keys of policy.json; None removes one."""

    def spoil(folder: Path) -> None:
        body = json.loads((folder / BODY).read_text()) | keys
        kept = {key: value for key, value in body.items() if value is not None}
        (folder / BODY).write_text(json.dumps(kept))

    return spoil


def reweigh(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Edits the weights."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        edit(weights)
        save_file(weights, folder / WEIGHTS)
        change(weights_sha256=None)(folder)  # else others are refused whatever is in them

    return spoil


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda folder: (folder / BODY).unlink(), "not a policy folder"),
    "damaged json": (lambda folder: (folder / BODY).write_text("{"), "not JSON"),
    "json of something else": (lambda folder: (folder / BODY).write_text("[1]"), "not an object"),
    "missing key": (change(width=None), "lacks .*width"),
    "other kind": (change(kind="neural"), "kind 'neural'"),
    "other format": (change(format=2), "format 2"),
    "other target": (change(target_fingerprint="0" * 32, target="big"), "target 'big'"),
    "no arms": (change(arms=[]), "no arms"),
    "unreadable arm": (change(arms=["eagle3:x"]), "draft length"),
    "other signals": (change(signals=["mood"]), "signals"),
    "other width": (change(width=8), "encoder.mix"),
    "width of words": (change(width="wide"), "cannot read"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot read"),
    "damaged weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * 40), "cannot read"),
    "cut weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
        "cannot read",
    ),
    "other weights": (
        lambda folder: (
            reweigh(lambda w: w["scores.bias"].add_(1))(folder)
            or change(weights_sha256="0" * 64)(folder)
        ),
        "not the file that policy.json was written with",
    ),
    "missing weight": (reweigh(lambda w: w.pop("scores.bias")), "scores.bias"),
    "NaN weight": (reweigh(lambda w: w["scores.bias"].fill_(torch.nan)), "NaN"),
    "infinite weight": (reweigh(lambda w: w["encoder.mix.bias"].fill_(torch.inf)), "infinite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_folder_is_refused_with_a_remedy(target: Target, folder: Path, mistake: str) -> None:
    spoil, words = MISTAKES[mistake]
    load_learned_policy(folder, target)
    spoil(folder)
    with pytest.raises(DraftgymError, match=words) as caught:
        load_learned_policy(folder, target)
    assert caught.value.remedy and str(folder) in caught.value.problem


def test_folders_of_the_first_version_name_no_kind(target: Target, folder: Path) -> None:
    change(kind=None)(folder)
    assert load_learned_policy(folder, target).arms == CHOICE


def test_an_unknown_kind_is_refused_by_name(
    target: Target, folder: Path, drafters: dict[str, Drafter]
) -> None:
    change(kind="oracle")(folder)
    with pytest.raises(DraftgymError, match="known kinds: router, neural"):
        make_policy(str(folder), drafters, target)


def test_a_policy_of_another_model_is_refused(target: Target, folder: Path) -> None:
    with pytest.raises(DraftgymError, match="was trained for target"):
        load_learned_policy(folder, tiny_target(seed=9))
    renamed = replace(target, name="the same weights elsewhere")
    assert load_learned_policy(folder, renamed).arms == CHOICE
