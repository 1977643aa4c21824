"""Runs of `benchmarks.routers.routing` on the tiny models, for tests of what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.routers.routing import RoutingArgs
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.rollouts.prompts.sets import Prompt
from tests.traces import save_traces, tiny_traces


def prompts(first: int, count: int) -> list[Prompt]:
    """Prompts of two categories in turn."""
    kinds = ("chat", "code")
    return [Prompt(f"p{i}", kinds[i % 2], (f"{i}",)) for i in range(first, first + count)]


def routing_args(target: Target, drafters: Mapping[str, Drafter], root: Path) -> RoutingArgs:
    """A comparison that takes seconds."""
    learn = tiny_traces(target, drafters, prompts=prompts(0, 8), max_new_tokens=24)
    test = tiny_traces(target, drafters, prompts=prompts(50, 4), max_new_tokens=24)
    warm = tiny_traces(target, drafters, 1.0, prompts=prompts(50, 4), max_new_tokens=24)
    mixed = tiny_traces(target, drafters, 0.7, prompts=prompts(0, 8), max_new_tokens=24)
    return RoutingArgs(
        traces=save_traces(learn, root / "traces"),
        heldout=save_traces(test, root / "heldout"),
        sampled=save_traces(warm, root / "sampled"),
        twice=True,
        also=(save_traces(mixed, root / "mixed"),),
        pair=("eagle3:3", "dflash:4x8"),
        seeds=2,
        rounds=64,
        run=root / "run",
        threads=1,
        json=root / "figures.json",
    )
