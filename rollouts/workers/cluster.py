"""Ray, where it is installed: a cluster to work on, and what it has room for."""

from __future__ import annotations

import importlib
import os
from typing import Any

from draftgym.decoding.errors import DraftgymError

LOCAL = "local"


def require_ray() -> Any:
    """The module `ray`.

    Raises:
        DraftgymError: It is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise DraftgymError("Ray is not installed", "pip install 'draftgym[ray]'") from error


def connect(address: str) -> Any:
    """Ray, connected; a connection that this process has is kept.

    Args:
        address: `auto`, that of a cluster, or `local` for one of this process.

    Raises:
        DraftgymError: Ray is not installed, or no cluster answers there.
    """
    ray = require_ray()
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"address": address, "logging_level": "WARNING"}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of this run
        options["include_dashboard"] = False
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DraftgymError(
            f"no Ray cluster answers at {address!r}: {reason}",
            "start one with ray start --head (others join it with ray start --address=...), or "
            "give --ray local for workers on this machine",
        ) from error
    return ray


def gpus_each(ray: Any, asked: float | None) -> float:
    """Accelerators of a worker: those that were asked for, or one where the cluster has any."""
    if asked is not None:
        return asked
    return float(ray.cluster_resources().get("GPU", 0) > 0)


def room_for(ray: Any, cpus: float, gpus: float) -> int:
    """Workers that the machines of a cluster have room for, if nobody else uses them."""
    rooms = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            each = [has.get(kind, 0) / one for kind, one in (("CPU", cpus), ("GPU", gpus)) if one]
            rooms += int(min(each) + 1e-6)  # ten tenths are a little less than one
    return rooms
