"""Damaged policy folders and run folders: each loads, or is refused with a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftgym.agents.common.settings import RouterDQN
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import RouterTrainer, replayed_experience
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import signal_names
from draftgym.policies.folder import BODY, WEIGHTS, PolicyTarget, read_kind
from draftgym.policies.routers.learned import (
    RouterNetwork,
    load_learned_policy,
    save_learned_policy,
)
from draftgym.policies.routers.neural import (
    DifferenceNetwork,
    NeuralPolicy,
    load_neural_policy,
    save_neural_policy,
)
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LearnedScheduler,
    SchedulerHead,
    load_scheduler,
    save_scheduler,
)
from draftgym.rollouts.traces.trace import TraceSet
from tests.fuzz.conftest import Fresh
from tests.tiny import ARMS
from tests.traces import tiny_traces

TWO = tuple(map(parse_arm, ("eagle3:3", "plain")))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@dataclass(frozen=True)
class Somebody:
    """Whom policies are for."""

    name: str = "somebody"
    fingerprint: str = "0" * 32


WHO: PolicyTarget = Somebody()
LOADERS: Mapping[str, Callable[[Path, PolicyTarget], object]] = {
    "router": load_learned_policy,
    "neural": load_neural_policy,
    "scheduler": load_scheduler,
}


def save(kind: str, folder: Path) -> None:
    """Writes a good policy of a kind."""
    torch.manual_seed(0)
    if kind == "router":
        network = RouterNetwork(len(signal_names(TWO)), 8, 2, width=4, neck=2)
        save_learned_policy(network, TWO, WHO, folder, {"rounds": 1}, 0.5)
    elif kind == "neural":
        save_neural_policy(NeuralPolicy(DifferenceNetwork(8), TWO, 0.5), WHO, folder, {})
    else:
        head = SchedulerHead(BELIEFS, 6, ("active", "deciding"), ("active",))
        policy = LearnedScheduler(head.network(4), head, {"chat/small:6": 0.5})
        save_scheduler(policy, TWO[:1], WHO, folder, {"settings": {"algorithm": "sac"}})


@pytest.fixture(scope="module", params=LOADERS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    LOADERS[request.param](folder, WHO)
    return folder


def loads_or_is_refused(folder: Path, kind: str) -> None:
    """The promise."""
    for load in (LOADERS[kind], lambda where, _: read_kind(where)):
        try:
            load(folder, WHO)
        except DraftgymError as error:
            assert error.remedy and error.problem


def copied(good: Path, to: Path) -> Path:
    shutil.copytree(good, to, dirs_exist_ok=True)
    return to


@given(data=st.data())
def test_a_changed_json_loads_or_is_refused(good: Path, fresh: Fresh, data: st.DataObject) -> None:
    folder = copied(good, fresh())
    kind, body = read_kind(folder), json.loads((folder / BODY).read_text())
    keys = st.sampled_from(sorted(body)) | st.text(max_size=9)
    body |= data.draw(st.dictionaries(keys, JSON, min_size=1, max_size=3), "changed")
    for name in data.draw(st.lists(st.sampled_from(sorted(body)), max_size=2), "left out"):
        body.pop(name, None)
    (folder / BODY).write_text(json.dumps(body))
    loads_or_is_refused(folder, kind)


@given(data=st.data())
def test_damaged_bytes_load_or_are_refused(good: Path, fresh: Fresh, data: st.DataObject) -> None:
    folder = copied(good, fresh())
    kind = read_kind(folder)
    if data.draw(st.booleans(), "of an older version"):  # which told no hash of its weights
        body = json.loads((folder / BODY).read_text())
        del body["weights_sha256"]
        (folder / BODY).write_text(json.dumps(body))
    path = folder / data.draw(st.sampled_from([BODY, WEIGHTS]), "file")
    path.write_bytes(damaged(path.read_bytes(), data))
    loads_or_is_refused(folder, kind)


def damaged(whole: bytes, data: st.DataObject) -> bytes:
    """Cut, overwritten, or something else."""
    place = data.draw(st.integers(0, len(whole) - 1), "place")
    how = data.draw(st.sampled_from(["cut", "overwritten", "other"]), "how")
    if how == "cut":
        return whole[:place]
    if how == "other":
        return data.draw(st.binary(max_size=200), "bytes")
    put = data.draw(st.binary(min_size=1, max_size=9), "bytes")
    return whole[:place] + put + whole[place + len(put) :]


@dataclass(frozen=True)
class Run:
    """A run that was cut, and what it plays."""

    args: RouterArgs
    traces: TraceSet

    def resume(self, folder: Path) -> RouterTrainer:
        """Goes on with a copy of it."""
        experience = replayed_experience(self.traces, self.args)
        return RouterTrainer(self.args, experience, folder)


@pytest.fixture(scope="module")
def run(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder = tmp_path_factory.mktemp("run")
    traces = tiny_traces(target, drafters, max_new_tokens=24)
    dqn = RouterDQN(n_envs=2, buffer_size=16, learning_starts=8, batch_size=4, width=4, neck=2)
    common: dict[str, Any] = {"traces": folder, "run": folder, "threads": 1, "validation": 0.5}
    args = RouterArgs(**common, algorithm="dqn", rounds=64, arms=ARMS, dqn=dqn, minutes=0.0)
    made = Run(args, traces)
    made.resume(folder).train()
    return made


@given(data=st.data())
def test_a_damaged_run_goes_on_or_is_refused(run: Run, fresh: Fresh, data: st.DataObject) -> None:
    folder = copied(run.args.run, fresh())
    names = ["model.zip", "policy/policy.json", "policy/policy.safetensors", "best.json"]
    path = folder / data.draw(st.sampled_from(names), "file")
    before = path.read_bytes()
    gone = data.draw(st.booleans(), "gone")
    path.unlink() if gone else path.write_bytes(damaged(before, data))
    try:
        trainer = run.resume(folder)
        trainer.judge(-1.0)  # reads what was best
    except DraftgymError as error:
        assert error.remedy and str(folder) in error.problem
