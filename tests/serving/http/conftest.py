"""One tiny model, and one server whose model is a folder, as a user's is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.serving.http.app import make_app
from draftgym.serving.http.main import ServeArgs, load
from draftgym.serving.http.service import Limits, Service
from tests.serving.clients.served import PATIENCE, Tiny, make_tiny
from tests.serving.scripted import running
from tests.tiny import tiny_eagle3


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model."""
    return make_tiny(tmp_path_factory.mktemp("host") / "my-tiny")


@pytest.fixture(scope="session")
def service(tiny: Tiny) -> Iterator[Service]:
    """What is served of it."""
    target = tiny.target()
    drafter = tiny.folder.parent / "my-eagle3"
    save_checkpoint(tiny_eagle3(target).network, drafter, target)
    args = ServeArgs(
        target=str(tiny.folder),
        drafters=(str(drafter),),
        policy="eagle3:3",
        policies=("lookup=ngram:4",),
        dtype="float32",
        threads=1,
        guard=False,
    )
    service = Service(args.model_name, Limits(most_new_tokens=1500, most_bytes=200_000))
    service.serve(load(args))
    yield service
    service.close()


@pytest.fixture(scope="session")
def address(service: Service) -> Iterator[str]:
    """Where."""
    with running(make_app(service)) as address:
        yield address


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    """Who asks."""
    with httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def folder(tiny: Tiny) -> Path:
    """What nobody outside may hear of."""
    return tiny.folder.parent
