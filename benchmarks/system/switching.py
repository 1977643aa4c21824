"""What switching drafters costs, and what Lazy Catch-up and KV-only Prefill save (WhiFlash).

    $ python -m benchmarks.system.switching --dtype float32 --json runs/switching.json
    $ python -m benchmarks.system.switching --per-category 1 --max-new-tokens 48 --repeats 5

A drafter that was not used has a *backlog*: positions that it must encode before it can draft.

1. Switch cost. Per arm, context and backlog: the time of catching up, as a share of a whole round
   of that arm (drafting, verifying, committing) at that context without any backlog. The backlog
   is part of the context. Every timing follows a target pass, as in decoding; all are interleaved.
   `kv` encodes keys and values alone, `full` runs the whole drafter on the backlog. dflash never
   takes context positions as rows, so that its `full` is the same work as its `kv`.

2. Decoding. Two policies switch between the same arms, one in bursts of rounds and one at random,
   in four variants: drafters catch up lazily (only the chosen one, before it drafts) or eagerly
   (all of them, after every round), and `kv` or `full`. Tokens per second of decoding, ratios of
   totals with a 95 % interval from a paired bootstrap over prompts. Texts must be identical.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.system.catch_up_ablation import decode_variants, summarise
from benchmarks.system.switch_cost import Spread, SwitchCost, measure_switches, worst_shares
from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_drafters, describe_host, describe_target, plain
from draftgym.drafters.loading import find_checkpoints, load_drafters
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.decode.interleaved import DecodeSettings
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts
from draftgym.rollouts.report.table import make_console


@dataclass(frozen=True, kw_only=True)
class SwitchingArgs:
    """What to measure.

    Attributes:
        arms: Arms whose switch cost is measured (neural drafters).
        contexts: Context lengths; shortened where the target's limit is lower.
        backlogs: Positions to catch up; those longer than a context are left out there.
        repeats: Timings per cell.
        between: Arms that the decoding policies switch between; at least two.
        burst: Mean rounds that a burst stays with an arm.
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        per_category: Prompts of each category; 0 leaves decoding out.
        max_new_tokens: Tokens per text at most.
        temperature: 0 for greedy; above 0 with coupled noise.
        seed: Seed of policies and sampling noise.
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        dtype: auto, float32 (texts must then be identical) or bfloat16.
        threads: CPU threads; default: every core this process may use.
        json: Write the figures to this file.
    """

    arms: tuple[str, ...] = ("eagle3:2", "dflash:2", "small:2")
    contexts: tuple[int, ...] = (128, 512, 2048)
    backlogs: tuple[int, ...] = (1, 16, 64, 128, 512)
    repeats: int = 15
    between: tuple[str, ...] = ("eagle3:2", "dflash:2")
    burst: int = 16
    prompts: str = "heldout"
    per_category: int = 3
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    json: Path | None = None


def measure(args: SwitchingArgs) -> dict[str, Any]:
    """Measures, prints the tables, writes and returns the figures.

    Raises:
        DraftgymError: Bad settings.
    """
    _check(args)
    target = load_target(args.target, args.dtype, args.threads)
    drafters = load_drafters(target, args.drafters)
    arms, between = _arms(args.arms, drafters), _arms(args.between, drafters)
    cells = measure_switches(target, drafters, arms, args.contexts, args.backlogs, args.repeats)
    result: dict[str, Any] = {
        "environment": _describe(args, target, drafters),
        "switch_cost": [asdict(cell) for cell in cells],
        "largest_median_shares": worst_shares(cells),
    }
    console = make_console()
    print_switches(result["environment"], cells, console)
    if args.per_category:
        result["decoding"] = _decode(args, target, drafters, between)
        print_decoding(result["decoding"], console)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def print_switches(facts: Mapping[str, Any], cells: Sequence[SwitchCost], console: Console) -> None:
    """Shares of a round: a row per arm, prefill and context, a column per backlog."""
    title = (
        "switch cost by backlog: catching up, % of a round's time (p10-p90)\n"
        "{target}, {dtype}, threads {threads}; {cpu}"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title.format(**facts), title_justify="left")
    for name in ("arm", "prefill"):
        table.add_column(name, no_wrap=True)
    backlogs = sorted({cell.backlog for cell in cells})
    for name in ("context", "round ms", *map(str, backlogs)):
        table.add_column(name, justify="right")
    rows: dict[tuple[str, str, int], dict[int, SwitchCost]] = {}
    for cell in cells:
        rows.setdefault((cell.arm, cell.prefill, cell.context), {})[cell.backlog] = cell
    for (arm, prefill, context), row in sorted(rows.items()):
        shares = [_share(row[backlog].share) if backlog in row else "" for backlog in backlogs]
        one = next(iter(row.values())).round_ms
        spread = f"{one.p50:.1f} ({one.p10:.0f}-{one.p90:.0f})"
        table.add_row(arm, prefill, str(context), spread, *shares)
    console.print(table)


def print_decoding(decoding: Mapping[str, Any], console: Console) -> None:
    """Speeds per variant, then the ratios."""
    table = Table(box=box.SIMPLE_HEAD, title="decoding with switches", title_justify="left")
    table.add_column("policy", no_wrap=True)
    table.add_column("catching up", no_wrap=True)
    for name in ("tokens/s", "rounds", "encoded positions", "catch-up, share of time"):
        table.add_column(name, justify="right")
    for policy, one in decoding.items():
        for name, row in one["variants"].items():
            counts = [str(row["rounds"]), str(row["encoded_positions"])]
            speed, share = f"{row['tokens_per_second']:.1f}", f"{row['catch_up_share']:.1%}"
            table.add_row(policy, name, speed, *counts, share)
        table.add_section()
    console.print(table)
    for policy, one in decoding.items():
        console.print(
            f"{policy}: {one['mean_backlog_at_a_switch']:.1f} positions to catch up at a switch; "
            f"identical texts {one['identical_texts']}/{one['prompts']}",
            highlight=False,
        )
        for name, ratio in one["ratios"].items():
            interval = f"{ratio['low']:.3f}-{ratio['high']:.3f}"
            console.print(f"  {name}: {ratio['value']:.3f} times ({interval})", highlight=False)


def _share(share: Spread) -> str:
    median, low, high = (_percent(value) for value in (share.p50, share.p10, share.p90))
    return f"{median} ({low}-{high})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"


def _decode(
    args: SwitchingArgs, target: Target, drafters: Mapping[str, Drafter], between: Sequence[Arm]
) -> dict[str, Any]:
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.per_category)
    )
    settings = DecodeSettings(args.max_new_tokens, args.temperature, args.seed)
    return summarise(decode_variants(target, drafters, between, args.burst, prompts, settings))


def _describe(
    args: SwitchingArgs, target: Target, drafters: Mapping[str, Drafter]
) -> dict[str, Any]:
    names = ("repeats", "between", "burst", "prompts", "per_category", "max_new_tokens")
    return {
        **describe_target(target),
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        **{name: plain(getattr(args, name)) for name in (*names, "temperature", "seed")},
        **describe_host(),
    }


def _arms(texts: Sequence[str], drafters: Mapping[str, Drafter]) -> list[Arm]:
    arms = list(dict.fromkeys(parse_arm(text) for text in texts))
    check_arms(arms, drafters)
    return arms


def _check(args: SwitchingArgs) -> None:
    """Raises `DraftgymError` before anything is loaded."""
    for name in ("repeats", "burst", "max_new_tokens"):
        if (value := getattr(args, name)) < 1:
            option = name.replace("_", "-")
            raise DraftgymError(f"--{option} is {value}", "give at least 1")
    for name in ("contexts", "backlogs"):
        if not (values := getattr(args, name)) or min(values) < 1:
            raise DraftgymError(f"--{name} has no positive number", "write some, as in 16 128")
    if len(set(args.between)) < 2:
        raise DraftgymError("--between names fewer than two arms", "name two arms or more")
    if args.per_category < 0:
        raise DraftgymError(f"--per-category is {args.per_category}", "give 0 or more")
    if args.json is not None:
        check_writable(args.json)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(SwitchingArgs, description=__doc__))
