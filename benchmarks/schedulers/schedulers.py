"""Schedulers against each other on held-out traces: do trained ones beat the closed forms?

    $ draftgym collect --prompts train   --arms small:16 ngram:16 --out runs/users
    $ draftgym collect --prompts heldout --arms small:16 ngram:16 --out runs/users-heldout
    $ python -m benchmarks.schedulers.schedulers --traces runs/users-heldout --known runs/users \
        --policies ppo=runs/ppo-0/policy,runs/ppo-1/policy sac=runs/sac-0/policy \
        --json runs/schedulers.json --markdown runs/schedulers.md

Every rule, with every belief about acceptance, an oracle, and trained policies, for every setting,
payload and number of users. All of them play the same cells; each evaluation seed brings other
users, channels and prompts. Folders behind one `method=` are training seeds of one method and make
one row. Rules play without what devices report of their confidence; a trained policy plays with it
if it was trained with it.

Where users differ most, trained schedulers should reach 1.88 times the goodput of fixed lengths, as
the paper's closed form does; and everywhere 1.05 times that of the best closed form whose
estimates come from rounds. Whether they do is printed last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.schedulers.contenders import (
    Contender,
    rehearse,
    rule_contenders,
    trained_contenders,
)
from benchmarks.schedulers.figures import Outcome, Scenario, aims_met, join, judge
from benchmarks.schedulers.tables import markdown, print_outcomes
from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.evaluation import EvaluateSchedulersArgs, compare
from draftgym.agents.scheduler.planners import MakePlanner
from draftgym.agents.scheduler.totals import CellTotals
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import describe_host, plain
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.table import make_console
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class SchedulersArgs:
    """Compare schedulers of many users.

    Attributes:
        traces: Folder of traces to play, of held-out prompts.
        known: Folder of traces of training prompts, which told the mean acceptance of tasks.
        policies: Trained schedulers: method=FOLDER,FOLDER with a folder for each training seed, or
            a folder alone.
        settings: Settings by name (`draftgym.envs.cell.settings`).
        payloads: What devices upload: tokens, scalar or truncated.
        users: Numbers of users.
        cell: All else of the cells; its setting, users, payload and confidence are not read.
        cells: Cells of each evaluation seed.
        rounds: Rounds of each.
        seeds: Evaluation seeds.
        json: Write the figures to this file; anew after every scenario.
        markdown: Write the tables to this file.
    """

    traces: Path = Path("runs/users-heldout")
    known: Path = Path("runs/users")
    policies: tuple[str, ...] = ()
    settings: tuple[str, ...] = ("multispin-llama2", "multispin-qwen3.5")
    payloads: tuple[str, ...] = ("truncated", "tokens")
    users: tuple[int, ...] = (4, 8, 16)
    cell: CellArgs = field(default_factory=CellArgs)
    cells: int = 32
    rounds: int = 256
    seeds: int = 5
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Ground:
    """What is played on.

    Attributes:
        args: What was asked for.
        table: The texts.
        means: Mean acceptance of tasks, as known beforehand.
    """

    args: SchedulersArgs
    table: ChainTable
    means: dict[str, float]

    def cell(self, scenario: Scenario, confidence: bool = False) -> CellArgs:
        """The cells of a scenario."""
        return replace(
            self.args.cell,
            setting=scenario.setting,
            payload=scenario.payload,
            users=scenario.users,
            confidence=confidence,
        )


def compare_schedulers(args: SchedulersArgs) -> list[Outcome]:
    """Plays everything, prints and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is played.
    """
    scenarios = _scenarios(args)
    traces, known = read_traces(args.traces), read_traces(args.known)
    refuse_shared_prompts(known, traces)
    arms = args.cell.settings().arms
    ground = Ground(args, ChainTable(traces, arms), means_of(ChainTable(known, arms)))
    contenders = [
        *rule_contenders(traces.origin),
        *trained_contenders(args.policies, traces.origin),
    ]
    for scenario in scenarios:
        settings = ground.cell(scenario).settings(known_means(ground.means, ground.table))
        rehearse(contenders, Cell(ground.table, settings))
    facts = {
        "traces": traces.origin.describe(),
        "known": known.origin.describe(),
        "texts": len(ground.table.texts),
        "arms": list(map(str, ground.table.arms)),
        "settings": plain(asdict(args)),
        **describe_host(),
    }
    outcomes: list[Outcome] = []
    for scenario in scenarios:
        outcomes.append(play_scenario(scenario, contenders, ground))
        _write(args, facts, outcomes)
    console = make_console()
    print_outcomes(outcomes, aims_met(outcomes), console)
    return outcomes


def play_scenario(scenario: Scenario, contenders: Sequence[Contender], ground: Ground) -> Outcome:
    """Everybody in the same cells."""
    played = {}
    for contender in tqdm(contenders, desc=str(scenario), unit="scheduler"):
        each = zip(contender.planners, contender.confidence, strict=True)
        played[contender.name] = [_play(make, told, scenario, ground) for make, told in each]
    return judge(scenario, contenders, played)


def refuse_shared_prompts(known: TraceSet, traces: TraceSet) -> None:
    """Raises `DraftgymError` if what is played was known beforehand."""
    shared = {text.question_id for text in known.texts} & {t.question_id for t in traces.texts}
    if shared:
        raise DraftgymError(
            f"both folders of traces have the prompt {min(shared)!r}",
            "play held-out prompts: draftgym collect --prompts heldout",
        )


def _play(make: MakePlanner, confidence: bool, scenario: Scenario, ground: Ground) -> CellTotals:
    """The cells of all evaluation seeds; no two have a generator in common."""
    args, cell = ground.args, ground.cell(scenario, confidence)
    asked = EvaluateSchedulersArgs(cell=cell, cells=args.cells, rounds=args.rounds)
    seeds = [replace(asked, seed=seed * args.cells) for seed in range(args.seeds)]
    return join([compare({"": make}, one, ground.table, ground.means)[""] for one in seeds])


def _scenarios(args: SchedulersArgs) -> list[Scenario]:
    """What is to be played.

    Raises:
        DraftgymError: Nothing, or something that cannot be; or a file cannot be written.
    """
    if min(args.cells, args.rounds, args.seeds) < 1:
        raise DraftgymError(
            f"{args.seeds} seeds of {args.cells} cells of {args.rounds} rounds",
            "play one at least",
        )
    for path, option in ((args.json, "--json"), (args.markdown, "--markdown")):
        if path is not None:
            check_writable(path, f"name another file with {option}")
    every = product(args.settings, args.payloads, args.users)
    scenarios = [Scenario(*one) for one in dict.fromkeys(every)]
    if not scenarios:
        raise DraftgymError("no cells to play", "name --settings, --payloads and --users")
    return scenarios


def _write(args: SchedulersArgs, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    aims = aims_met(outcomes)
    if args.json is not None:
        shown = [asdict(aim) | {"reached": aim.reached} for aim in aims]
        body = {"environment": facts, "aims": shown, "scenarios": list(map(asdict, outcomes))}
        args.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(markdown(outcomes, aims), encoding="utf-8")


if __name__ == "__main__":
    with exit_on_user_error():
        compare_schedulers(tyro.cli(SchedulersArgs, description=__doc__))
