"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.loading import load_drafters
from tests.tiny import tiny_drafters, tiny_target

torch.set_num_threads(1)

# The suite draws the same inputs every time; `make fuzz` draws new ones, and many more.
_shared = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("suite", max_examples=40, derandomize=True, database=None, **_shared)
settings.register_profile("fuzz", max_examples=250, print_blob=True, **_shared)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def target() -> Target:
    """A tiny Llama target."""
    return tiny_target()


@pytest.fixture(scope="session")
def drafters(target: Target) -> dict[str, Drafter]:
    """Untrained EAGLE-3 and DFlash drafters and an n-gram drafter for it."""
    return tiny_drafters(target)


@pytest.fixture(scope="session")
def real() -> tuple[Target, dict[str, Drafter]]:
    """The embedded target in float32 with the shipped drafters, loaded once for all tests."""
    target = load_target("smollm2-135m", "float32")
    return target, load_drafters(target)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores on this machine."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
        yield ray
        ray.shutdown()
