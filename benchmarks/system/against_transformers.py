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

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import Cell, Json, Table, each, interval, number, titled
from benchmarks.results import (
    Partial,
    PromptOptions,
    Record,
    Result,
    check,
    environment,
    finish,
)
from benchmarks.system.contenders import (
    GENERATE,
    Contender,
    our_contender,
    transformers_contenders,
)
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.provenance import git_revision
from draftgym.rollouts.decode.evaluation import chosen_policies
from draftgym.rollouts.decode.interleaved import WARM_UP_TOKENS, turn_order
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.stalls import stood_still
from draftgym.rollouts.report.statistics import Work, median_ratio, speed_ratio


@dataclass(frozen=True, kw_only=True)
class AgainstArgs(PromptOptions):
    """What to compare.

    Attributes:
        json: Result file; finished prompts are kept beside it until it is written.
        policies: Policies or arms of our decoder (eagle3, ngram:8, a policy folder, ...); plain
            decoding is always there. Default: every policy there is.
        assistant: Folder of a small LM for transformers' assisted generation.
        prompt_lookup_tokens: transformers' `prompt_lookup_num_tokens` (it has no default).
        dtype: auto, float32 (texts must then be identical), bfloat16 or float16.
    """

    json: Path
    policies: tuple[str, ...] | None = None
    assistant: Path | None = None
    prompt_lookup_tokens: int = 10
    dtype: str = "auto"


def measure(args: AgainstArgs) -> Result:
    """Decodes what is still missing, shows and writes the result.

    Raises:
        DraftgymError: Bad settings, or a partial file of other settings.
    """
    check(args, "prompt_lookup_tokens")
    prompts = args.load_prompts()
    target, drafters = args.load(args.dtype)
    fitted = args.fit(target, prompts)
    policies = chosen_policies(args.policies, drafters, target)
    policies = {**chosen_policies([PLAIN], drafters, target), **policies}
    decoders = {name: SpeculativeDecoder(target, drafters, one) for name, one in policies.items()}
    if args.assistant is None:
        print(
            "note: assisted generation is left out; give a small LM with --assistant",
            file=sys.stderr,
        )
    contenders, assisting = transformers_contenders(
        target, args.assistant, args.prompt_lookup_tokens
    )
    contenders |= {name: our_contender(decoder) for name, decoder in decoders.items()}
    told = {"contenders": list(contenders), "assistant_settings": assisting}
    facts = environment(args, target, drafters)
    fixed = ("target", "fingerprint", "dtype", "device_name", "threads", "drafters")
    options = ("prompts", "per_category", "max_new_tokens", "prompt_lookup_tokens", "assistant")
    settings = told | {name: facts[name] for name in fixed}
    partial = Partial(args.json, settings | {name: facts["settings"][name] for name in options})
    write_missing(contenders, fitted.prompts, fitted.ids, args.max_new_tokens, partial)
    rows = make_rows(partial.records, list(contenders))
    stalls = find_stalls(partial.records, list(contenders))
    figures = {"rows": rows, "stalls": stalls, "records": partial.records}
    result = finish(tables, args, figures, target, drafters, told | fitted.describe())
    partial.done()
    return result


def write_missing(
    contenders: Mapping[str, Contender],
    prompts: Sequence[Prompt],
    ids: Mapping[str, Tensor],
    max_new_tokens: int,
    partial: Partial,
) -> None:
    """Writes the prompts that have no record yet."""
    done = {record["question_id"] for record in partial.records}
    missing = [(turn, one) for turn, one in enumerate(prompts) if one.question_id not in done]
    if missing:  # first calls pay for memory and kernels; that is nobody's fault
        for write in contenders.values():
            write(ids[prompts[0].question_id], min(WARM_UP_TOKENS, max_new_tokens))
    for turn, prompt in tqdm(missing, desc="prompts", unit="prompt", mininterval=1.0):
        texts = write_turn(contenders, ids[prompt.question_id], turn, max_new_tokens)
        facts = {"question_id": prompt.question_id, "category": prompt.category}
        partial.add({**facts, "git_revision": git_revision(), "texts": texts})


def write_turn(
    contenders: Mapping[str, Contender], ids: Tensor, turn: int, max_new_tokens: int
) -> dict[str, Any]:
    """One prompt by everybody: tokens, seconds and whether the text is that of `generate()`."""
    texts = {
        name: contenders[name](ids, max_new_tokens) for name in turn_order(list(contenders), turn)
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


def make_rows(records: Sequence[Record], contenders: Sequence[str]) -> list[Record]:
    """All rows: category by category, then `all`."""
    rows = []
    for category in [*dict.fromkeys(record["category"] for record in records), ALL]:
        texts = [one["texts"] for one in records if category in (one["category"], ALL)]
        for name in contenders:
            rows.append({"contender": name, "category": category, **_row(name, texts)})
    return rows


def _row(name: str, texts: Sequence[Json]) -> Record:
    """One contender's figures; `decode_tokens_per_second` is None where nobody tells it."""
    mine, reference = (
        [Work(text[one]["tokens"], text[one]["seconds"]) for text in texts]
        for one in (name, GENERATE)
    )
    tokens, seconds = sum(one.tokens for one in mine), sum(one.seconds for one in mine)
    p10, p50, p90 = np.percentile([w.tokens / w.seconds for w in mine], [10, 50, 90]).tolist()
    ratio, median = speed_ratio(mine, reference), median_ratio(mine, reference)
    decoding = [text[name]["decode_seconds"] for text in texts]
    timed = None not in decoding and sum(decoding) > 0
    return {
        "prompts": len(texts),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "median_ratio": [median.value, median.low, median.high],
        "decode_tokens_per_second": (tokens - len(texts)) / sum(decoding) if timed else None,
        "identical_texts": sum(text[name]["same_text"] for text in texts),
    }


def find_stalls(records: Sequence[Record], contenders: Sequence[str]) -> list[Record]:
    """Texts that took far longer a token than the same contender's others: nobody tells rounds."""
    found = []
    for name in contenders:
        texts = [record["texts"][name] for record in records]
        each = np.array([text["seconds"] / text["tokens"] for text in texts])
        for index in np.flatnonzero(stood_still(each, times=3.0)).tolist():
            lost = (each[index] - np.median(each)) * texts[index]["tokens"]
            facts = {"contender": name, "question_id": records[index]["question_id"]}
            found.append(facts | {"seconds": float(lost)})
    return found


def tables(result: Json) -> list[Table]:
    """Whole calls against `generate()`: all prompts, and each category's ratio."""
    facts = result["environment"]
    rows = {(row["contender"], row["category"]): row for row in result["rows"]}
    categories = [one for one in dict.fromkeys(one for _, one in rows) if one != ALL]
    title = (
        "{target}, {dtype}, threads {threads}; {machine}; up to {settings[max_new_tokens]} tokens"
    )
    columns: dict[str, Cell] = {
        "who": number("contender", ""),
        "tokens/s": number("tokens_per_second", ".1f"),
        "p10 to p90": lambda row: f"{row['p10']:.1f} to {row['p90']:.1f}",
        **each(categories, lambda row, name: f"{rows[row['contender'], name]['ratio']:.2f}"),
        "ratio": lambda row: interval([row["ratio"], row["ratio_low"], row["ratio_high"]], ".2f"),
        "median": lambda row: interval(row.get("median_ratio"), ".2f"),
        "decode/s": number("decode_tokens_per_second", ".1f"),
        "same text": lambda row: f"{row['identical_texts']}/{row['prompts']}",
    }
    notes = [
        "tokens/s: whole calls, prompt included; p10 to p90: of single prompts. ratio: to "
        "generate(), totals over totals, and the median of single prompts, each with its 95 % "
        "interval (paired bootstrap over prompts). decode/s: without "
        "prompt and first token. same text: prompts whose tokens are generate()'s."
    ]
    if settings := facts["assistant_settings"]:
        notes.append(f"assisted generation: {settings}")
    notes += [
        f"{one['contender']}: {one['question_id']} took {one['seconds']:.1f} s longer than is "
        "usual: totals count it, medians do not"
        for one in result.get("stalls", [])
    ]
    every = [row for (_, category), row in rows.items() if category == ALL]
    return [Table.of(title.format(**titled(result)), every, columns, itemgetter("ratio"), notes)]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(AgainstArgs, description=__doc__))
