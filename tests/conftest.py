"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
import torch

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
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
