"""How many drafted tokens the target accepts, by draft position and category, in real decoding.

    $ python -m rollouts.acceptance --arm eagle3:4 --limit-per-category 4

Every round of every text counts alike. `accepted_k` is the share of rounds with at least k drafted
tokens on a path in which k were accepted; the acceptance length adds the target's own token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from decoding.arms import parse_arm
from decoding.decoder import SpeculativeDecoder
from decoding.drafting import Drafter
from decoding.errors import exit_on_user_error
from decoding.round import RoundRecord
from decoding.target import Target
from policies.fixed import FixedPolicy
from rollouts.options import DecodingOptions
from rollouts.prompt_sets import Prompt, interleave_categories, load_prompts


@dataclass(frozen=True, kw_only=True)
class AcceptanceArgs(DecodingOptions):
    """Measure a drafter's acceptance.

    Attributes:
        arm: Drafter and draft length (eagle3:4), or depth and nodes of a tree (eagle3:5x16).
        prompts: heldout, train, or a JSON-lines file.
        limit_per_category: Keep at most this many prompts of each category.
        json: Write the figures to this file.
    """

    arm: str = "eagle3:4"
    prompts: str = "heldout"
    limit_per_category: int | None = None
    json: Path | None = None


def decode_rounds(
    target: Target,
    drafters: Mapping[str, Drafter],
    arm: str,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, list[RoundRecord]]:
    """All rounds of an arm on the prompts, by category."""
    decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
    rounds: dict[str, list[RoundRecord]] = {prompt.category: [] for prompt in prompts}
    for prompt in tqdm(prompts, desc=f"held-out prompts, {arm}", leave=False):
        text = decoder.generate(prompt.text, max_new_tokens, temperature, seed)
        rounds[prompt.category] += [item.record for item in text.rounds]
    return rounds


def summarise(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Acceptance length and the share of rounds accepted up to each draft position."""
    committed = sum(len(record.committed) for record in rounds)
    result = {"acceptance_length": committed / max(1, len(rounds))}
    for position in range(1, max((record.depth for record in rounds), default=0) + 1):
        long = [record for record in rounds if record.depth >= position]
        kept = sum(record.accepted >= position for record in long)
        result[f"accepted_{position}"] = kept / len(long)
    return result


def measure_acceptance(args: AcceptanceArgs) -> dict[str, dict[str, float]]:
    """Decodes, prints and returns the figures per category and for `all`."""
    target, drafters = args.load()
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.limit_per_category)
    )
    rounds = decode_rounds(
        target, drafters, args.arm, prompts, args.max_new_tokens, args.temperature, args.seed
    )
    rounds["all"] = [record for records in rounds.values() for record in records]
    figures = {category: summarise(records) for category, records in rounds.items()}
    for category, values in figures.items():
        shown = " ".join(f"{value:.3f}" for value in values.values())
        print(f"{category:12} {shown}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    with exit_on_user_error():
        measure_acceptance(tyro.cli(AcceptanceArgs, description=__doc__))
