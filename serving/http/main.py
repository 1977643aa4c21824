"""Serve a target over OpenAI's API, and let a policy choose what drafts for whom.

    $ draftgym serve
    $ draftgym serve --target my-model --policy ngram:8 --port 8001
    $ draftgym serve --policies careful=eagle3:2 table=by-batch@1=eagle3:3x6,5=plain

Requests may name any of these policies, or a rule such as eagle3:3, with
`"draftgym": {"policy": ...}`; what is written is the same under each. A page at / shows it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import tyro

from draftgym.decoding.costs.host_costs import HostCosts, make_server_costs
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import load_target, resolve_target
from draftgym.drafters.loading import load_drafters
from draftgym.policies.registry import SHIPPED_ROUTER, default_policy, shipped_router
from draftgym.serving.http.naming import policy_name, public_name

if TYPE_CHECKING:
    from draftgym.policies.serving.stored import CostsOf
    from draftgym.serving.batching.watching import Watch
    from draftgym.serving.http.service import Model, Service

KEY_VARIABLE = "DRAFTGYM_API_KEY"

# torch's oneDNN keeps a kernel for every number of rows that a pass ever had, about 2 MB each for
# the embedded target: a server meets hundreds. Making one anew took no time that shows.
KERNELS_VARIABLE, KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"
POSITIVE = (
    *("max_running", "max_waiting", "prompt_rows", "max_new_tokens", "default_new_tokens"),
    *("cache_gb", "max_body_mb", "drain_seconds", "ping_seconds"),
)
"""Settings that are numbers above 0."""


@dataclass(frozen=True, kw_only=True)
class ServeArgs:
    """Serve a target over OpenAI's API.

    Attributes:
        target: The language model whose text is written: smollm2-135m (embedded), a Hugging Face
            folder, a Hub id (owner/name) or a .gguf file; `:int8` or `:q4` behind the name makes it
            a target of rounded weights.
        drafters: Drafter checkpoints (EAGLE-3, DFlash, a small LM), or code of your own
            (module:name), to use beside the shipped ones that fit the target. Prompt lookup (ngram)
            and suffix decoding (suffix) are always there.
        policy: Who chooses what drafts in each round, where a request names nobody: plain, a
            drafter (eagle3), with a draft length (eagle3:3) or a tree (eagle3:3x6), entropy, router
            (the shipped one), the folder of a trained policy or of one for batches,
            ngram:8>eagle3:3x6 (prompt lookup where it finds something), or
            by-batch@1=eagle3:3x6,5=ngram:8,17=plain (by how many texts are written together).
            Default: the rule that `draftgym generate` follows.
        policies: Further policies that requests may name, each as NAME=POLICY.
        costs: What rounds cost on this host, for policies that plan batches with it, and for the
            predictions in /metrics: a file of `draftgym measure-host`, or published costs by name.
        dtype: auto (a probe picks the faster one; bfloat16 on an accelerator), float32 (a text is
            the same whoever else is served), bfloat16 or float16 (near ties may flip).
        device: auto (an accelerator that torch can use, else the processor), cpu, cuda, cuda:1,
            mps or xpu.
        backend: Whose pass runs the target: auto, compact, openvino or transformers.
        threads: CPU threads; default: every core this process may use.
        host: Where to listen; 0.0.0.0 lets other hosts in.
        port: Where to listen; 0 takes any port that is free.
        served_model_name: What requests call the model; default: the last part of the target's
            name.
        api_key: What clients must send as `Authorization: Bearer KEY`, any of several; also read
            from the variable DRAFTGYM_API_KEY, which other users of the host cannot see.
        max_running: Texts that are written together.
        max_waiting: Texts that wait for a place; more are refused with 429.
        cache_gb: Memory for keys and values, those included that are kept for prompts that begin
            alike.
        prompt_rows: Tokens of prompts that are read in a pass beside texts that are being written.
        max_new_tokens: Tokens of a text at most; default: what the context holds.
        default_new_tokens: Tokens of a chat's answer where the request names no number.
        max_body_mb: Size of a request at most.
        guard: Whether rounds are plain while speculation is slower than that.
        reuse: Whether prompts that begin alike are read once; measurements that send the same
            prompts again do without.
        drain_seconds: How long running requests are waited for behind a first SIGTERM or Ctrl-C; a
            second one ends at once.
        ping_seconds: After so much silence a stream carries a comment, so that nobody on the way
            takes the connection for dead.
        access_log: Print a line for every request.
    """

    target: str = "smollm2-135m"
    drafters: tuple[str, ...] = ()
    policy: str | None = None
    policies: tuple[str, ...] = ()
    costs: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_key: tuple[str, ...] = ()
    max_running: int = 32
    max_waiting: int = 256
    cache_gb: float = 2.0
    prompt_rows: int = 64
    max_new_tokens: int | None = None
    default_new_tokens: int = 512
    max_body_mb: float = 8.0
    guard: bool = True
    reuse: bool = True
    drain_seconds: float = 60.0
    ping_seconds: float = 15.0
    access_log: bool = False

    def check(self) -> None:
        """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
        resolve_target(self.target)
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                option = "--" + name.replace("_", "-")
                raise DraftgymError(f"{option} is {value}", "give a number above 0")
        if any(not key.isascii() or not key.strip() for key in self.keys):
            raise DraftgymError("an API key is empty, or not ASCII", "give another --api-key")
        self.named_policies()
        self.server_costs()

    @property
    def keys(self) -> tuple[str, ...]:
        """Every API key, that of the environment included."""
        return tuple(filter(None, (*self.api_key, os.environ.get(KEY_VARIABLE))))

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.served_model_name or public_name(self.target)

    def server_costs(self) -> CostsOf | None:
        """What rounds cost with some drafters; None where nobody said.

        Raises:
            DraftgymError: The costs cannot be read, or say nothing of so many texts.
        """
        if self.costs is None:
            return None
        path = user_path(self.costs)
        given = HostCosts.read(path) if path.exists() else self.costs
        most = make_server_costs(given, ()).most_texts
        if most is not None and most < self.max_running:
            raise DraftgymError(
                f"--max-running is {self.max_running}; up to {most} texts were measured",
                f"give --max-running {most}, or measure more: draftgym measure-host --users",
            )
        return partial(make_server_costs, given)

    def named_policies(self) -> dict[str, str]:
        """The further policies by name.

        Raises:
            DraftgymError: One has no name.
        """
        named = {}
        for text in self.policies:
            name, equals, spec = text.partition("=")
            if not (equals and name.strip() and spec.strip()) or "@" in name:
                raise DraftgymError(
                    f"--policies {text} names no policy", "write NAME=POLICY, as in fast=eagle3:3"
                )
            named[name.strip()] = spec.strip()
        return named


def load(args: ServeArgs, watch: Watch | None = None) -> Model:
    """Loads what is served, and starts the batch.

    Args:
        args: What is served.
        watch: Told of what the batch does.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    from draftgym.serving.batching.batcher import Batcher, BatchSettings
    from draftgym.serving.batching.policy_set import PolicySet
    from draftgym.serving.http.encoding import Encoding, check_tokenizer
    from draftgym.serving.http.service import Model
    from draftgym.serving.planning.predicted import RoundPrices

    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    check_tokenizer(target)
    drafters = load_drafters(target, args.drafters)
    router = shipped_router(target)
    shipped = {} if router is None else {SHIPPED_ROUTER: str(router)}
    spec = args.policy or default_policy(
        drafters, target.decoder.draws_trees, target.device.type == "cpu"
    )
    named = {policy_name(spec): shipped.get(spec, spec)} | args.named_policies() | shipped
    named = {name: shipped.get(spec, spec) for name, spec in named.items()} | {"plain": "plain"}
    served = replace(target, name=args.model_name)
    costs = args.server_costs()
    policies = PolicySet(served, drafters, named, costs=costs)
    settings = BatchSettings(
        args.max_running,
        args.max_waiting,
        args.prompt_rows,
        int(args.cache_gb * 2**30),
        args.guard,
        args.reuse,
    )
    prices = None if costs is None else RoundPrices(costs, drafters)
    batcher = Batcher(served, drafters, policies, settings, watch, prices=prices)
    batcher.start()
    return Model(served, batcher, policies, Encoding(served))


def serve(args: ServeArgs) -> None:
    """Listens at once, loads, and serves until a signal.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    args.check()
    os.environ.setdefault(KERNELS_VARIABLE, KERNELS)  # read when the first one is made
    try:
        from draftgym.serving.http.app import make_app
        from draftgym.serving.http.server import Server, address_of, listen
        from draftgym.serving.http.service import Limits, Service
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "draftgym":
            raise
        raise DraftgymError(
            f"a server needs {error.name}, which is not installed", "pip install 'draftgym[serve]'"
        ) from error
    limits = Limits(
        most_new_tokens=args.max_new_tokens,
        default_new_tokens=args.default_new_tokens,
        most_texts=min(128, args.max_waiting),
        most_bytes=int(args.max_body_mb * 2**20),
        ping_seconds=args.ping_seconds,
        keys=args.keys,
    )
    service = Service(args.model_name, limits)
    listener = listen(args.host, args.port)
    address = address_of(listener)
    server = Server(make_app(service), service, args.drain_seconds, args.access_log)
    failed: list[BaseException] = []

    def bring_up() -> None:
        try:
            service.serve(load(args, service.metrics))
            print(welcome(args, service, address), flush=True)
        except BaseException as error:
            failed.append(error)
            server.should_exit = True

    print(f"{address}: loading {args.model_name}", flush=True)
    loading = threading.Thread(target=bring_up, name="loading", daemon=True)
    loading.start()
    server.run(sockets=[listener])
    if failed:
        raise failed[0]
    if loading.is_alive():  # nobody can stop it, and the interpreter does not end in peace with it
        sys.stdout.flush()
        os._exit(0)
    service.close()


def welcome(args: ServeArgs, service: Service, address: str) -> str:
    """What is served where, and how to ask."""
    policies = service.model.policies.names
    key = ' -H "Authorization: Bearer $DRAFTGYM_API_KEY"' if args.keys else ""
    shown = "os.environ['DRAFTGYM_API_KEY']" if args.keys else "'none'"
    return f"""\
{address}: serving {service.name}, policy {policies[0]} (others: {", ".join(policies[1:])})
  page:    {address}/
  curl:    curl {address}/v1/chat/completions{key} -H "Content-Type: application/json" \\
             -d '{{"messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'
  Python:  openai.OpenAI(base_url="{address}/v1", api_key={shown})"""


def main(arguments: Sequence[str]) -> None:
    """`draftgym serve`."""
    serve(tyro.cli(ServeArgs, args=arguments, description=__doc__, prog="draftgym serve"))
