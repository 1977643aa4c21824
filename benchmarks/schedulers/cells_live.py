"""Do many users who share a target each read plain decoding's text? Live cells, float32.

    $ python -m benchmarks.schedulers.cells_live --users 4 --scheduler fixed heterogeneous@beta
    $ python -m benchmarks.schedulers.cells_live --window 0.1 --leaving 0.3 --json live.json

Devices draft for real, the target verifies all who are there in one ragged pass, and a scheduler
(a closed form, or the folder of a trained one) chooses draft lengths before it. Radio, devices and
server take the time that the cell says; what passes took on this host is told beside it. Everybody
plays the same users at temperature 0 (greedy) and 1 (coupled noise), and every text is
compared with plain decoding of its prompt alone, token for token.

A ragged pass and a pass over one row round differently, so a near tie between two tokens may flip;
such a text is told with the margin that plain decoding's token had. A larger one is a bug: the
command then ends with status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.report import Json, Table, number
from benchmarks.results import PromptOptions, Result, check, finish
from benchmarks.system.losslessness import larger_than_rounding
from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.evaluation import chosen_schedulers
from draftgym.agents.scheduler.totals import count_rounds
from draftgym.decoding.arms import check_arms, parse_arm
from draftgym.decoding.decoder import Generation, PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.live import LiveTable
from draftgym.envs.cell.texts import ChainTable, check_chains
from draftgym.envs.scheduler.planners import MakePlanner, play_rounds
from draftgym.rollouts.decode.batched import Request, requests_of_run
from draftgym.rollouts.decode.fitting import FittedPrompts
from draftgym.rollouts.decode.interleaved import DecodeSettings, write
from draftgym.rollouts.report.rows import first_difference
from draftgym.rollouts.traces.file import read_traces

TEMPERATURES = (0.0, 1.0)
ORACLES = ("given", "too-high", "too-low")
"""Beliefs that know what a text accepts before it is written."""


@dataclass(frozen=True, kw_only=True)
class CellsLiveArgs(PromptOptions):
    """Play live cells.

    Attributes:
        scheduler: Who plans, one after the other: rules (fixed, heterogeneous@beta), or folders of
            trained schedulers.
        cell: The cell; without arms, devices draft with small:8 and ngram:8.
        rounds: Rounds of each.
        known: Folder of traces that told the mean acceptance of tasks beforehand: those of the
            training prompts. Without it half of the tokens are expected to be accepted.
        seed: Seed of users, channels and sampling noise; with 0, all four draft with prompt lookup.
        json: Write the figures to this file.
    """

    scheduler: tuple[str, ...] = ("fixed", "heterogeneous@beta")
    cell: Annotated[CellArgs, tyro.conf.arg(name="")] = field(
        default_factory=lambda: CellArgs(users=4, arms=("small:8", "ngram:8"))
    )
    rounds: int = 40
    known: Path | None = None
    per_category: int = 4
    max_new_tokens: int = 48
    seed: int = 1
    json: Path | None = None


@dataclass(frozen=True)
class Stage:
    """What all cells of a run share.

    Attributes:
        target: The target.
        drafters: Drafters by name.
        prompts: Prompts, encoded.
        planners: Schedulers by name.
        means: Mean acceptance of tasks as measured beforehand.
    """

    target: Target
    drafters: Mapping[str, Drafter]
    prompts: FittedPrompts
    planners: Mapping[str, MakePlanner]
    means: Mapping[str, float]


def play_live(args: CellsLiveArgs) -> Result:
    """Plays what the command line asks for, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is played.
    """
    stage = _set_up(args)
    rows: list[Result] = []
    differences: list[Result] = []
    for temperature in TEMPERATURES:
        requests = requests_of_run(stage.prompts, temperature, args.seed)
        references = References(stage.target, requests, args.max_new_tokens)
        for name in stage.planners:
            row, mine = play_one(args, stage, name, references)
            facts = {"temperature": temperature, "scheduler": name}
            rows.append(facts | row)
            differences += [facts | one for one in mine]
    figures, told = {"rows": rows, "differences": differences}, stage.prompts.describe()
    return finish(tables, args, figures, stage.target, stage.drafters, told)


class References:
    """Plain decoding's texts of some prompts, each written when it is first asked for."""

    def __init__(self, target: Target, requests: Sequence[Request], max_new_tokens: int) -> None:
        self.requests, self.max_new_tokens = requests, max_new_tokens
        self._decoder = SpeculativeDecoder(target, {}, PlainPolicy())
        self._by_id = {one.question_id: one for one in requests}
        self._known: dict[str, Generation] = {}

    def of(self, question_id: str) -> Generation:
        """Plain decoding of a prompt alone, with margins."""
        if question_id not in self._known:
            one = self._by_id[question_id]
            how = DecodeSettings(self.max_new_tokens, one.temperature, one.seed)
            self._known[question_id] = write(self._decoder, one.prompt, how, with_margins=True)
        return self._known[question_id]


def play_one(
    args: CellsLiveArgs, stage: Stage, name: str, references: References
) -> tuple[Result, list[Result]]:
    """One scheduler's live cell: its figures, and every text that is not plain decoding's."""
    requests, arms = references.requests, list(map(parse_arm, args.cell.arms))
    table = LiveTable(stage.target, stage.drafters, arms, requests, args.max_new_tokens)
    cell = Cell(table, args.cell.settings(known_means(stage.means, table)))
    rounds = play_rounds(stage.planners[name], cell, np.random.default_rng(args.seed), args.rounds)
    label = f"T = {requests[0].temperature:g} {name}"
    shown = tqdm(rounds, label, args.rounds, unit="round", mininterval=1.0)
    counted = count_rounds(shown, len(arms))
    differences = list(find_differences(table, references))
    whole = sum(one["finished"] for one in differences)
    seconds = np.array([one.seconds for one in table.passes])
    return {
        "rounds": args.rounds,
        "texts": len(table.written),
        "same_texts": len(table.written) - whole,
        "unfinished_texts": len(table.unfinished),
        "same_beginnings": len(table.unfinished) - (len(differences) - whole),
        "tokens": int(counted.tokens.sum()),
        "accepted": int(counted.accepted.sum()),
        "drafted": int(counted.drafted.sum()),
        "cell_goodput": counted.goodput,
        "pass_seconds": float(seconds.sum()),
        "median_pass_seconds": float(np.median(seconds)),
        "rows_per_pass": float(np.mean([one.rows for one in table.passes])),
        "draft_seconds": float(sum(sum(one.draft_seconds) for one in table.passes)),
        "served_pass_seconds": _served_seconds(cell, table),
    }, differences


def find_differences(table: LiveTable, references: References) -> Iterator[dict[str, Any]]:
    """Every text that is not plain decoding's, or, unfinished, not its beginning."""
    for finished, texts in ((True, table.written), (False, table.unfinished)):
        for text, tokens in texts:
            question_id = table.requests[text].question_id
            expected = references.of(question_id)
            index = first_difference(
                tokens, expected.tokens if finished else expected.tokens[: len(tokens)]
            )
            if index is not None:
                known = index < len(expected.margins)
                yield {
                    "question_id": question_id,
                    "finished": finished,
                    "index": index,
                    "margin": expected.margins[index] if known else None,
                }


def _served_seconds(cell: Cell, table: LiveTable) -> float:
    """What the cell's server takes for the same passes."""
    return sum(
        float(
            cell.server.seconds(
                np.array(one.drafted), np.array(one.contexts), np.ones(len(one.drafted), bool)
            )
        )
        for one in table.passes
    )


def _set_up(args: CellsLiveArgs) -> Stage:
    """Loads everything; raises `DraftgymError` for what cannot work."""
    prompts = args.load_prompts()
    args.cell.settings()
    check(args, "rounds")
    for spec in args.scheduler:
        if spec.rpartition("@")[2] in ORACLES:
            raise DraftgymError(
                f"scheduler {spec!r} knows what a text accepts before it is written",
                "choose a belief that learns, such as heterogeneous@beta",
            )
    target, drafters = args.load()
    arms = [parse_arm(arm) for arm in args.cell.arms]
    check_chains(arms)
    check_arms(arms, drafters)
    fitted = args.fit(target, prompts)
    used = {arm.drafter: drafters[arm.drafter] for arm in arms}
    means = means_of(ChainTable(read_traces(args.known), args.cell.arms)) if args.known else {}
    return Stage(target, used, fitted, chosen_schedulers(args.scheduler, target), means)


def tables(result: Json) -> list[Table]:
    """The table, and every difference below it."""
    facts = result["environment"]
    settings = facts["settings"]
    title = (
        f"{settings['cell']['users']} users of {settings['cell']['setting']}, {facts['target']}, "
        f"{facts['dtype']}, threads {facts['threads']}; up to {settings['max_new_tokens']} tokens"
    )
    columns = {
        "scheduler": lambda row: f"T = {row['temperature']:g} {row['scheduler']}",
        "same text": lambda row: f"{row['same_texts']}/{row['texts']}",
        "same so far": lambda row: f"{row['same_beginnings']}/{row['unfinished_texts']}",
        "tokens": number("tokens", ""),
        "accepted": lambda row: f"{row['accepted']}/{row['drafted']}",
        "tokens/s": number("cell_goodput", ".1f"),
        "rows/pass": number("rows_per_pass", ".1f"),
        "pass here": lambda row: f"{1e3 * row['median_pass_seconds']:.0f} ms",
        "of the server": lambda row: f"{1e3 * row['served_pass_seconds'] / row['rounds']:.0f} ms",
    }
    notes = [
        "same text: finished texts that are plain decoding's; same so far: unfinished ones that "
        "are its beginning. tokens/s: of the cell, by its own clock. pass here: median of the "
        "ragged passes with their verdicts, as measured; of the server: their mean in the cell.",
        *(
            f"T = {one['temperature']:g} {one['scheduler']}: {one['question_id']} from token "
            f"{one['index']}, margin {one['margin']}"
            for one in result["differences"]
        ),
    ]
    return [Table.of(title, result["rows"], columns, notes=notes)]


if __name__ == "__main__":
    with exit_on_user_error():
        outcome = play_live(tyro.cli(CellsLiveArgs, description=__doc__))
        sys.exit(1 if larger_than_rounding(outcome["differences"]) else 0)
