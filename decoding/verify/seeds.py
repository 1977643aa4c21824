"""Seeds that are made from others: every text of a run has sampling noise of its own."""

from __future__ import annotations

import hashlib
import json

from draftgym.decoding.errors import DraftgymError

MOST = 2**31
"""Seeds of training are smaller: numpy's oldest generators, which SB3 seeds, take 32 bits."""


def text_seed(seed: int, question_id: str) -> int:
    """Seed of one text of a run, the same under every policy.

    Noise depends on seed, position and token alone. Under one seed for all, texts would draw the
    same noise at the same positions, and nobody could take them for independent.

    Args:
        seed: Seed of the run.
        question_id: Which prompt.
    """
    return derived_seed(seed, question_id)


def check_seed(seed: int, option: str = "--seed") -> None:
    """Raises `DraftgymError` for a seed that not every generator takes."""
    if not 0 <= seed < MOST:
        raise DraftgymError(f"{option} is {seed}", f"give a whole number from 0 to {MOST - 1}")


def derived_seed(*facts: int | str | float | None) -> int:
    """63 bits that depend on the facts alone (unlike `hash`, the same in every process)."""
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
