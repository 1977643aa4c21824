"""What is handed to the public face by mistake is named, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO

from draftgym import SpeculativeDecoder, load_drafters, make_policy
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.rollouts.replay.play import play_policy
from tests.handmade.users import user_table, user_traces
from tests.tiny import PROMPTS, numbered_target
from tests.traces import tiny_traces

CURVE = Curve((1, 2), (1.0, 1.0))
FLAT = CostModel({}, {16: CURVE}, {}, {}, {})


@pytest.fixture(scope="module")
def face(target: Target, drafters: dict[str, Drafter]) -> dict[str, Any]:
    """What is right, by name."""
    lookup = {"ngram": drafters["ngram"]}
    settings: dict[str, Any] = {"prompts": PROMPTS, "latency": FLAT}
    env = RouterEnv(numbered_target(target), lookup, ["ngram:4", "plain"], **settings)
    agent = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, device="cpu")
    policy = make_policy("ngram:4", lookup, target)
    return {"target": target, "lookup": lookup, "agent": agent, "policy": policy, "told": settings}


Call = Callable[[dict[str, Any]], object]
MISTAKES: dict[str, tuple[Call, str, str]] = {
    "decoder: an agent": (
        lambda f: SpeculativeDecoder(f["target"], f["lookup"], f["agent"]),
        "a PPO is no policy: it lacks arms, observes",
        "exported policy",
    ),
    "decoder: a name for a policy": (
        lambda f: SpeculativeDecoder(f["target"], f["lookup"], "ngram:4"),  # type: ignore[arg-type]
        "'ngram:4' is no policy",
        "make_policy",
    ),
    "decoder: nothing for a policy": (
        lambda f: SpeculativeDecoder(f["target"], f["lookup"], None),  # type: ignore[arg-type]
        "None is no policy",
        "make_policy",
    ),
    "decoder: a name for a target": (
        lambda f: SpeculativeDecoder("smollm2-135m", f["lookup"], f["policy"]),  # type: ignore[arg-type]
        "'smollm2-135m' is no loaded target",
        "load_target",
    ),
    "decoder: names for drafters": (
        lambda f: SpeculativeDecoder(f["target"], ["ngram"], f["policy"]),  # type: ignore[arg-type]
        "a list is not loaded drafters",
        "load_drafters",
    ),
    "drafters: a name for a target": (
        lambda f: load_drafters("smollm2-135m"),  # type: ignore[arg-type]
        "'smollm2-135m' is no loaded target",
        "load_target",
    ),
    "drafters: a path for a list": (
        lambda f: load_drafters(f["target"], "no/such/folder"),  # type: ignore[arg-type]
        "no/such/folder",
        "",
    ),
    "policy: an agent": (
        lambda f: make_policy(f["agent"], f["lookup"], f["target"]),
        "a PPO is no name of a policy",
        "folder",
    ),
    "policy: a folder that is not there": (
        lambda f: make_policy(Path("no/such/folder"), f["lookup"], f["target"]),
        "does not exist",
        "folder",
    ),
    "replay: an agent": (
        lambda f: play_policy(None, f["agent"]),  # type: ignore[arg-type]
        "a PPO is no policy",
        "exported policy",
    ),
    "environment: one text for arms": (
        lambda f: RouterEnv(f["target"], f["lookup"], "ngram:4", **f["told"]),
        "no list of arms",
        'as in ["eagle3:4"]',
    ),
    "environment: arms that are no texts": (
        lambda f: RouterEnv(f["target"], f["lookup"], [4], **f["told"]),  # type: ignore[list-item]
        "no list of arms",
        'as in ["eagle3:4"]',
    ),
    "environment: a path for drafters": (
        lambda f: RouterEnv(f["target"], Path("x"), **f["told"]),  # type: ignore[arg-type]
        "is not loaded drafters",
        "load_drafters",
    ),
    "environment: no target": (
        lambda f: RouterEnv(None, f["lookup"], **f["told"]),  # type: ignore[arg-type]
        "None is no loaded target",
        "load_target",
    ),
    "replay environment: no traces": (
        lambda f: gym.make("draftgym/RouterReplay-v0", traces=None),
        "a NoneType is no traces",
        "draftgym collect",
    ),
    "scheduler environment: a number for traces": (
        lambda f: gym.make("draftgym/Scheduler-v0", traces=3),
        "a int is no traces",
        "draftgym collect",
    ),
    "scheduler environment: a dictionary for a cell": (
        lambda f: gym.make("draftgym/Scheduler-v0", traces=user_table(), cell={"users": 3}),
        "a dict is no cell",
        "CellSettings",
    ),
    "serving environment: a dictionary for a server": (
        lambda f: gym.make("draftgym/Serving-v0", traces=user_traces(), server={"places": 3}),
        "a dict is no server",
        "ServerSettings",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_argument_is_named_with_the_remedy(face: dict[str, Any], mistake: str) -> None:
    call, problem, remedy = MISTAKES[mistake]
    with pytest.raises(DraftgymError) as refused:
        call(face)
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy and refused.value.remedy


def test_what_is_right_is_taken(
    face: dict[str, Any], target: Target, drafters: dict[str, Drafter]
) -> None:
    assert isinstance(face["policy"], FixedPolicy)
    SpeculativeDecoder(face["target"], face["lookup"], face["policy"])
    traces = tiny_traces(target, drafters, arms=("ngram:4",), max_new_tokens=12)
    assert play_policy(traces, face["policy"])


def test_token_ids_are_lists_or_tensors_of_whole_numbers(face: dict[str, Any]) -> None:
    decoder = SpeculativeDecoder(face["target"], face["lookup"], face["policy"])
    ids = torch.tensor([3, 4, 5])
    texts = [decoder.generate(one, 6).tokens for one in (ids, [3, 4, 5], ids.numpy(), ids[None])]
    assert texts == [texts[0]] * 4
    for wrong in ([0.5, 1.0], [["a"]], {"input_ids": ids}, torch.zeros(2, 3), None, [True]):
        with pytest.raises(DraftgymError, match="token ids") as refused:
            decoder.generate(wrong, 6)  # type: ignore[arg-type]
        assert "whole numbers" in refused.value.remedy
    with pytest.raises(DraftgymError, match="empty"):
        decoder.generate([], 6)
