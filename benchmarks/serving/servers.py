"""Servers in processes of their own, each alive only while it is measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from benchmarks.results import TargetOptions
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.embedded import embedded_gguf, embedded_target
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import git_revision
from draftgym.serving.http.naming import public_name

LOADING = 300.0
"""Seconds that a server may load before it answers."""
ENDING = 30.0
"""Seconds that it may take to end once it is asked to."""
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """How a server is started.

    Attributes:
        name: What tables call it.
        weights: In which numbers it holds them.
        command: By the port that it listens to.
        model: What it calls its model.
        ready: Path that is answered with 200 once it is.
        environment: Variables beside this process's own.
        ours: Whether it is this project's.
        version: Program that prints which version it is; empty for this very checkout.
    """

    name: str
    weights: str
    command: Callable[[int], list[str]]
    model: str
    ready: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    version: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        server: Which.
        url: Where, without `/v1`.
        process: Its process.
    """

    server: Server
    url: str
    process: subprocess.Popen[bytes]


def draftgym_server(options: TargetOptions, target: Target, *told: str) -> Server:
    """This project's, in float32.

    Args:
        options: What it serves.
        target: The same, loaded: where it computes, and with how many threads.
        *told: Further options of `draftgym serve`, which are part of its name.
    """
    how = ["--target", options.target, "--backend", options.backend, "--dtype", "float32"]
    how += ["--device", str(target.device), "--threads", str(target.precision.threads)]
    if options.drafters:
        how += ["--drafters", *map(str, options.drafters)]

    def command(port: int) -> list[str]:
        start = [sys.executable, "-m", "draftgym", "serve", *how]
        return [*start, "--host", HOST, "--port", str(port), *told]

    name = " ".join(["draftgym", *told])
    return Server(name, "float32", command, public_name(options.target), ours=True)


def transformers_server(python: Path, target: str, threads: int, batching: bool) -> Server:
    """`transformers serve` with the same weights in float32.

    Args:
        python: An interpreter with `transformers[serving]`.
        target: Name of an embedded target, or a Hugging Face folder.
        threads: Of the processor.
        batching: Whether it batches continuously.
    """
    folder = str(Path(target) if Path(target).is_dir() else embedded_target(target))
    cli = "from transformers.cli.transformers import main; main()"

    def command(port: int) -> list[str]:
        options = ["--continuous-batching", "--cb-num-blocks", "128"] if batching else []
        listen = ["--host", HOST, "--port", str(port)]
        where = ["--device", "cpu", "--dtype", "float32"]
        return [str(python), "-c", cli, "serve", folder, *where, *listen, *options]

    name = f"transformers serve{' --continuous-batching' if batching else ''}"
    told = (str(python), "-c", "import transformers; print(transformers.__version__)")
    environment = {"OMP_NUM_THREADS": str(threads)}
    return Server(name, "float32", command, folder, environment=environment, version=told)


def llama_server(python: Path, target: str, threads: int) -> Server:
    """llama-cpp-python's server with the GGUF file as published.

    Args:
        python: An interpreter with `llama-cpp-python[server]`.
        target: Name of an embedded target.
        threads: Of the processor.
    """
    gguf = embedded_gguf(target)

    def command(port: int) -> list[str]:
        start = [str(python), "-m", "llama_cpp.server", "--model", str(gguf)]
        many = ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
        # Without logits of every position, and without leaving a text for the next request.
        how = ["--logits_all", "False", "--interrupt_requests", "False", "--flash_attn", "True"]
        listen = ["--host", HOST, "--port", str(port), "--verbose", "False"]
        return [*start, *many, *how, *listen]

    told = (str(python), "-c", "import llama_cpp; print(llama_cpp.__version__)")
    return Server(
        "llama-cpp-python", gguf.stem.rpartition(".")[2], command, "any", "/v1/models", version=told
    )


def version_of(server: Server) -> str:
    """What a server says which version it is; of our own, the revision.

    Raises:
        DraftgymError: Its program cannot be run.
    """
    if not server.version:
        return git_revision() or "unknown"
    try:
        done = subprocess.run(server.version, capture_output=True, text=True, timeout=LOADING)
    except OSError as error:
        raise DraftgymError(
            f"cannot run {server.version[0]}: {error.strerror}", "name a Python interpreter"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DraftgymError(
            f"{server.version[0]} lacks what {server.name} needs: {last}", "install it there"
        )
    return done.stdout.strip()


@contextmanager
def running(server: Server, log: Path) -> Iterator[Running]:
    """Starts a server, waits until it answers, and ends it.

    Args:
        server: Which.
        log: Where what it prints goes, behind what is there.

    Raises:
        DraftgymError: It ended, or did not answer in time.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **server.environment}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            server.command(port),
            stdout=sink,
            stderr=sink,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        one = Running(server, f"http://{HOST}:{port}", process)
        try:
            _wait_until_ready(one, log)
            yield one
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody listens to just now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def _wait_until_ready(one: Running, log: Path) -> None:
    deadline = time.monotonic() + LOADING
    remedy = f"see what it printed: {log}"
    while time.monotonic() < deadline:
        if (status := one.process.poll()) is not None:
            raise DraftgymError(f"{one.server.name} ended with exit status {status}", remedy)
        try:
            if httpx2.get(one.url + one.server.ready, timeout=5.0).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise DraftgymError(f"{one.server.name} did not answer within {LOADING:.0f} s", remedy)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
