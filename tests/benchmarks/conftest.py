"""What several tests of benchmarks share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.routers.routing import RoutingArgs, compare_routers
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from tests.routing_runs import routing_args


@pytest.fixture(scope="session")
def routing_run(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> RoutingArgs:
    """A finished comparison of routers, transfer and another temperature included."""
    args = routing_args(target, drafters, tmp_path_factory.mktemp("routing"))
    args = replace(args, transfer=True)
    compare_routers(args)
    return args
