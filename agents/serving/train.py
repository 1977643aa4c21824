"""Make a policy for a server's batches: a fitted forecast, or a table of draft lengths by size.

    $ draftgym collect --prompts train --out runs/traces    # once
    $ draftgym measure-host --out runs/host.json             # on the host that will serve
    $ draftgym train-serving --costs runs/host.json
    $ draftgym train-serving --make table --first ngram:8@3 --costs runs/host.json --out runs/table
    $ draftgym serve --policy runs/serving --costs runs/host.json

A forecast does not know the costs, and serves any host; they only decide where it learns to be. A
table is of the host whose costs it was tuned with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from draftgym.agents.common.trainer import open_traces
from draftgym.agents.serving.fit import ForecastFitting, fit_forecast
from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.decoding.provenance import check_run_folder, describe_host, plain
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.tune import best_lengths
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.rule import Ladder
from draftgym.policies.serving.stored import save_rule
from draftgym.policies.serving.tokens import save_forecast
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class ServingTrainArgs:
    """Make a policy for a server's batches.

    Attributes:
        traces: Folder of traces of training texts.
        make: A forecast, with which batches are planned, or a table of draft lengths by size.
        arms: What the forecast chooses from; default: plain, and every traced chain.
        network: Whose chains the table has; default: the first network of the traces.
        first: What the table's arms ask before the network, such as ngram:8@3; default: nothing.
        costs: A file of `draftgym measure-host`, or published costs by name.
        places: Requests of a batch at most; a table has sizes of 1, 2, 4, ... up to it.
        servers: Servers that a forecast is fitted on at once.
        requests: Requests of each.
        fitting: How a forecast is fitted.
        seed: Of everything random.
        threads: CPU threads.
        out: Folder of the policy.
    """

    traces: Path = Path("runs/traces")
    make: Literal["forecast", "table"] = "forecast"
    arms: tuple[str, ...] = ()
    network: str | None = None
    first: str | None = None
    costs: str = "llama3.1-8b-h100"
    places: int = 16
    servers: int = 8
    requests: int = 128
    fitting: ForecastFitting = field(default_factory=ForecastFitting)
    seed: int = 0
    threads: int = 1
    out: Path = Path("runs/serving")


def train_serving(args: ServingTrainArgs) -> Path:
    """Fits or tunes, and exports; returns the policy's folder.

    Raises:
        DraftgymError: No traces, arms that were not traced, costs that cannot be, or settings.
    """
    if min(args.places, args.servers, args.requests, args.threads) < 1:
        raise DraftgymError("a server of nothing", "give numbers of 1 and more")
    check_run_folder(args.out, "--out")
    traces = open_traces(args.traces, f"draftgym collect --prompts train --out {args.traces}")
    torch.set_num_threads(args.threads)
    provenance = {"settings": plain(asdict(args)), "host": describe_host()}
    if args.make == "table":
        table = tuned_table(traces, args)
        save_rule(table, traces.origin, args.out, provenance)
        print(f"draft lengths by size: {table.schedule}")
    else:
        settings = ServerSettings(args.places, args.requests, AtOnce(), costs=args.costs)
        load = make_load(traces, args.arms or traced_chains(traces), settings, args.servers)
        forecast = fit_forecast(load, args.fitting, args.seed)
        save_forecast(forecast, traces.origin, args.out, provenance)
        print(f"arms: {', '.join(map(str, forecast.arms))}")
    print(f"policy exported to {args.out}")
    return args.out


def traced_chains(traces: TraceSet) -> list[str]:
    """`plain`, and every chain that was traced."""
    chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None and arm.drafts]
    return [PLAIN, *map(str, chains)]


def tuned_table(traces: TraceSet, args: ServingTrainArgs) -> LengthBySize:
    """The best draft length of each size, on these texts.

    Raises:
        DraftgymError: No chain of that network was traced, or what goes first looks nothing up.
    """
    chains = [parse_arm(arm) for arm in traced_chains(traces)[1:]]
    networks = [name for name in drafter_names(chains) if name not in LOOKUPS]
    network = args.network or next(iter(networks), "")
    lengths = [arm.length for arm in chains if arm.drafter == network]
    first = parse_arm(args.first) if args.first else None
    if network not in networks:
        raise DraftgymError(
            f"no chain of {network or 'a network'} was traced",
            f"name a network of these traces: {', '.join(networks) or 'there is none'}",
        )
    if first is not None and first.drafter not in LOOKUPS:
        raise DraftgymError(
            f"--first is {first}, which looks nothing up", f"use one of {', '.join(LOOKUPS)}"
        )
    ladder = Ladder.of(network, lengths, first)
    settings = ServerSettings(args.places, costs=args.costs, look_up=False)
    texts = make_load(traces, list(map(str, ladder.arms.values())), settings).texts
    return LengthBySize(ladder, best_lengths(texts, settings, ladder, sizes_up_to(args.places)))


def sizes_up_to(places: int) -> list[int]:
    """1, 2, 4, ..., and the number of places."""
    return sorted({*(1 << power for power in range(places.bit_length())), places})


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-serving`."""
    train_serving(
        tyro.cli(
            ServingTrainArgs, args=arguments, description=__doc__, prog="draftgym train-serving"
        )
    )
