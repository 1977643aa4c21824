r"""Plain decoding against policies in one server under load, and beside other people's servers.

    $ python -m benchmarks.serving.serving --json runs/serving.json
    $ python -m benchmarks.serving.serving --short --json runs/serving-short.json
    $ python -m benchmarks.serving.serving --json runs/serving.json \
          --transformers .venv-peers/bin/python --llama-cpp .venv-peers/bin/python

Clients send the prompts' first turns and stream the likeliest answers (`benchmarks.serving.load`).
Servers take turns and each lives only while it is measured. In a server all policies write the same
prompts, block by block in an order that rotates, so that whatever drifts on the machine hits all
alike. Their texts are compared with plain decoding's: in float32 they must be the same. Where two
differ, plain decoding writes that prompt again, alone and with margins (as
`benchmarks.system.losslessness`); a difference that no near tie explains ends the command with
status 1. As the same prompts come again and again, nobody keeps what was read of earlier ones
(`--no-reuse`); llama.cpp does, of the prompt before.

Other servers are compared as they come: `transformers serve` has the same weights and dtype, one
text at a time and with its continuous batching; llama-cpp-python's server has the published GGUF
file, whose rounded weights write other texts, and writes one text at a time.

Finished blocks are kept in `<json>.partial.jsonl`: an interrupted run goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.report import Json, Table, interval, number, titled
from benchmarks.results import Partial, PromptOptions, Result, check, finish
from benchmarks.serving.comparing import find_differences, make_rows, without_texts
from benchmarks.serving.load import FIGURES, Answer, chat_request, run_clients
from benchmarks.serving.servers import (
    Running,
    Server,
    draftgym_server,
    llama_server,
    running,
    transformers_server,
    version_of,
)
from benchmarks.system.losslessness import larger_than_rounding
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.rollouts.decode.interleaved import turn_order
from draftgym.rollouts.prompts.sets import Prompt

FEWEST = 8
"""Requests in a block at least: a single client's few would tell little."""
WARM_UP_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class ServingArgs(PromptOptions):
    """What to measure.

    Attributes:
        json: Result file; finished blocks are kept beside it until it is written.
        policies: Whose texts are measured; plain decoding always is.
        clients: How many at the same time.
        requests_per_client: Requests in a block, for each client.
        repeats: Blocks of every policy at every number of clients; each repeat has other prompts
            while there are some.
        guards: A server with the guard, which leaves speculation out while it does not pay, and one
            without it.
        transformers: Python interpreter with transformers[serving]; measures `transformers serve`.
        llama_cpp: Python interpreter with llama-cpp-python[server]; measures its server.
        short: A quick look: one repeat, few clients and tokens, the first two policies.
    """

    json: Path
    per_category: int = 30
    max_new_tokens: int = 64
    policies: tuple[str, ...] = (
        PLAIN,
        "ngram:8>eagle3:3x6",
        "ngram:8",
        "eagle3:3x6",
        "router",
    )
    clients: tuple[int, ...] = (1, 4, 16, 32)
    requests_per_client: int = 2
    repeats: int = 3
    guards: tuple[Literal["on", "off"], ...] = ("on", "off")
    transformers: Path | None = None
    llama_cpp: Path | None = None
    short: bool = False

    def settled(self) -> ServingArgs:
        """With what `short` means, and with plain decoding first."""
        policies = tuple(dict.fromkeys((PLAIN, *self.policies)))
        if not self.short:
            return replace(self, policies=policies)
        return replace(
            self,
            policies=policies[:2],
            clients=self.clients[:2],
            requests_per_client=1,
            repeats=1,
            max_new_tokens=min(24, self.max_new_tokens),
            guards=self.guards[:1],
        )


def measure(asked: ServingArgs) -> Result:
    """Measures what is still missing, shows and writes the result.

    Raises:
        DraftgymError: Bad settings, a server that does not start, or a partial file of other
            settings.
    """
    args = asked.settled()
    check(args, "requests_per_client", "repeats", "max_new_tokens")
    if not args.clients or min(args.clients) < 1:
        raise DraftgymError("--clients has no positive number", "write some, as in 1 4 16")
    prompts = args.load_prompts()
    target, drafters = args.load()
    args.fit(target, prompts)
    servers = chosen_servers(args, target)
    versions = {server.name: version_of(server) for server in servers}
    names = ("target", "prompts", "per_category", "max_new_tokens", "policies", "clients")
    kept = {name: getattr(args, name) for name in (*names, "requests_per_client")}
    threads = target.precision.threads
    partial = Partial(args.json, {**kept_as_json(kept), "threads": threads})
    for repeat in range(args.repeats):
        for name in turn_order([server.name for server in servers], repeat):
            server = next(one for one in servers if one.name == name)
            measure_server(args, server, versions[name], repeat, prompts, partial)
    differences, texts = find_differences(target, prompts, partial.records, args.max_new_tokens)
    figures = {
        "rows": make_rows(partial.records, args.policies, texts),
        "differences": differences,
        "blocks": [without_texts(record) for record in partial.records],
    }
    told = {"versions": {one["server"]: one["version"] for one in partial.records}}
    result = finish(tables, args, figures, target, drafters, told)
    partial.done()
    return result


def kept_as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a JSON file gives them back."""
    return {key: list(one) if isinstance(one, tuple) else one for key, one in settings.items()}


def chosen_servers(args: ServingArgs, target: Target) -> list[Server]:
    """Those that take turns, ours first."""
    threads = target.precision.threads
    kinds = {"on": [], "off": ["--no-guard"]}
    servers = [
        draftgym_server(args, target, "--no-reuse", *kinds[guard])
        for guard in dict.fromkeys(args.guards)
    ]
    peers = (args.transformers, args.llama_cpp)
    if any(peers) and target.device.type != "cpu":
        raise DraftgymError(
            f"other servers run on the processor, and the target on {target.device}",
            "compare them there with --device cpu",
        )
    if args.transformers is not None:
        servers += [
            transformers_server(args.transformers, args.target, threads, batching)
            for batching in (False, True)
        ]
    if args.llama_cpp is not None:
        servers.append(llama_server(args.llama_cpp, args.target, threads))
    return servers


def measure_server(
    args: ServingArgs,
    server: Server,
    version: str,
    repeat: int,
    prompts: Sequence[Prompt],
    partial: Partial,
) -> None:
    """Measures the blocks of a server in one repeat that are still missing."""
    policies = list(args.policies) if server.ours else [PLAIN]
    done = {
        (one["clients"], one["policy"])
        for one in partial.records
        if (one["server"], one["repeat"]) == (server.name, repeat)
    }
    missing = [
        (clients, policy)
        for level, clients in enumerate(args.clients)
        for policy in turn_order(policies, repeat + level)
        if (clients, policy) not in done
    ]
    if not missing:
        return
    log = args.json.with_name(f"{args.json.stem}-{server.name.split()[0]}.log")
    with running(server, log) as one:
        warm_up(one, prompts[-1], policies if server.ours else [], max(args.clients))
        for clients, policy in missing:
            print(
                f"repeat {repeat + 1}: {server.name}, {clients} clients, {policy}", file=sys.stderr
            )
            asked = block_of(prompts, args, clients, repeat)
            answers, seconds = write_block(
                one, asked, args, clients, policy if server.ours else None
            )
            partial.add(
                {
                    "server": server.name,
                    "ours": server.ours,
                    "version": version,
                    "weights": server.weights,
                    "repeat": repeat,
                    "clients": clients,
                    "policy": policy,
                    "seconds": seconds,
                    "answers": [asdict(answer) for answer in answers],
                }
            )


def block_of(
    prompts: Sequence[Prompt], args: ServingArgs, clients: int, repeat: int
) -> list[Prompt]:
    """The prompts of a block: the same for all servers and policies."""
    count = max(FEWEST if not args.short else clients, args.requests_per_client * clients)
    return list(islice(cycle(prompts), repeat * count, (repeat + 1) * count))


def write_block(
    one: Running, prompts: Sequence[Prompt], args: ServingArgs, clients: int, policy: str | None
) -> tuple[list[Answer], float]:
    """All prompts by a policy, or by a server that knows none."""
    fields = {} if policy is None else {"draftgym": {"policy": policy}}
    model = one.server.model
    requests = [chat_request(each, args.max_new_tokens, model, **fields) for each in prompts]
    return run_clients(one.url, requests, clients)


def warm_up(one: Running, prompt: Prompt, policies: Sequence[str], clients: int) -> None:
    """First calls pay for memory and kernels; that is nobody's fault.

    Raises:
        DraftgymError: The server does not answer as it should.
    """
    for fields in [{"draftgym": {"policy": name}} for name in policies] or [{}]:
        request = chat_request(prompt, WARM_UP_TOKENS, one.server.model, **fields)
        answers, _ = run_clients(one.url, [request] * clients, clients)
        if failed := [answer for answer in answers if not answer.complete]:
            raise DraftgymError(
                f"{one.server.name} does not answer: {failed[0].status} {failed[0].problem}",
                "see its log beside the JSON file",
            )


def tables(result: Json) -> list[Table]:
    """A table for every number of clients, and every difference below the last one."""
    title = (
        "Clients at once: {{clients}}; {target}, float32, threads {threads}; {machine}; up to "
        "{settings[max_new_tokens]} tokens"
    ).format(**titled(result))
    columns = {
        "server": lambda row: row["server"].replace(" --no-reuse", ""),
        "weights": number("weights", ""),
        "policy": number("policy", ""),
        **FIGURES,
        "over plain": lambda row: interval(row["ratio"], ".2f"),
        "accepted": lambda row: f"{row['accepted'] / max(1, row['tokens']):.2f}",
        "same text": lambda row: f"{row['same_texts']}/{row['requests']}",
    }
    made = []
    for clients in dict.fromkeys(row["clients"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["clients"] == clients]
        made.append(Table.of(title.format(clients=clients), rows, columns))
    notes = [
        "tokens/s: of complete answers, by the time that the block took; first token, per token "
        "(those after the first): p50 / p95 of requests; over plain: goodput over that of plain "
        "decoding in the same server and repeat (other servers: in our first one), with its 95 % "
        "interval (paired bootstrap over repeats); accepted: share of tokens that had been "
        "drafted; same text: as plain decoding by our server.",
        *map(_told, result["differences"]),
    ]
    return [*made[:-1], replace(made[-1], notes=notes)] if made else []


def _told(one: Json) -> str:
    margin = "unknown" if one["margin"] is None else f"{one['margin']:.2g}"
    where = f"{one['server']} {one['policy']}, {one['clients']} clients"
    return f"{where}: {one['name']} differs, margin {margin} {one['problem']}".rstrip()


if __name__ == "__main__":
    with exit_on_user_error():
        outcome = measure(tyro.cli(ServingArgs, description=__doc__))
        print("\n\n".join(table.markdown() for table in tables(outcome)))
        sys.exit(1 if larger_than_rounding(outcome["differences"]) else 0)
