"""What the tests of training leave out."""

from __future__ import annotations

import pytest

from draftgym.drafters.training.loop import trainer


@pytest.fixture(autouse=True)
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a matrix product reaches here is not asked for; measuring it takes a second."""
    monkeypatch.setattr(trainer, "matmul_peak", lambda: 1.0)
