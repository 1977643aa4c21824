"""What the tests of training leave out."""

from __future__ import annotations

import pytest

from draftgym.drafters.training.loop import trainer, watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts are watched, and what a matrix product reaches here (a second) is not asked for."""
    monkeypatch.setattr(trainer, "matmul_peak", lambda _: 1.0)
    monkeypatch.setattr(watch, "TEXTS", 4)
