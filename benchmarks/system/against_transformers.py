"""Is it faster than what people use? Our decoder against transformers' `generate()`, wall clock.

    $ python -m benchmarks.system.against_transformers --json speed.json --policies eagle3 ngram
    $ python -m benchmarks.system.against_transformers --json speed.json --assistant runs/small-lm

Rows: `generate()` greedy; with a small LM as `assistant_model` (only with --assistant, and with
transformers' default draft length, schedule and confidence threshold); with
`prompt_lookup_num_tokens`; our plain decoding; our decoder with each policy. All have the same
weights, dtype, threads, prompts and token limit, at temperature 0, with static defaults (no
compilation). They are warmed up and then write prompt by prompt, in an order that rotates.

A time is that of the whole call, prompt included, tokenisation not. `decode/s` leaves out prompt
and first token; transformers does not tell it. Ratios are total tokens over total seconds against
`generate()`, with a 95 % interval from a paired bootstrap over prompts.

Finished prompts are kept in `<json>.partial.jsonl`: an interrupted run goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich import box
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from benchmarks.system.contenders import (
    GENERATE,
    Contender,
    OurContender,
    assistant_settings,
    transformers_contenders,
)
from benchmarks.system.partial import Record, append_record, partial_path, read_partial
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import (
    describe_drafters,
    describe_host,
    describe_target,
    git_revision,
)
from draftgym.drafters.loading import find_checkpoints, load_drafters
from draftgym.rollouts.decode.evaluation import check_writable, chosen_policies
from draftgym.rollouts.decode.interleaved import (
    WARM_UP_TOKENS,
    DecodeSettings,
    check_longest,
    encode_prompt,
    turn_order,
)
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.report.table import make_console


@dataclass(frozen=True, kw_only=True)
class AgainstArgs:
    """What to compare.

    Attributes:
        json: Result file; finished prompts are kept beside it until it is written.
        policies: Policies or arms of our decoder (eagle3, ngram:8, a policy folder, ...); plain
            decoding is always there. Default: every policy there is.
        assistant: Folder of a small LM for transformers' assisted generation.
        prompt_lookup_tokens: transformers' `prompt_lookup_num_tokens` (it has no default).
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        per_category: Prompts of each category.
        max_new_tokens: Tokens per text at most.
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        dtype: auto, float32 (texts must then be identical) or bfloat16.
        threads: CPU threads; default: every core this process may use.
    """

    json: Path
    policies: tuple[str, ...] | None = None
    assistant: Path | None = None
    prompt_lookup_tokens: int = 10
    prompts: str = "heldout"
    per_category: int = 5
    max_new_tokens: int = 96
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class SpeedRow:
    """One contender on one category.

    Attributes:
        contender: Its name.
        category: Category of the prompts, or `all`.
        prompts: How many.
        tokens: Tokens written.
        seconds: Whole calls, prompts included.
        tokens_per_second: `tokens / seconds`.
        p10: 10th percentile of the single prompts' tokens per second.
        p50: Their median.
        p90: Their 90th percentile.
        ratio: `tokens_per_second` over that of `generate()`.
        ratio_low: Lower end of its 95 % interval.
        ratio_high: Upper end.
        decode_tokens_per_second: Without prompts and first tokens; None for transformers.
        identical_texts: Prompts whose tokens are those of `generate()`, all of them.
    """

    contender: str
    category: str
    prompts: int
    tokens: int
    seconds: float
    tokens_per_second: float
    p10: float
    p50: float
    p90: float
    ratio: float
    ratio_low: float
    ratio_high: float
    decode_tokens_per_second: float | None
    identical_texts: int


def measure(args: AgainstArgs) -> dict[str, Any]:
    """Decodes what is still missing, prints the table, writes and returns the result.

    Raises:
        DraftgymError: Bad settings, or a partial file of other settings.
    """
    if args.prompt_lookup_tokens < 1:
        raise DraftgymError(
            f"--prompt-lookup-tokens is {args.prompt_lookup_tokens}", "look up at least one token"
        )
    check_writable(args.json)
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.per_category)
    )
    target = load_target(args.target, args.dtype, args.threads)
    drafters = load_drafters(target, args.drafters)
    contenders = make_contenders(args, target, drafters)
    settings = {
        **describe_target(target),
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        "contenders": list(contenders),
        "assistant": str(args.assistant) if args.assistant else None,
        "assistant_settings": assistant_settings(contenders),
        "prompt_lookup_tokens": args.prompt_lookup_tokens,
        "prompts": args.prompts,
        "per_category": args.per_category,
        "max_new_tokens": args.max_new_tokens,
    }
    del settings["precision_reason"]  # the probe's figure differs from run to run
    partial = partial_path(args.json)
    records = read_partial(partial, settings)
    records += write_missing(target, contenders, prompts, args.max_new_tokens, records, partial)
    environment = {**settings, **describe_target(target), **describe_host()}
    result = {
        "environment": environment,
        "rows": [asdict(row) for row in make_rows(records, list(contenders))],
        "records": records,
    }
    print_result(result)
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.unlink()
    return result


def make_contenders(
    args: AgainstArgs, target: Target, drafters: Mapping[str, Drafter]
) -> dict[str, Contender]:
    """Everybody by name, `generate()` first."""
    policies = chosen_policies(args.policies, drafters, target)
    policies = {**chosen_policies([PLAIN], drafters, target), **policies}
    if args.assistant is None:
        print(
            "note: assisted generation is left out; give a small LM with --assistant",
            file=sys.stderr,
        )
    contenders = transformers_contenders(target, args.assistant, args.prompt_lookup_tokens)
    for name, policy in policies.items():
        contenders[name] = OurContender(SpeculativeDecoder(target, drafters, policy))
    return contenders


def write_missing(
    target: Target,
    contenders: Mapping[str, Contender],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    records: Sequence[Record],
    partial: Path,
) -> list[Record]:
    """Writes the prompts that have no record yet, appending each one's to the partial file."""
    ids = {prompt.question_id: encode_prompt(target, prompt) for prompt in prompts}
    drafters = {
        name: drafter
        for one in contenders.values()
        if isinstance(one, OurContender)
        for name, drafter in one.decoder.drafters.items()
    }
    check_longest(target, drafters, prompts, ids, DecodeSettings(max_new_tokens))
    done = {record["question_id"] for record in records}
    missing = [(turn, one) for turn, one in enumerate(prompts) if one.question_id not in done]
    if missing:  # first calls pay for memory and kernels; that is nobody's fault
        for contender in contenders.values():
            contender.write(ids[prompts[0].question_id], min(WARM_UP_TOKENS, max_new_tokens))
    made = []
    for turn, prompt in tqdm(missing, desc="prompts", unit="prompt", mininterval=1.0):
        texts = write_turn(contenders, ids[prompt.question_id], turn, max_new_tokens)
        facts = {"question_id": prompt.question_id, "category": prompt.category}
        made.append({**facts, "git_revision": git_revision(), "texts": texts})
        append_record(partial, made[-1])
    return made


def write_turn(
    contenders: Mapping[str, Contender], ids: Tensor, turn: int, max_new_tokens: int
) -> dict[str, Any]:
    """One prompt by everybody: tokens, seconds and whether the text is that of `generate()`."""
    texts = {
        name: contenders[name].write(ids, max_new_tokens)
        for name in turn_order(list(contenders), turn)
    }
    reference = texts[GENERATE].tokens
    return {
        name: {
            "tokens": len(text.tokens),
            "seconds": text.seconds,
            "decode_seconds": text.decode_seconds,
            "same_text": text.tokens == reference,
        }
        for name, text in texts.items()
    }


def make_rows(records: Sequence[Record], contenders: Sequence[str]) -> list[SpeedRow]:
    """All rows: category by category, then `all`."""
    rows = []
    for category in [*dict.fromkeys(record["category"] for record in records), ALL]:
        texts = [one["texts"] for one in records if category in (one["category"], ALL)]
        rows += [_row(name, category, texts) for name in contenders]
    return rows


def _row(name: str, category: str, texts: Sequence[Mapping[str, Any]]) -> SpeedRow:
    mine, reference = _works(texts, name), _works(texts, GENERATE)
    tokens, seconds = sum(one.tokens for one in mine), sum(one.seconds for one in mine)
    p10, p50, p90 = np.percentile([w.tokens / w.seconds for w in mine], [10, 50, 90]).tolist()
    ratio = speed_ratio(mine, reference)
    decoding = [text[name]["decode_seconds"] for text in texts]
    timed = None not in decoding and sum(decoding) > 0
    return SpeedRow(
        contender=name,
        category=category,
        prompts=len(texts),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        p10=p10,
        p50=p50,
        p90=p90,
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        decode_tokens_per_second=(tokens - len(texts)) / sum(decoding) if timed else None,
        identical_texts=sum(text[name]["same_text"] for text in texts),
    )


def _works(texts: Sequence[Mapping[str, Any]], name: str) -> list[Work]:
    return [Work(text[name]["tokens"], text[name]["seconds"]) for text in texts]


def print_result(result: Mapping[str, Any]) -> None:
    """The table."""
    facts, console = result["environment"], make_console()
    title = "{target}, {dtype}, threads {threads}; {cpu}; up to {max_new_tokens} tokens".format(
        **facts
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("category", style="cyan", no_wrap=True)
    table.add_column("who", overflow="fold")
    for name in ["tokens/s", "p10-p50-p90", "ratio", "95 %", "decode/s", "same text"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        first = row["contender"] == GENERATE
        if first:
            table.add_section()
        decode = row["decode_tokens_per_second"]
        table.add_row(
            row["category"] if first else "",
            row["contender"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['p10']:.1f}-{row['p50']:.1f}-{row['p90']:.1f}",
            f"{row['ratio']:.2f}",
            "" if first else f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
            "" if decode is None else f"{decode:.1f}",
            f"{row['identical_texts']}/{row['prompts']}",
        )
    console.print(table)
    console.print(
        "tokens/s: whole calls, prompt included. ratio: to generate(), with its 95 % interval "
        "(paired bootstrap over prompts). decode/s: without prompt and first token. same text: "
        "prompts whose tokens are generate()'s.",
        style="dim",
        highlight=False,
    )
    if settings := facts["assistant_settings"]:
        console.print(f"assisted generation: {settings}", style="dim", highlight=False)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(AgainstArgs, description=__doc__))
