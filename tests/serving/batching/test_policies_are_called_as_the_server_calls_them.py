"""A policy's name is shown to strangers: it never tells where it lies on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import signal_names
from draftgym.policies.routers.learned import RouterNetwork, save_learned_policy
from draftgym.serving.batching.policy_set import PolicySet


@pytest.fixture
def policies(target: Target, drafters: dict[str, Drafter], tmp_path: Path) -> PolicySet:
    """A trained policy, behind prompt lookup, and a rule."""
    arms = [parse_arm("eagle3:3"), parse_arm("plain")]
    folder = tmp_path / "router"
    network = RouterNetwork(len(signal_names(arms)), target.hidden_size, len(arms), width=16)
    save_learned_policy(network, arms, target, folder, {})
    return PolicySet(target, drafters, {"mine": f"ngram:4>{folder}", "fast": "eagle3:3"})


def test_names_are_those_that_the_server_was_given(policies: PolicySet) -> None:
    assert policies.names == ["mine", "fast"]
    assert policies.find(None).name == policies.find("mine").name == "mine"
    assert policies.find(" fast ").name == "fast"
    for rule in ("ngram:8>eagle3:3", "ngram:8~0.7>eagle3:3x6~0.06", "eagle3:3x6+ngram:8"):
        assert policies.find(rule).name == rule
    assert policies.find(None, predicts=True).name == "ngram:16>mine"


def test_a_request_names_no_folder(policies: PolicySet, tmp_path: Path) -> None:
    for spec in (str(tmp_path / "router"), f"ngram:4>{tmp_path / 'router'}", "../router", "~"):
        with pytest.raises(DraftgymError, match="no policy is called"):
            policies.find(spec)
