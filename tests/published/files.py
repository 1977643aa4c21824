"""Files of the form in which SpecDecode-Bench publishes traces, made by hand or at random."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def line(
    name: str, prompt: Sequence[int], tokens: Sequence[int], eagle: Sequence[int]
) -> dict[str, Any]:
    """A text; `eagle` tells what rounds commit, the prompt's pass first."""
    return {
        "id": name,
        "prompt_token_ids": list(prompt),
        "generated_token_ids": list(tokens),
        "acc_eagle": {"acc_len": list(eagle)},
        "acc_ngram": {"acc_len": [1] * len(tokens)},
    }


def random_line(name: str, length: int, rng: np.random.Generator) -> dict[str, Any]:
    """A text of few tokens, which repeats itself, with any acceptance."""
    prompt, tokens = rng.integers(3, 7, 12), rng.integers(3, 7, length)
    accepted = np.append(1, rng.integers(1, 22, length - 1))
    return line(name, prompt.tolist(), tokens.tolist(), accepted.tolist())


def write_files(folder: Path, sets: dict[str, list[dict[str, Any]]]) -> Path:
    """One file a data set; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, lines in sets.items():
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (folder / f"combined_{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def random_files(folder: Path, texts: int = 6, length: int = 40) -> Path:
    """Two data sets; of each the last text but one has another text's list, the last no round."""
    rng = np.random.default_rng(0)
    sets = {}
    for name in ("code", "math"):
        lines = [random_line(str(i), length + i, rng) for i in range(texts)]
        other = random_line("other", length, rng)
        other["acc_eagle"]["acc_len"].append(2)
        sets[name] = [*lines, other, random_line("short", 1, rng)]
    return write_files(folder, sets)
