"""Does every policy write plain decoding's text, token for token? Float32, held-out prompts.

    $ python -m benchmarks.system.losslessness --json losslessness.json
    $ python -m benchmarks.system.losslessness --per-category 1 --json quick.json

Every prompt is written greedily (temperature 0) and with coupled noise (temperature 1, one seed),
by plain decoding alone and by every policy; the policies' rounds share their verification passes,
which is the harder test. One pass over several rows and several passes over one row
round differently, so a near tie between two tokens may flip; such a text is reported with the
margin that plain decoding's token had there. A difference with a larger margin is a bug: the
command then ends with status 1.

Finished prompts are kept in `<json>.partial.jsonl`: an interrupted run goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.table import Table
from tqdm import tqdm

from benchmarks.system.partial import Record, append_record, partial_path, read_partial
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation, PlainPolicy, RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import (
    describe_drafters,
    describe_host,
    describe_target,
    git_revision,
)
from draftgym.drafters.loading import find_checkpoints, load_drafters
from draftgym.rollouts.decode.evaluation import check_writable, chosen_policies, plain_margins
from draftgym.rollouts.decode.interleaved import (
    DecodedText,
    DecodeSettings,
    encode_prompt,
    write,
    write_together,
)
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.report.rows import find_differences
from draftgym.rollouts.report.table import make_console

NEAR_TIE = 1e-3
"""Largest margin (logits, or scores with noise) at which rounding explains a flipped token."""


@dataclass(frozen=True, kw_only=True)
class LosslessnessArgs:
    """What to compare.

    Attributes:
        json: Result file; finished prompts are kept beside it until it is written.
        per_category: Prompts of each category.
        max_new_tokens: Tokens per text at most.
        policies: Which ones; default: every policy there is, the shipped router included.
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        threads: CPU threads; default: every core this process may use.
        seed: Seed of the sampling noise at temperature 1 (and of the random policy).
    """

    json: Path
    per_category: int = 12
    max_new_tokens: int = 96
    policies: tuple[str, ...] | None = None
    prompts: str = "heldout"
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    threads: int | None = None
    seed: int = 0

    @property
    def modes(self) -> dict[str, DecodeSettings]:
        """The two rules that promise plain decoding's text."""
        return {
            "greedy": DecodeSettings(self.max_new_tokens, 0.0, self.seed, "greedy"),
            "coupled": DecodeSettings(self.max_new_tokens, 1.0, self.seed, "coupled"),
        }

    @property
    def partial(self) -> Path:
        """Where finished prompts are kept."""
        return partial_path(self.json)


def measure(args: LosslessnessArgs) -> dict[str, Any]:
    """Decodes what is still missing, prints the table, writes and returns the result.

    Raises:
        DraftgymError: Bad settings, or a partial file of other settings.
    """
    check_writable(args.json)
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.per_category)
    )
    target = load_target(args.target, "float32", args.threads)
    drafters = load_drafters(target, args.drafters)
    policies = chosen_policies(args.policies, drafters, target, args.seed)
    if PLAIN not in policies:
        policies = {**chosen_policies([PLAIN], drafters, target), **policies}
    settings = describe_settings(args, target, drafters, list(policies))
    records = read_partial(args.partial, settings)
    for mode, how in args.modes.items():
        done = {record["question_id"] for record in records if record["mode"] == mode}
        missing = [prompt for prompt in prompts if prompt.question_id not in done]
        records += decode_mode(mode, how, target, drafters, policies, missing, args.partial)
    revisions = list(dict.fromkeys(record["git_revision"] for record in records))
    environment = {**settings, **describe_target(target), **describe_host()}
    environment["git_revision"] = revisions[0] if len(revisions) == 1 else revisions
    result = summarise(records, list(policies), environment)
    print_result(result)
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    args.partial.unlink()
    return result


def decode_mode(
    mode: str,
    settings: DecodeSettings,
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
    prompts: Sequence[Prompt],
    partial: Path,
) -> list[Record]:
    """Decodes prompts in one mode, appending each one's record to the partial file."""
    records: list[Record] = []
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    others = {name: policy for name, policy in policies.items() if name != PLAIN}
    for prompt in tqdm(prompts, desc=f"{mode} float32", unit="prompt", mininterval=1.0):
        ids = encode_prompt(target, prompt)
        alone = write(plain, ids, settings)
        together = write_together(target, drafters, others, ids, settings)
        texts = [DecodedText(prompt, PLAIN, alone)]
        texts += [
            DecodedText(prompt, name, Generation(tokens)) for name, tokens in together.items()
        ]
        records.append(make_record(mode, settings, target, texts))
        append_record(partial, records[-1])
    return records


def make_record(
    mode: str, settings: DecodeSettings, target: Target, texts: Sequence[DecodedText]
) -> Record:
    """Compares one prompt's texts."""
    differences = find_differences(texts, lambda text: plain_margins(target, text.prompt, settings))
    prompt = texts[0].prompt
    return {
        "mode": mode,
        "question_id": prompt.question_id,
        "category": prompt.category,
        "git_revision": git_revision(),
        "tokens": {text.policy: len(text.generation.tokens) for text in texts},
        "differences": [asdict(one) for one in differences],
    }


def describe_settings(
    args: LosslessnessArgs, target: Target, drafters: Mapping[str, Drafter], policies: list[str]
) -> dict[str, Any]:
    """What must not change when a run goes on."""
    return {
        "fingerprint": target.fingerprint,
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        "policies": policies,
        "prompts": args.prompts,
        "per_category": args.per_category,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }


def summarise(
    records: Sequence[Record], policies: Sequence[str], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Counts per mode and policy, and every difference."""
    differences = [
        {"mode": record["mode"], **one} for record in records for one in record["differences"]
    ]
    rows = []
    for mode in dict.fromkeys(record["mode"] for record in records):
        mine = [record for record in records if record["mode"] == mode]
        for policy in policies:
            differing = [d for d in differences if d["mode"] == mode and d["policy"] == policy]
            rows.append(
                {
                    "mode": mode,
                    "policy": policy,
                    "prompts": len(mine),
                    "tokens": sum(record["tokens"][policy] for record in mine),
                    "identical_texts": len(mine) - len(differing),
                    "near_ties": len(differing) - len(larger_than_rounding(differing)),
                }
            )
    return {"environment": dict(environment), "rows": rows, "differences": differences}


def larger_than_rounding(differences: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Differences that no near tie explains."""
    return [d for d in differences if d["margin"] is None or d["margin"] > NEAR_TIE]


def print_result(result: Mapping[str, Any]) -> None:
    """The table and every difference."""
    facts, console = result["environment"], make_console()
    title = (
        "{target}, {dtype}, threads {threads}; up to {max_new_tokens} tokens; coupled: "
        "temperature 1, seed {seed}"
    ).format(**facts)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ["mode", "policy", "prompts", "tokens", "same text", "near ties", "different"]:
        justify = "left" if name in ("mode", "policy") else "right"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in result["rows"]:
        same, ties = row["identical_texts"], row["near_ties"]
        different = row["prompts"] - same - ties
        counts = [row["prompts"], row["tokens"], same, ties, different]
        table.add_row(row["mode"], row["policy"], *map(str, counts))
    console.print(table)
    if not result["differences"]:
        console.print("every text is plain decoding's, token for token")
    for one in result["differences"]:
        margin = "unknown" if one["margin"] is None else f"{one['margin']:.2g}"
        console.print(
            f"{one['mode']} {one['policy']}: {one['question_id']} from token {one['index']} "
            f"({one['plain_token']} -> {one['policy_token']}), margin {margin}",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    with exit_on_user_error():
        outcome = measure(tyro.cli(LosslessnessArgs, description=__doc__))
        sys.exit(1 if larger_than_rounding(outcome["differences"]) else 0)
