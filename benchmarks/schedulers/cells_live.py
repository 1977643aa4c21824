"""Do many users who share a target each read plain decoding's text? Live cells, float32.

    $ python -m benchmarks.schedulers.cells_live --users 4 --scheduler fixed heterogeneous@beta
    $ python -m benchmarks.schedulers.cells_live --window 0.1 --leaving 0.3 --json live.json

Devices draft for real, the target verifies all who are there in one ragged pass, and a scheduler
(a closed form, or the folder of a trained one) chooses draft lengths before it. Radio, devices and
server take the time that the cell says; what passes took on this host is told beside it. Everybody
plays the same users at temperature 0 (greedy) and 1 (coupled noise, one seed), and every text is
compared with plain decoding of its prompt alone, token for token.

A ragged pass and a pass over one row round differently, so a near tie between two tokens may flip;
such a text is told with the margin that plain decoding's token had. A larger one is a bug: the
command then ends with status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.table import Table
from tqdm import tqdm

from benchmarks.system.losslessness import larger_than_rounding
from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.evaluation import chosen_schedulers
from draftgym.agents.scheduler.planners import MakePlanner, play_rounds
from draftgym.agents.scheduler.totals import count_rounds
from draftgym.decoding.arms import check_arms, parse_arm
from draftgym.decoding.decoder import Generation, PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_host, describe_target, plain
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.loading import load_drafters
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.live import LiveTable
from draftgym.envs.cell.texts import ChainTable, check_chains
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.decode.interleaved import DecodeSettings, check_longest, encode_prompt, write
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.report.rows import first_difference
from draftgym.rollouts.report.table import make_console
from draftgym.rollouts.traces.counterfactual import TraceRequest
from draftgym.rollouts.traces.file import read_traces

TEMPERATURES = (0.0, 1.0)
ORACLES = ("given", "too-high", "too-low")
"""Beliefs that know what a text accepts before it is written."""


@dataclass(frozen=True, kw_only=True)
class CellsLiveArgs:
    """Play live cells.

    Attributes:
        scheduler: Who plans, one after the other: rules (fixed, heterogeneous@beta), or folders of
            trained schedulers.
        cell: The cell; without arms, devices draft with small:8 and ngram:8.
        rounds: Rounds of each.
        known: Folder of traces that told the mean acceptance of tasks beforehand: those of the
            training prompts. Without it half of the tokens are expected to be accepted.
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        per_category: Prompts of each category.
        max_new_tokens: Tokens per text at most.
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        threads: CPU threads; default: every core this process may use.
        seed: Seed of users, channels and sampling noise; with 0, all four draft with prompt lookup.
        json: Write the figures to this file.
    """

    scheduler: tuple[str, ...] = ("fixed", "heterogeneous@beta")
    cell: Annotated[CellArgs, tyro.conf.arg(name="")] = field(
        default_factory=lambda: CellArgs(users=4, arms=("small:8", "ngram:8"))
    )
    rounds: int = 40
    known: Path | None = None
    prompts: str = "heldout"
    per_category: int = 4
    max_new_tokens: int = 48
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    threads: int | None = None
    seed: int = 1
    json: Path | None = None


@dataclass(frozen=True)
class Stage:
    """What all cells of a run share.

    Attributes:
        target: The target.
        drafters: Drafters by name.
        requests: Prompts, encoded.
        planners: Schedulers by name.
        means: Mean acceptance of tasks as measured beforehand.
    """

    target: Target
    drafters: Mapping[str, Drafter]
    requests: Sequence[TraceRequest]
    planners: Mapping[str, MakePlanner]
    means: Mapping[str, float]


def play_live(args: CellsLiveArgs) -> dict[str, Any]:
    """Plays what the command line asks for, prints the table, writes and returns the figures.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is played.
    """
    if args.json is not None:
        check_writable(args.json)
    stage = _set_up(args)
    rows, differences = [], []
    for temperature in TEMPERATURES:
        settings = DecodeSettings(args.max_new_tokens, temperature, args.seed)
        references = References(stage.target, stage.requests, settings)
        for name in stage.planners:
            row, mine = play_one(args, stage, name, references)
            rows.append({"temperature": temperature, "scheduler": name, **row})
            differences += [{"temperature": temperature, "scheduler": name, **one} for one in mine]
    body = {
        "environment": {
            **plain(asdict(args)),
            **describe_target(stage.target),
            **describe_host(),
        },
        "rows": rows,
        "differences": differences,
    }
    print_live(body)
    if args.json is not None:
        args.json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return body


class References:
    """Plain decoding's texts of some prompts, each written when it is first asked for."""

    def __init__(
        self, target: Target, requests: Sequence[TraceRequest], settings: DecodeSettings
    ) -> None:
        self.settings = settings
        self._decoder = SpeculativeDecoder(target, {}, PlainPolicy())
        self._prompts = {one.question_id: one.prompt for one in requests}
        self._known: dict[str, Generation] = {}

    def of(self, question_id: str) -> Generation:
        """Plain decoding of a prompt alone, with margins."""
        if question_id not in self._known:
            prompt = self._prompts[question_id]
            self._known[question_id] = write(self._decoder, prompt, self.settings, True)
        return self._known[question_id]


def play_one(
    args: CellsLiveArgs, stage: Stage, name: str, references: References
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One scheduler's live cell: its figures, and every text that is not plain decoding's."""
    how, target = references.settings, stage.target
    rule = make_rule(how.verification, how.temperature, how.seed, target.vocab_size)
    arms = list(map(parse_arm, args.cell.arms))
    table = LiveTable(target, stage.drafters, arms, stage.requests, rule, how.max_new_tokens)
    cell = Cell(table, args.cell.settings(known_means(stage.means, table)))
    rounds = play_rounds(stage.planners[name], cell, np.random.default_rng(args.seed), args.rounds)
    label = f"T = {how.temperature:g} {name}"
    counted = count_rounds(tqdm(rounds, label, args.rounds, unit="round", mininterval=1.0))
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
    prompts = load_prompts(args.prompts, limit_per_category=args.per_category)
    args.cell.settings()
    if args.rounds < 1:
        raise DraftgymError(f"{args.rounds} rounds", "play one at least")
    for spec in args.scheduler:
        if spec.rpartition("@")[2] in ORACLES:
            raise DraftgymError(
                f"scheduler {spec!r} knows what a text accepts before it is written",
                "choose a belief that learns, such as heterogeneous@beta",
            )
    target = load_target(args.target, "float32", args.threads)
    drafters = load_drafters(target, args.drafters)
    arms = [parse_arm(arm) for arm in args.cell.arms]
    check_chains(arms)
    check_arms(arms, drafters)
    ids = {one.question_id: encode_prompt(target, one) for one in prompts}
    used = {arm.drafter: drafters[arm.drafter] for arm in arms}
    check_longest(target, used, prompts, ids, DecodeSettings(args.max_new_tokens))
    requests = [TraceRequest(p.question_id, p.category, ids[p.question_id]) for p in prompts]
    means = means_of(ChainTable(read_traces(args.known), args.cell.arms)) if args.known else {}
    return Stage(target, used, requests, chosen_schedulers(args.scheduler, target), means)


def print_live(body: Mapping[str, Any]) -> None:
    """The table and every difference."""
    facts, console = body["environment"], make_console()
    title = (
        f"{facts['cell']['users']} users of {facts['cell']['setting']}, {facts['target']}, "
        f"{facts['dtype']}, threads {facts['threads']}; up to {facts['max_new_tokens']} tokens"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "T": lambda row: f"{row['temperature']:g}",
        "scheduler": lambda row: row["scheduler"],
        "same text": lambda row: f"{row['same_texts']}/{row['texts']}",
        "same so far": lambda row: f"{row['same_beginnings']}/{row['unfinished_texts']}",
        "tokens": lambda row: str(row["tokens"]),
        "accepted": lambda row: f"{row['accepted']}/{row['drafted']}",
        "tokens/s": lambda row: f"{row['cell_goodput']:.1f}",
        "rows/pass": lambda row: f"{row['rows_per_pass']:.1f}",
        "pass here": lambda row: f"{1e3 * row['median_pass_seconds']:.0f} ms",
        "of the server": lambda row: f"{1e3 * row['served_pass_seconds'] / row['rounds']:.0f} ms",
    }
    for name in columns:
        table.add_column(name, justify="left" if name == "scheduler" else "right")
    for row in body["rows"]:
        table.add_row(*(tell(row) for tell in columns.values()))
    console.print(table)
    console.print(
        "same text: finished texts that are plain decoding's; same so far: unfinished ones that "
        "are its beginning. tokens/s: of the cell, by its own clock. pass here: median of the "
        "ragged passes with their verdicts, as measured; of the server: their mean in the cell.",
        style="dim",
        highlight=False,
    )
    for one in body["differences"]:
        console.print(
            f"T = {one['temperature']:g} {one['scheduler']}: {one['question_id']} from token "
            f"{one['index']}, margin {one['margin']}",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    with exit_on_user_error():
        outcome = play_live(tyro.cli(CellsLiveArgs, description=__doc__))
        sys.exit(1 if larger_than_rounding(outcome["differences"]) else 0)
