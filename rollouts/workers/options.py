"""Options of commands whose work can be done by others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from draftgym.decoding.errors import DraftgymError


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who does the work.

    Attributes:
        ray: Let workers on Ray do it (needs the extra `ray`): auto (the cluster that is running on
            this machine, or that RAY_ADDRESS names), the address of one, or local (workers on this
            machine, for this command). All see the folder of --out. Default: this process does it.
        workers: How many, on Ray; default: as many as the cluster has room for at the start. More
            than that begin as machines join.
        cpus_per_worker: Cores of a worker; also its threads, unless --threads says otherwise.
        gpus_per_worker: Accelerators of a worker, perhaps a share of one (0.5). Default: 1 where
            the cluster has any, else 0.
        tries: A shard that fails, or whose worker dies, so many times is given up and named.
        threads: CPU threads; default: every core this process may use, or a worker on Ray has.
    """

    ray: str | None = None
    workers: int | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    tries: int = 5
    threads: int | None = None

    def with_threads(self) -> Self:
        """With as many threads as a worker on Ray has cores, unless they were asked for."""
        if self.ray is None or self.threads is not None:
            return self
        return replace(self, threads=max(1, int(self.cpus_per_worker)))

    def check_workers(self) -> None:
        """Raises `DraftgymError` for settings that cannot work, or where Ray is missing."""
        for option in ("workers", "cpus_per_worker", "tries"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                name = "--" + option.replace("_", "-")
                raise DraftgymError(f"{name} is {value}", "give more than none")
        if self.gpus_per_worker is not None and not self.gpus_per_worker >= 0:
            raise DraftgymError(f"--gpus-per-worker is {self.gpus_per_worker}", "give 0 or more")
        if self.ray is not None:
            from draftgym.rollouts.workers.cluster import require_ray

            require_ray()
        elif self.workers is not None:
            raise DraftgymError(
                "--workers says how many work on Ray, and nothing is to be done there",
                "give --ray local for workers on this machine, or leave --workers out",
            )
