"""What the properties share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Fresh = Callable[[], Path]


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Empties a folder for the next input; pytest's own would number and keep thousands."""
    folder = tmp_path_factory.mktemp("fresh")

    def empty() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return empty
