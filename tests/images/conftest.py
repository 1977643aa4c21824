"""One tiny target of each kind that sees, and the folder that it was loaded from."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftgym.decoding.model.target import Target, load_target
from tests.tiny_images import KINDS, save_image_target


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face folder per kind."""
    return {kind: save_image_target(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="package")
def targets(folders: dict[str, Path]) -> dict[str, Target]:
    """They, loaded as a user does."""
    return {kind: load_target(str(folder), "float32", 1) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, targets: dict[str, Target]) -> Target:
    """Each in turn."""
    return targets[request.param]
