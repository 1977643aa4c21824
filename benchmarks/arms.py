"""Every arm at every position of held-out texts: acceptance, who beats whom, and what routing wins.

    $ python -m benchmarks.arms --arms eagle3:4 eagle3:5x16 dflash:4 dflash:4x16 ngram:8 \
        --limit-per-category 10 --json runs/arms.json

The target writes each text once; every arm is asked at every position what it would have drafted
there (`rollouts.counterfactual`). Acceptance lengths are exact: those of decoding with that arm
alone. Times are the cost model's, measured on this host when it is quiet; wall-clock is measured by
`evaluate.py` and `benchmarks.against_transformers`.

Traces are kept beside the result (`F.partial.jsonl`): a run that was cut short goes on, and a
finished one is only evaluated again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.partial import append_record, partial_path, read_partial
from decoding.arms import Arm, check_arms, parse_arm
from decoding.calibration import load_cost_model
from decoding.drafting import Drafter
from decoding.errors import DraftgymError, exit_on_user_error
from decoding.provenance import describe_drafters, describe_host, describe_target
from decoding.rules import make_rule
from decoding.target import Target
from drafters.loading import find_checkpoints
from rollouts.counterfactual import ArmTrace, TextTrace, trace_texts
from rollouts.decode import encode_prompt
from rollouts.headroom import (
    PLAIN_ARM,
    Cost,
    duel,
    one_each,
    prize,
    seconds_by,
    total,
    walk_single,
)
from rollouts.options import DecodingOptions
from rollouts.prompt_sets import Prompt, interleave_categories, load_prompts
from rollouts.table import make_console

TOGETHER = 8
"""Texts that the target writes in shared passes."""

POSITIONS = (range(0, 32), range(32, 64), range(64, 1 << 30))
"""Parts of a text that duels are counted in."""


@dataclass(frozen=True, kw_only=True)
class ArmsArgs(DecodingOptions):
    """Compare arms position by position.

    Attributes:
        arms: Drafters with draft lengths (eagle3:4) or trees (eagle3:5x16: at most 5 deep, 16
            nodes).
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        limit_per_category: Keep at most this many prompts of each category.
        json: Write the figures to this file; traces are kept beside it.
    """

    arms: tuple[str, ...] = ("eagle3:4", "eagle3:5x16", "dflash:4", "dflash:4x16", "ngram:8")
    prompts: str = "heldout"
    limit_per_category: int | None = None
    max_new_tokens: int = 128
    json: Path = Path("runs/arms.json")


Traces = dict[str, list[TextTrace]]
"""Texts by category."""


def compare_arms(args: ArmsArgs) -> dict[str, Any]:
    """Traces what is missing, prints the tables and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    if args.verification == "rejection":
        raise DraftgymError(
            "texts under rejection verification depend on the arm", "use greedy or coupled"
        )
    arms = [parse_arm(text) for text in args.arms]
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.limit_per_category)
    )
    target, drafters = args.load()
    check_arms(arms, drafters)
    traces = _traces(args, target, drafters, arms, prompts)
    cost = seconds_by(load_cost_model(target, drafters))
    figures = {
        "host": describe_host() | describe_target(target),
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        "prompts": {category: len(texts) for category, texts in traces.items()},
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        **summarise(traces, arms, cost),
    }
    print_figures(figures, make_console())
    args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def summarise(traces: Traces, arms: Sequence[Arm], cost: Cost) -> dict[str, Any]:
    """Acceptance and speed per arm and category, duels and prizes."""
    groups = {**traces, "all": [text for texts in traces.values() for text in texts]}
    best = _best_of_each_drafter(groups["all"], arms, cost)
    return {
        "arms": {
            str(arm): {name: _arm(t, arm, cost) for name, t in groups.items()} for arm in arms
        },
        "duels": {
            f"{first} / {second}": _duels(groups, first, second)
            for first, second in combinations(best, 2)
        },
        "prizes": {
            name: {
                what: _prize(texts, chosen, cost)
                for what, chosen in _sets(arms, best, groups["all"], cost).items()
            }
            for name, texts in groups.items()
        },
    }


def _arm(texts: Sequence[TextTrace], arm: Arm, cost: Cost) -> dict[str, float]:
    mine = total([walk_single(text, arm, cost) for text in texts])
    plain = total([walk_single(text, PLAIN_ARM, cost) for text in texts])
    return {
        "acceptance_length": mine.tokens / max(1, mine.rounds),
        "predicted_speedup": plain.cost / mine.cost,
    }


def _best_of_each_drafter(texts: Sequence[TextTrace], arms: Sequence[Arm], cost: Cost) -> list[Arm]:
    """The fastest arm of every drafter."""
    names = dict.fromkeys(arm.drafter for arm in arms)
    return [
        min(
            (arm for arm in arms if arm.drafter == name),
            key=lambda arm: total([walk_single(text, arm, cost) for text in texts]).cost,
        )
        for name in names
    ]


def _duels(groups: Traces, first: Arm, second: Arm) -> dict[str, Any]:
    by_category = {name: asdict(duel(texts, first, second)) for name, texts in groups.items()}
    by_position = {
        f"from_{part.start}": asdict(duel(groups["all"], first, second, part)) for part in POSITIONS
    }
    return by_category | by_position


def _sets(
    arms: Sequence[Arm], best: Sequence[Arm], texts: Sequence[TextTrace], cost: Cost
) -> dict[str, list[Arm]]:
    """Sets of arms whose prize is reported: each pair of drafters, the widest pair, and all."""
    pairs = {f"{a} / {b}": [a, b] for a, b in combinations(best, 2)}
    widest = max(
        combinations([*arms, PLAIN_ARM], 2), key=lambda pair: prize(texts, pair, cost).gain
    )
    return {
        **pairs,
        f"largest pair: {widest[0]} / {widest[1]}": list(widest),
        "best of each drafter": list(best),
        "all arms and plain": [*arms, PLAIN_ARM],
    }


def _prize(texts: Sequence[TextTrace], arms: Sequence[Arm], cost: Cost) -> dict[str, Any]:
    in_time, in_tokens = prize(texts, arms, cost), prize(texts, arms, one_each)
    return {
        "best_single": str(in_time.best),
        "gain_in_time": in_time.gain,
        "oracle_acceptance_length": 1 / in_tokens.oracle_cost,
        "gain_in_acceptance_length": in_tokens.gain,
    }


def _traces(
    args: ArmsArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
) -> Traces:
    """Reads the traces there are and makes the others."""
    args.json.parent.mkdir(parents=True, exist_ok=True)
    path = partial_path(args.json)
    settings = {
        "target": target.fingerprint,
        "dtype": target.precision.dtype,
        "arms": [str(arm) for arm in arms],
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    records = {record["question_id"]: record for record in read_partial(path, settings)}
    missing = [prompt for prompt in prompts if prompt.question_id not in records]
    with tqdm(total=len(missing), desc="tracing", unit="text") as bar:
        for prompt, trace in _trace(args, target, drafters, arms, missing):
            record = {"question_id": prompt.question_id, **asdict(trace)}
            append_record(path, record)
            records[prompt.question_id] = record
            bar.update()
    traces: Traces = {}
    for prompt in prompts:
        traces.setdefault(prompt.category, []).append(_read(records[prompt.question_id]))
    return traces


def _trace(
    args: ArmsArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
) -> Iterator[tuple[Prompt, TextTrace]]:
    rule = make_rule(args.verification, args.temperature, args.seed, target.vocab_size)
    for start in range(0, len(prompts), TOGETHER):
        group = prompts[start : start + TOGETHER]
        ids = [encode_prompt(target, prompt) for prompt in group]
        texts = trace_texts(target, drafters, arms, ids, rule, args.max_new_tokens)
        yield from zip(group, texts, strict=True)


def _read(record: Mapping[str, Any]) -> TextTrace:
    arms = {name: ArmTrace(**columns) for name, columns in record["arms"].items()}
    return TextTrace(record["prompt_tokens"], record["tokens"], arms)


def print_figures(figures: Mapping[str, Any], console: Console) -> None:
    """The tables."""
    categories = [*figures["prompts"], "all"]
    counts = ", ".join(f"{count} {name}" for name, count in figures["prompts"].items())
    console.print(
        f"\n{figures['host']['target']}, {figures['host']['dtype']}; prompts: {counts}; up to "
        f"{figures['max_new_tokens']} tokens, temperature {figures['temperature']:g}"
    )
    _print_arms(figures["arms"], categories, console)
    _print_duels(figures["duels"], categories, console)
    _print_prizes(figures["prizes"], categories, console)


def _print_arms(arms: Mapping[str, Any], categories: Sequence[str], console: Console) -> None:
    for key, title in [
        ("acceptance_length", "acceptance length: committed tokens per round, bonus included"),
        ("predicted_speedup", "speed-up over plain decoding by the cost model"),
    ]:
        rows = {
            arm: [f"{by_category[name][key]:.2f}" for name in categories]
            for arm, by_category in arms.items()
        }
        _print_table(title, ["arm", *categories], rows, console)


def _print_duels(duels: Mapping[str, Any], categories: Sequence[str], console: Console) -> None:
    columns = [*categories, *(f"from_{part.start}" for part in POSITIONS)]
    rows = {
        pair: [f"{100 * d[c]['first']:.0f}/{100 * d[c]['second']:.0f}" for c in columns]
        for pair, d in duels.items()
    }
    title = "who commits more, % of positions (first / second; the rest are ties)"
    _print_table(title, ["arms", *columns], rows, console)


def _print_prizes(prizes: Mapping[str, Any], categories: Sequence[str], console: Console) -> None:
    rows = {}
    for what in prizes["all"]:
        gains = [f"{100 * prizes[name][what]['gain_in_time']:+.1f}" for name in categories]
        tokens = f"{100 * prizes['all'][what]['gain_in_acceptance_length']:+.1f}"
        rows[what] = [*gains, tokens]
    title = "the prize: oracle over the best single arm of each set, % of speed"
    _print_table(title, ["arms", *categories, "all, in tokens"], rows, console)


def _print_table(
    title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]], console: Console
) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    with exit_on_user_error():
        compare_arms(tyro.cli(ArmsArgs, description=__doc__))
