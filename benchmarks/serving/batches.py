"""Who chooses best for a server's batch: on identical requests, and under load.

    $ python -m benchmarks.serving.batches --json runs/batches.json

Everything is tuned and fitted on training texts; what is shown is of the others.

* Identical requests: for each batch size every held-out text is written by so many equal requests
  at once, one text after the other, without a queue. Tokens per second over those of `plain`, by
  kind of text and over all; nobody is told the kind.
* Under load: requests for a mixture of all kinds arrive at shares of what the server can bear with
  the table by size. Tokens per busy second, and what users wait for.
* Speed: request-rounds a second of the vector environment.

Intervals are paired bootstraps over texts (identical) against the rule that is best there, which is
chosen in hindsight. The forecasts' mean takes the mean seconds of all seeds for each text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.results import Result, check, finish
from benchmarks.routers.published import read_shorter
from benchmarks.serving.batch_contenders import (
    ALL,
    FORECAST,
    MEAN,
    ORACLE,
    Contenders,
    played_arms,
)
from benchmarks.serving.batch_tables import tables
from draftgym.agents.serving.fit import ForecastFitting
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.arrivals import AtOnce, Poisson
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.distil import BatchPolicy
from draftgym.envs.serving.identical import (
    TextsInTurn,
    identical_load,
    play_identical,
    works_of,
)
from draftgym.envs.serving.oracle import play_oracle
from draftgym.envs.serving.play import Served, play
from draftgym.envs.serving.vector import ServingVectorEnv
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.trace import TraceSet

TABLE = "table by size (vLLM)"


@dataclass(frozen=True, kw_only=True)
class BatchesArgs:
    """Compare who chooses for batches.

    Attributes:
        traces: Folder of traces of training texts: everything is tuned and fitted on them.
        heldout: Folder of traces of other texts, which are shown.
        longest: Leave out texts of more new tokens: a text that runs to its limit repeats itself
            without end, and a few such texts are most of a data set's tokens.
        costs: Published costs by name, or a file of `draftgym measure-host`.
        sizes: Batch sizes of identical requests.
        loads: Shares of what the server can bear with the table by size; above 1 requests pile up.
        places: Places of the server under load.
        requests: Requests of each server under load.
        servers: Servers that are played at once.
        seeds: Forecasts.
        fitting: How they are fitted.
        steps: Steps of the measurement of speed; 0 leaves it out.
        threads: CPU threads.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/published/train")
    heldout: Path = Path("runs/published/heldout")
    longest: int | None = None
    costs: str = "llama3.1-8b-h100"
    sizes: tuple[int, ...] = (1, 8, 32, 64)
    loads: tuple[float, ...] = (0.5, 0.8, 4.0)
    places: int = 64
    requests: int = 192
    servers: int = 8
    seeds: int = 5
    fitting: ForecastFitting = field(default_factory=ForecastFitting)
    steps: int = 200
    threads: int = 1
    json: Path | None = None


@dataclass(frozen=True)
class Stage:
    """Held-out texts, laid out for those who look and those who do not.

    Attributes:
        texts: By whether lookups are observed.
        in_turn: The same, each of which is written once.
    """

    texts: dict[bool, ServedTexts]
    in_turn: dict[bool, TextsInTurn]

    @classmethod
    def of(
        cls, traces: TraceSet, arms: Mapping[bool, tuple[Arm, ...]], settings: ServerSettings
    ) -> Stage:
        """Lays texts out for these arms."""
        texts, in_turn = {}, {}
        for looks, its in arms.items():
            model = settings.make_costs(drafter_names(its)).model
            texts[looks] = ServedTexts(traces, its, model, looks)
            in_turn[looks] = TextsInTurn(traces, its, replace(settings, look_up=looks))
        return cls(texts, in_turn)

    def load(self, settings: ServerSettings, looks: bool, count: int) -> Load:
        """Servers of them."""
        texts = self.texts[looks]
        settings = replace(settings, look_up=looks)
        return Load(texts, settings, settings.make_costs(texts.drafters), count)


def measure(args: BatchesArgs) -> Result:
    """Tunes, fits, plays, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "places", "requests", "servers", "seeds", "threads")
    if not args.sizes or min(args.sizes) < 1 or not all(one > 0 for one in args.loads):
        raise DraftgymError("batches of no size, or no load", "give numbers above 0")
    torch.set_num_threads(args.threads)
    train, heldout = (read_shorter([one], args.longest) for one in (args.traces, args.heldout))
    heldout.check_arms(map(parse_arm, train.origin.arms))
    settings = ServerSettings(costs=args.costs)
    start = time.perf_counter()
    made = Contenders(train, settings, args.sizes, args.seeds, args.fitting)
    everybody = list(made.all())
    tuned = time.perf_counter() - start
    stage = Stage.of(heldout, played_arms(everybody), settings)
    figures = {
        "tuning_seconds": tuned,
        "notes": made.notes,
        "texts": {"train": len(train.texts), "heldout": len(heldout.texts)},
        "identical": [
            row for size in args.sizes for row in identical(args, stage, everybody, settings, size)
        ],
        "load": under_load(args, stage, everybody, settings),
        "speed": speed(args, heldout, made.singles) if args.steps else [],
    }
    return finish(tables, args, figures, facts={"traces": heldout.origin.describe()})


def identical(
    args: BatchesArgs,
    stage: Stage,
    everybody: Sequence[BatchPolicy],
    settings: ServerSettings,
    size: int,
) -> list[Result]:
    """Everybody on batches of so many identical requests."""
    works: dict[str, list[Work]] = {}
    for one in everybody:
        texts, looked = stage.in_turn[one.looks], replace(settings, look_up=one.looks)
        works[one.name] = play_identical(texts, looked, size, one.make)
    load = identical_load(stage.in_turn[False], replace(settings, look_up=False), size)
    best = max(total(found) for found in works.values())
    play_oracle(load, best * size, range(load.count))
    works[ORACLE] = works_of(load)
    works[MEAN] = mean_works([its for name, its in works.items() if name.startswith(FORECAST)])
    return rows_of(works, [text.category for text in load.texts.texts], size)


def mean_works(several: Sequence[Sequence[Work]]) -> list[Work]:
    """What each text takes on average."""
    return [
        Work(same[0].tokens, sum(one.seconds for one in same) / len(same))
        for same in zip(*several, strict=True)
    ]


def total(works: Sequence[Work]) -> float:
    """Tokens per second of one request."""
    return sum(one.tokens for one in works) / sum(one.seconds for one in works)


def rows_of(works: dict[str, list[Work]], kinds: Sequence[str], size: int) -> list[Result]:
    """Speed over plain of everybody by kind, and against the rule that is best there."""
    mine = {kind: [i for i, its in enumerate(kinds) if its == kind] for kind in sorted(set(kinds))}
    mine[ALL] = list(range(len(kinds)))
    rules = [name for name in works if not name.startswith(("forecast", ORACLE))]
    rows: dict[str, Result] = {name: {"who": name, "size": size, "best": {}} for name in works}
    for kind, texts in mine.items():
        here = {name: [its[i] for i in texts] for name, its in works.items()}
        best = max(rules, key=lambda name: total(here[name]))
        for name, its in here.items():
            rows[name][kind] = total(its) / total(here["plain"])
            found = speed_ratio(its, here[best])
            rows[name]["best"][kind] = [best, found.value, found.low, found.high]
    return list(rows.values())


def under_load(
    args: BatchesArgs, stage: Stage, everybody: Sequence[BatchPolicy], settings: ServerSettings
) -> list[Result]:
    """Everybody at several arrival rates of a mixture of all kinds."""
    kinds = sorted({text.category for text in stage.texts[True].texts})
    settings = replace(
        settings,
        places=args.places,
        requests=args.requests,
        mixture=dict.fromkeys(kinds, 1.0),
        arrivals=AtOnce(),
    )
    named = {one.name: one for one in everybody}
    full = _served(args, stage, named[TABLE], settings)
    bearable = args.requests * args.servers / float(full.seconds.sum())
    rows = []
    for share in args.loads:
        loaded = replace(settings, arrivals=Poisson(share * bearable))
        for one in everybody:
            served = _served(args, stage, one, loaded)
            rows.append({"who": one.name, "load": share, **waited(served)})
    return rows


def _served(args: BatchesArgs, stage: Stage, one: BatchPolicy, settings: ServerSettings) -> Served:
    load = stage.load(settings, one.looks, args.servers)
    return play(load, one.make(load), range(args.servers))


def waited(served: Served) -> Result:
    """Tokens per busy second, and what users wait for, in milliseconds."""
    figures: Result = {"goodput": served.goodput}
    for name, seconds in (
        ("first", served.first_token_seconds),
        ("each", served.token_seconds),
    ):
        for percent in (50, 95):
            figures[f"{name}_{percent}"] = 1000 * float(np.percentile(seconds, percent))
    return figures


def speed(args: BatchesArgs, traces: TraceSet, arms: Sequence[Arm]) -> list[Result]:
    """Request-rounds a second of the vector environment, observations and rewards included."""
    settings = ServerSettings(32, 256, AtOnce(), costs=args.costs)
    env = ServingVectorEnv(64, traces, list(map(str, arms)), settings)
    env.action_space.seed(0)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(32)]
    for action in actions[:8]:
        env.step(action)
    rates = []
    for _ in range(5):
        env.forget_counts()
        start = time.perf_counter()
        for step in range(args.steps // 5):
            env.step(actions[step % len(actions)])
        rates.append(env.request_rounds / (time.perf_counter() - start))
    spread = {"median": float(np.median(rates)), "low": min(rates), "high": max(rates)}
    return [{"servers": env.num_envs, "places": 32, "arms": len(arms), **spread}]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(BatchesArgs, description=__doc__))
