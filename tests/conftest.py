"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
import torch

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.loading import load_drafters
from tests.tiny import tiny_drafters, tiny_target

torch.set_num_threads(1)


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
