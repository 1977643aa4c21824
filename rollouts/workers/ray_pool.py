"""Workers on Ray that may die: what they were at is done again, by whoever is free.

Ray restarts an actor and repeats its calls only where it is told to. Here it restarts actors for
ever (`max_restarts=-1`), but calls are repeated by this process, which counts: a shard that takes
its worker along every time would otherwise do so for ever. Errors that the user can mend come back
as values and end the run.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.workers.cluster import connect, gpus_each, room_for
from draftgym.rollouts.workers.options import WorkerOptions
from draftgym.rollouts.workers.shard import Shard, SharedFolder, Worker

OURS = "DRAFTGYM_"
"""How the names of environment variables begin that workers are told of."""
PATIENCE = 60.0
"""Seconds without any worker before that is said."""
LULL = 0.05
"""Seconds before an actor that is about to end is asked again whether it has."""


class Host:
    """The actor: makes a worker when it is first needed, and hands calls to it.

    Args:
        make: Makes the worker.
        shared: The folder that it writes into.
        home: Current folder of who asks; relative paths are meant from there.
        settings: Environment variables of who asks.
    """

    def __init__(
        self,
        make: Callable[[], Worker],
        shared: SharedFolder,
        home: str,
        settings: Mapping[str, str],
    ) -> None:
        self._make, self._shared = make, shared
        self._worker: Worker | None = None
        self._life = uuid4().hex
        os.environ.update(settings)
        with suppress(OSError):
            os.chdir(home)

    def ready(self) -> str:
        """Which of the actor's lives this is, once it runs."""
        return self._life

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the worker answers, or a `DraftgymError`."""
        try:
            self._shared.check(socket.gethostname())
            if self._worker is None:
                self._worker = self._make()
            return getattr(self._worker, method)(*arguments)
        except DraftgymError as error:
            return error


@dataclass
class _Job:
    """A call, and how often it was tried."""

    method: str
    arguments: Sequence[Any]
    name: str
    tries: int = 0
    failure: str = ""


class RayPool:
    """A pool of actors.

    Args:
        make: Makes a worker.
        options: How many, with what.
        out: The folder they write into.

    Raises:
        DraftgymError: No cluster answers, or it has no room for a worker.
    """

    def __init__(self, make: Callable[[], Worker], options: WorkerOptions, out: Path) -> None:
        self._options, address = options, str(options.ray)
        self._ray = ray = connect(address)
        cpus, gpus = options.cpus_per_worker, gpus_each(ray, options.gpus_per_worker)
        count = options.workers or room_for(ray, cpus, gpus)
        if count < 1:
            raise DraftgymError(
                f"no machine of the Ray cluster has {cpus:g} cores and {gpus:g} accelerators",
                "ask for less with --cpus-per-worker and --gpus-per-worker; or say how many "
                "--workers there will be as machines join",
            )
        resources = {"num_cpus": cpus, "num_gpus": gpus}
        kind = ray.remote(max_restarts=-1, max_task_retries=-1, **resources)(Host)
        shared, home = SharedFolder.opened(out.absolute()), str(Path.cwd())
        ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        self.actors = [kind.remote(make, shared, home, ours) for _ in range(count)]
        self._pending: dict[Any, tuple[Any, _Job | None]] = {}
        self._idle: list[Any] = []
        self._lives: dict[Any, str] = {}
        self._over: set[str] = set()
        for actor in self.actors:
            self._await(actor)

    def close(self) -> None:
        """Ends the workers."""
        for actor in self.actors:
            with suppress(Exception):
                self._ray.kill(actor)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of any worker answers."""
        (answer,) = self._results([_Job(method, arguments, f"{method}()")])
        return answer

    def write(self, shards: Sequence[Shard], plan: Any, progress: Progress) -> None:
        """Lets the workers write shards; see `Pool`."""
        known = self._ray.put(plan)  # once to each machine
        jobs = [_Job("write", (shard, known), str(shard)) for shard in shards]
        for amount in self._results(jobs):
            progress.add(amount.units, amount.texts)

    def _results(self, jobs: Sequence[_Job]) -> Iterator[Any]:
        """What becomes of some jobs, as they end."""
        waiting, given_up, open_jobs = deque(jobs), list[_Job](), len(jobs)
        while open_jobs:
            while waiting and self._idle:
                self._start(self._idle.pop(), waiting.popleft())
            for actor, job, result in self._ended():
                if not job.failure:
                    self._idle.append(actor)
                    open_jobs -= 1
                    yield result
                    continue
                if job.tries < self._options.tries:
                    print(f"note: {job.name} is done again: {job.failure}", file=sys.stderr)
                    waiting.append(job)
                else:
                    given_up.append(job)
                    open_jobs -= 1
        if given_up:
            raise _given_up(given_up, self._options.tries)

    def _start(self, actor: Any, job: _Job) -> None:
        job.tries, job.failure = job.tries + 1, ""
        call = actor.call.options(max_task_retries=0).remote(job.method, *job.arguments)
        self._pending[call] = (actor, job)

    def _await(self, actor: Any) -> None:
        """An actor is idle once it runs (again), however long that takes."""
        self._pending[actor.ready.remote()] = (actor, None)

    def _ended(self) -> Iterator[tuple[Any, _Job, Any]]:
        """Jobs that have ended: whose they were, which, and what came of them."""
        ray, errors = self._ray, self._ray.exceptions
        if not self._pending:
            raise DraftgymError(
                "no worker is left: Ray cannot start any again", "look into Ray's logs, try again"
            )
        done, _ = ray.wait(list(self._pending), timeout=PATIENCE)
        if not done and all(job is None for _, job in self._pending.values()):
            print("note: waiting for Ray to start a worker (ray status says why)", file=sys.stderr)
        for call in done:
            actor, job = self._pending.pop(call)
            try:
                result = ray.get(call)
            except errors.RayError as error:
                if job is None:
                    continue  # it will not come again
                job.failure = _reason(ray, error)
                if isinstance(error, errors.RayTaskError):  # who knows what state it is in
                    self._over.add(self._lives[actor])
                    ray.kill(actor, no_restart=False)
                self._await(actor)
                yield actor, job, None
                continue
            if isinstance(result, DraftgymError):
                raise result
            if job is not None:
                yield actor, job, result
            elif result in self._over:  # a kill takes a while
                time.sleep(LULL)
                self._await(actor)
            else:
                self._lives[actor] = result
                self._idle.append(actor)


def _reason(ray: Any, error: Exception) -> str:
    """Why a call failed, in a line."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its worker took too much memory"
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"[:200]
    return "its worker died"


def _given_up(jobs: Sequence[_Job], tries: int) -> DraftgymError:
    named = "; ".join(f"{job.name}: {job.failure}" for job in jobs[:5])
    more = f"; and {len(jobs) - 5} more" if len(jobs) > 5 else ""
    return DraftgymError(
        f"given up after {tries} tries each: {named}{more}",
        "what else there was is done and kept; Ray's logs say how it ended. The same command tries "
        "it again",
    )
