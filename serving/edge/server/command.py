"""`draftgym edge serve`: holds the target, plans, verifies; settings, and what they come to."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.batch_cost import measure_batches
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.loading import SHIPPED
from draftgym.envs.cell.devices import MeasuredServer, Server
from draftgym.envs.cell.host import read_host
from draftgym.envs.cell.settings import CellSettings, edge_setting
from draftgym.envs.cell.state import CellState
from draftgym.envs.radio.payload import Payload, make_payload
from draftgym.envs.radio.radio import multispin_radio
from draftgym.envs.scheduler.planners import (
    ORACLE,
    CellPlanner,
    LearnedPlanner,
    MakePlanner,
    planner_by_name,
)
from draftgym.policies.schedulers.learned import load_scheduler
from draftgym.serving.edge.protocol import (
    Limits,
    address_of,
    key_pair,
    require_edge,
    token_of,
)
from draftgym.serving.edge.server.witness import BaseStation, RoundLog, Witness

if TYPE_CHECKING:
    from draftgym.serving.edge.server.server import Access

DRAFTERS = ("small", "ngram")
BITS_PER_TOKEN = 24
"""Of a drafted token on the wire: ids of up to 2 million take three bytes."""
BITS_PER_CHANCE = 32
PAUSE = 0.05
"""Seconds that a server waits for devices, about, between two passes."""
NOT_HERE = ("p2p", "gelato", ORACLE)
"""Rules that serve one device after the other, or read what only traces tell."""
UNKNOWABLE = ("given", "too-high", "too-low")
"""Beliefs that begin with the truth."""
SHIPPED_SCHEDULER = SHIPPED / "scheduler-smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class EdgeServeArgs:
    """Serve devices: hold the target, plan their rounds, verify their drafts.

    Attributes:
        target: The language model whose text is written: smollm2-135m (embedded), a Hugging Face
            folder, a Hub id (owner/name) or a .gguf file.
        scheduler: Who plans: a rule (fixed, uniform-bandwidth, theorem-1, homogeneous,
            heterogeneous), with a belief about acceptance behind an @ (mean, beta, average), or the
            folder of a trained scheduler.
        users: Devices that are served together.
        longest_draft: Longest draft; a trained scheduler brings its own.
        band_hertz: Width of the band that devices share.
        payload: What drafts of texts with a temperature carry: tokens (ids alone; the same seed
            gives the same text), truncated (for each token the distribution that it was sampled
            from, as in Multi-SPIN; the textbook rejection rule), or scalar (each token's own
            probability; the same rule, and the distribution of a rejected token on request).
        kept: Probabilities of a truncated distribution at most.
        server: File of this host as measured (draftgym measure-host); without it, a few passes
            are timed first.
        server_factor: With it, a pass takes so many times what that file says, at least. What is
            measured does not depend on how busy the host is then, as long as it is fast enough.
        dtype: auto (a probe picks the faster one), float32 (a text is the same whoever else is
            served), bfloat16 or float16 (near ties may flip).
        device: auto (an accelerator that torch can use, else the processor), cpu, cuda, cuda:1,
            mps or xpu.
        backend: Whose pass runs the target: auto, compact, openvino or transformers.
        threads: CPU threads; default: every core this process may use.
        host: Where to listen; 0.0.0.0 lets other hosts in.
        port: Where to listen; 0 takes any port that is free.
        token: What devices must send; also read from the variable DRAFTGYM_EDGE_TOKEN, which other
            users of the host cannot see.
        tls_cert: Certificate for TLS, PEM, with --tls-key.
        tls_key: Its key, PEM.
        prompt_tokens: Tokens of a prompt at most.
        new_tokens: Tokens of a text at most.
        message_bytes: Size of a message at most.
        round_seconds: Time that a round waits for drafts; who is late is in the next one.
        idle_seconds: Time that a device may take for a draft, or between two texts.
        waiting: Devices that may wait for a place; more are refused.
        radio: Unix datagram socket of a base station; it is sent every plan's shares.
        log: Append what each round took to this file, a JSON object a line.
    """

    target: str = "smollm2-135m"
    scheduler: str = "heterogeneous@beta+found"
    users: int = 16
    longest_draft: int = 16
    band_hertz: float = 10e6
    payload: Literal["tokens", "scalar", "truncated"] = "tokens"
    kept: int = 1024
    server: Path | None = None
    server_factor: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 50071
    token: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    prompt_tokens: int = 1024
    new_tokens: int = 1024
    message_bytes: int = 131072
    round_seconds: float = 2.0
    idle_seconds: float = 60.0
    waiting: int = 16
    radio: Path | None = None
    log: Path | None = None

    def check(self) -> None:
        """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
        names = ("users", "longest_draft", "band_hertz", "kept", "prompt_tokens", "new_tokens")
        for name in (*names, "message_bytes", "round_seconds", "idle_seconds", "waiting"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                option = "--" + name.replace("_", "-")
                raise DraftgymError(f"{option} is {value}", "give a number above 0")
        if self.server_factor is not None and (
            self.server is None or not 0 < self.server_factor < float("inf")
        ):
            raise DraftgymError(
                f"--server-factor {self.server_factor} of no host, or an impossible one",
                "name a measured host with --server (draftgym measure-host); give a number above 0",
            )
        rule, _, belief = self.scheduler.partition("@")
        if rule in NOT_HERE or belief in UNKNOWABLE:
            raise DraftgymError(
                f"scheduler {self.scheduler!r} knows or does what no server can",
                "choose another, such as heterogeneous@beta",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise DraftgymError("half of a TLS key pair", "give both --tls-cert and --tls-key")

    @property
    def limits(self) -> Limits:
        """What devices may do."""
        return Limits(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            message_bytes=self.message_bytes,
            round_seconds=self.round_seconds,
            idle_seconds=self.idle_seconds,
            waiting=self.waiting,
        )

    def witnesses(self) -> list[Witness]:
        """Who is told of rounds.

        Raises:
            DraftgymError: The file cannot be written.
        """
        told: list[Witness] = []
        if self.radio is not None:
            told.append(BaseStation(self.radio))
        if self.log is not None:
            told.append(RoundLog(self.log))
        return told

    def access(self) -> Access:
        """Who may connect.

        Raises:
            DraftgymError: A file of TLS cannot be used, or the token cannot be sent.
        """
        from draftgym.serving.edge.server.server import Access

        token = token_of(self.token)
        if self.tls_cert is None or self.tls_key is None:
            return Access(token)
        return Access(token, *key_pair(self.tls_cert, self.tls_key))


def serve(args: EdgeServeArgs) -> None:
    """Serves until a signal.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    args.check()
    require_edge()
    access = args.access()
    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    make = planner_by_name(args.scheduler, target)
    settings = cell_settings(args, target, make)
    check_message_bytes(args, target, settings)
    asyncio.run(_serve(args, target, make, settings, access))


def check_message_bytes(args: EdgeServeArgs, target: Target, settings: CellSettings) -> None:
    """Raises `DraftgymError` where devices could not send what they may."""
    from draftgym.serving.edge.payload import largest_message

    longest, size = settings.longest_draft or args.longest_draft, target.vocab_size
    carried = {"tokens": 0, "scalar": 1, "truncated": longest}[args.payload]
    needed = largest_message(args.limits, size, longest, carried, min(args.kept, size))
    if needed > args.message_bytes:
        raise DraftgymError(
            f"messages may have {needed} bytes, and --message-bytes is {args.message_bytes}",
            f"give --message-bytes {needed}, or lower --kept, --prompt-tokens or --new-tokens",
        )


async def _serve(
    args: EdgeServeArgs,
    target: Target,
    make: Callable[[Any], CellPlanner],
    settings: CellSettings,
    access: Access,
) -> None:
    from draftgym.serving.edge.server.cell import WireCell
    from draftgym.serving.edge.server.rounds import EdgeRounds
    from draftgym.serving.edge.server.server import EdgeServer
    from draftgym.serving.edge.server.table import WireTable

    arms = [Arm(drafter, settings.longest_draft or args.longest_draft) for drafter in DRAFTERS]
    table = WireTable(args.users, arms, settings.means, args.new_tokens)
    make_planner: Callable[[CellState], CellPlanner] = make
    rounds = EdgeRounds(
        target,
        WireCell(table, settings),
        make_planner,
        args.limits,
        payload=args.payload,
        kept=min(args.kept, target.vocab_size),
        witnesses=args.witnesses(),
        paced=None if args.server_factor is None else settings.edge.server,
    )
    server = EdgeServer(rounds, args.host, args.port, access)
    await server.start()
    secured = "with TLS" if access.certificate else "without TLS"
    law = rounds.cell.verification
    print(
        f"{address_of(args.host, server.port)}: serving {target.name} to {args.users} devices, "
        f"{secured}, scheduler {args.scheduler}\n"
        f"  a pass is taken for {1e3 * law.fixed:.1f} ms + {1e3 * law.per_user:.1f} ms a device + "
        f"{1e3 * law.per_token:.2f} ms a drafted token\n"
        f'  device: draftgym edge device --server HOST:{server.port} --prompt "Who are you?"',
        flush=True,
    )
    try:
        await _until_signal(server.wait())
    finally:
        await server.stop()
        done = rounds.totals
        for witness in rounds.witnesses:
            witness.ended(done)
        print(
            f"{done.texts} texts, {done.committed} tokens in {done.rounds} rounds of "
            f"{done.seconds / max(1, done.rounds):.3f} s, {done.late} drafts late",
            flush=True,
        )


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Waits for work to fail, or for Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    waiting = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    for one in done:
        one.result()


def cell_settings(args: EdgeServeArgs, target: Target, make: MakePlanner) -> CellSettings:
    """The cell that schedulers plan for: the band, this host as its server, known acceptance.

    Args:
        args: What was asked for.
        target: The target.
        make: Who plans; a trained scheduler brings its longest draft, and what it was told.

    Raises:
        DraftgymError: A file that is no measured host.
    """
    longest, means = args.longest_draft, known_means(target)
    if isinstance(make, partial) and make.func is LearnedPlanner:
        policy = make.args[0]
        longest, means = policy.head.longest, policy.task_acceptance
    tasks = [f"/{drafter}:{longest}" for drafter in DRAFTERS]
    edge = edge_setting("multispin-llama2")
    setting = type(edge)(
        radio=multispin_radio(17.5, args.band_hertz),
        device=edge.device,
        server=_server(args, target, longest),
        payload=_payload(args, target),
        vocabulary=target.vocab_size,
        users=args.users,
        longest_draft=longest,
    )
    return CellSettings(
        setting=setting,
        users=args.users,
        longest_draft=longest,
        means={task: mean for task, mean in means.items() if task.endswith(tuple(tasks))},
    )


def _payload(args: EdgeServeArgs, target: Target) -> Payload:
    """What a drafted token takes at most; distributions are the paper's."""
    if args.payload == "tokens":
        return Payload("tokens", BITS_PER_TOKEN)
    made = make_payload(args.payload, target.vocab_size, min(args.kept, target.vocab_size))
    own = made.bits_per_token if args.payload == "truncated" else BITS_PER_CHANCE
    return replace(made, bits_per_token=own + BITS_PER_TOKEN)


def known_means(target: Target) -> dict[str, float]:
    """Mean acceptance of tasks as the shipped scheduler was told; nothing for other targets."""
    try:
        return load_scheduler(SHIPPED_SCHEDULER, target).task_acceptance
    except DraftgymError:
        return {}


def _server(args: EdgeServeArgs, target: Target, longest: int) -> Server:
    """What verifying takes on this host, as it was measured or, in a few seconds, is."""
    if args.server is not None:
        return replace(read_host(args.server).server, factor=args.server_factor or 1.0)
    users = sorted({1, max(1, args.users // 4), args.users})
    print("timing a few passes of the target", file=sys.stderr, flush=True)
    return MeasuredServer(measure_batches(target, users, (1, longest + 1), (64,), 3, PAUSE))
