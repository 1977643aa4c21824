"""One tiny model and one server for all clients, which ask nobody but that server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.serving.clients.served import Served, Tiny, make_tiny, serve

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def served(tiny: Tiny) -> Iterator[Served]:
    """The server."""
    with serve(tiny) as server:
        yield server
