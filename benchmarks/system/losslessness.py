"""Does every policy write plain decoding's text, token for token? Float32, held-out prompts.

    $ python -m benchmarks.system.losslessness --json losslessness.json
    $ python -m benchmarks.system.losslessness --per-category 1 --json quick.json

Every prompt is written greedily (temperature 0) and with coupled noise (temperature 1, its own),
by plain decoding alone and by every policy; the policies' rounds share their verification passes,
which is the harder test. One pass over several rows and several passes over one row
round differently, so a near tie between two tokens may flip; such a text is reported with the
margin that plain decoding's token had there. A difference with a larger margin is a bug: the
command then ends with status 1.

Finished prompts are kept in `<json>.partial.jsonl`: an interrupted run goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.report import Json, Table, number
from benchmarks.results import Partial, PromptOptions, Record, Result, check, environment, finish
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation, PlainPolicy, RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import git_revision
from draftgym.rollouts.decode.evaluation import chosen_policies, plain_margins
from draftgym.rollouts.decode.fitting import encode_prompt
from draftgym.rollouts.decode.interleaved import (
    DecodedText,
    DecodeSettings,
    write,
    write_together,
)
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.rows import find_differences

NEAR_TIE = 1e-3
"""Largest margin (logits, or scores with noise) at which rounding explains a flipped token."""


@dataclass(frozen=True, kw_only=True)
class LosslessnessArgs(PromptOptions):
    """What to compare.

    Attributes:
        json: Result file; finished prompts are kept beside it until it is written.
        policies: Which ones; default: every policy there is, the shipped router included.
        seed: Seed of the sampling noise at temperature 1 (and of the random policy).
    """

    json: Path
    per_category: int = 12
    policies: tuple[str, ...] | None = None
    seed: int = 0

    @property
    def modes(self) -> dict[str, DecodeSettings]:
        """The two rules that promise plain decoding's text."""
        return {
            "greedy": DecodeSettings(self.max_new_tokens, 0.0, self.seed, "greedy"),
            "coupled": DecodeSettings(self.max_new_tokens, 1.0, self.seed, "coupled"),
        }


def measure(args: LosslessnessArgs) -> Result:
    """Decodes what is still missing, shows and writes the result.

    Raises:
        DraftgymError: Bad settings, or a partial file of other settings.
    """
    check(args)
    prompts = args.load_prompts()
    target, drafters = args.load()
    fitted = args.fit(target, prompts)
    policies = chosen_policies(args.policies, drafters, target, args.seed)
    if PLAIN not in policies:
        policies = {**chosen_policies([PLAIN], drafters, target), **policies}
    facts = environment(args, target, drafters)
    fixed = ("fingerprint", "drafters")
    options = ("prompts", "per_category", "max_new_tokens", "seed")
    settings = {name: facts[name] for name in fixed} | {"policies": list(policies)}
    partial = Partial(args.json, settings | {name: getattr(args, name) for name in options})
    for mode, how in args.modes.items():
        done = {record["question_id"] for record in partial.records if record["mode"] == mode}
        missing = [prompt for prompt in fitted.prompts if prompt.question_id not in done]
        for prompt in tqdm(missing, desc=f"{mode} float32", unit="prompt", mininterval=1.0):
            texts = decode(prompt, how, target, drafters, policies)
            partial.add({"mode": mode, **compare(texts, how, target)})
    revisions = list(dict.fromkeys(record["git_revision"] for record in partial.records))
    figures = summarise(partial.records, list(policies))
    told = {"git_revisions": revisions} | fitted.describe()
    result = finish(tables, args, figures, target, drafters, told)
    partial.done()
    return result


def decode(
    prompt: Prompt,
    how: DecodeSettings,
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
) -> list[DecodedText]:
    """One prompt by plain decoding alone, and by all others together."""
    ids, how = encode_prompt(target, prompt), how.of(prompt)
    alone = write(SpeculativeDecoder(target, {}, PlainPolicy()), ids, how)
    others = {name: policy for name, policy in policies.items() if name != PLAIN}
    together = write_together(target, drafters, others, ids, how)
    texts = {PLAIN: alone} | {name: Generation(tokens) for name, tokens in together.items()}
    return [DecodedText(prompt, name, text) for name, text in texts.items()]


def compare(texts: Sequence[DecodedText], how: DecodeSettings, target: Target) -> Record:
    """One prompt's texts against plain decoding's."""
    differences = find_differences(texts, lambda text: plain_margins(target, text.prompt, how))
    return {
        "question_id": texts[0].prompt.question_id,
        "category": texts[0].prompt.category,
        "git_revision": git_revision(),
        "tokens": {text.policy: len(text.generation.tokens) for text in texts},
        "differences": [asdict(one) for one in differences],
    }


def summarise(records: Sequence[Record], policies: Sequence[str]) -> Result:
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
    return {"rows": rows, "differences": differences}


def larger_than_rounding(differences: Iterable[Json]) -> list[Json]:
    """Differences that no near tie explains."""
    return [d for d in differences if d["margin"] is None or d["margin"] > NEAR_TIE]


def tables(result: Json) -> list[Table]:
    """The table, and every difference below it."""
    title = (
        "{target}, {dtype}, threads {threads}; up to {settings[max_new_tokens]} tokens; coupled: "
        "temperature 1, seed {settings[seed]}"
    )
    columns = {
        "mode": number("mode", ""),
        "policy": number("policy", ""),
        "prompts": number("prompts", ""),
        "tokens": number("tokens", ""),
        "same text": number("identical_texts", ""),
        "near ties": number("near_ties", ""),
        "different": lambda one: str(one["prompts"] - one["identical_texts"] - one["near_ties"]),
    }
    notes = [_told(one) for one in result["differences"]]
    notes = notes or ["every text is plain decoding's, token for token"]
    return [Table.of(title.format(**result["environment"]), result["rows"], columns, notes=notes)]


def _told(one: Json) -> str:
    margin: Any = "unknown" if one["margin"] is None else f"{one['margin']:.2g}"
    return (
        f"{one['mode']} {one['policy']}: {one['question_id']} from token {one['index']} "
        f"({one['plain_token']} -> {one['policy_token']}), margin {margin}"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        outcome = measure(tyro.cli(LosslessnessArgs, description=__doc__))
        sys.exit(1 if larger_than_rounding(outcome["differences"]) else 0)
