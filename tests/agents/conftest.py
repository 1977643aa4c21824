"""Tiny routers in training, for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import draftgym.agents.router.live
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import (
    train_router,
)
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from tests.agents.router_runs import TINY, TINY_DQN, Train
from tests.tiny import ARMS, PROMPTS, numbered_target, tiny_costs
from tests.traces import save_traces, tiny_traces


@pytest.fixture(scope="module")
def costs(target: Target, drafters: dict[str, Drafter]) -> CostModel:
    return tiny_costs(target, drafters)


@pytest.fixture(scope="module")
def settings(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> RouterArgs:
    """A tiny router's, with its traces and prompts."""
    folder = tmp_path_factory.mktemp("traces")
    prompts = folder / "prompts.jsonl"
    lines = [{"question_id": p.question_id, "turns": list(p.turns)} for p in PROMPTS]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RouterArgs(
        traces=save_traces(tiny_traces(target, drafters, max_new_tokens=24), folder),
        live=True,
        rounds=32,
        threads=1,
        arms=ARMS,
        prompts=str(prompts),
        max_new_tokens=24,
        ppo=TINY,
        live_ppo=TINY,
        dqn=TINY_DQN,
    )


@pytest.fixture
def train(
    settings: RouterArgs,
    target: Target,
    drafters: dict[str, Drafter],
    costs: CostModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Trains a tiny router with changed settings; returns the settings."""
    live, numbered = draftgym.agents.router.live, numbered_target(target)
    monkeypatch.setattr(live, "load_target", lambda *_: numbered)
    monkeypatch.setattr(live, "load_drafters", lambda *_: drafters)
    monkeypatch.setattr(live, "load_cost_model", lambda *_: costs)

    def run(**changes: object) -> RouterArgs:
        args = replace(settings, run=tmp_path / "run")
        args = replace(args, **changes)  # type: ignore[arg-type]
        train_router(args)
        return args

    return run
