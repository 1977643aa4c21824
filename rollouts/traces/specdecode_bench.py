"""SpecDecode-Bench's traces (arXiv 2601.11580): Llama-3.1-8B with an EAGLE head on an H100, greedy.

One file a data set, one JSON line a text:

    {"id": "149", "prompt_token_ids": [..], "generated_token_ids": [..],
     "acc_eagle": {"acc_len": [..]}, "acc_ngram": {"acc_len": [..]}}

Entry i of a list is what the round commits that writes the i-th token: its anchor is the token
before. The first entry, always 1, is the prompt's own pass, which no drafter had a part in
(`docs/results/published.md` says how that is known).

EAGLE was run on the prompts once more, and its list belongs to the text here only if that wrote the
same text again. Where the lengths differ it did not, and the text is left out. Where they agree by
chance it did not either, and nothing shows that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json
from draftgym.rollouts.traces.published import PublishedText, PublishedTraces

SOURCE = "SpecDecode-Bench (arXiv 2601.11580; github.com/SpecDecode-Bench/simulator), greedy"
EAGLE, LONGEST = "eagle", 20
"""The network, and its longest draft: no list has a number above 21."""
ARMS = (
    *("eagle:1", "eagle:2", "eagle:3", "eagle:5", "eagle:8"),
    *("ngram:3", "ngram:8", "ngram:16", "suffix:8", "suffix:16"),
)
MAX_NEW_TOKENS = 8192
PREFIX = "combined_"
OTHER_TEXT = "EAGLE's list is of another text: its length is another"
NO_ROUND = "a single token, and no round"


def read_specdecode_bench(folder: Path) -> PublishedTraces:
    """Reads the `combined_*.jsonl` of a folder; a text is called `gsm8k/134`.

    Raises:
        DraftgymError: There is no such file, or one is damaged.
    """
    files = sorted(folder.glob(f"{PREFIX}*.jsonl")) if folder.is_dir() else []
    if not files:
        raise DraftgymError(
            f"no {PREFIX}*.jsonl in {folder}", "name the folder of SpecDecode-Bench's traces"
        )
    texts, left_out = list[PublishedText](), Counter[str]()
    for file in files:
        category = file.stem.removeprefix(PREFIX)
        for line in _lines(file):
            why = _why_left_out(line)
            if why is None:
                texts.append(_text(line, category))
            else:
                left_out[f"{category}: {why}"] += 1
    return PublishedTraces(
        source=SOURCE,
        target="Llama-3.1-8B-Instruct",
        longest={EAGLE: LONGEST},
        arms=ARMS,
        costs="llama3.1-8b-h100",
        max_new_tokens=MAX_NEW_TOKENS,
        texts=texts,
        left_out=dict(left_out),
    )


def _why_left_out(line: dict[str, Any]) -> str | None:
    if len(line["acc_eagle"]["acc_len"]) != len(line["generated_token_ids"]):
        return OTHER_TEXT
    return NO_ROUND if len(line["generated_token_ids"]) < 2 else None


def _text(line: dict[str, Any], category: str) -> PublishedText:
    return PublishedText(
        f"{category}/{line['id']}",
        category,
        line["prompt_token_ids"],
        line["generated_token_ids"],
        {EAGLE: line["acc_eagle"]["acc_len"][1:]},
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The texts of a file, checked."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, start=1):
            name, remedy = f"line {number} of {file}", "fetch the file again"
            line = parse_json(text, name, remedy)
            try:
                lists = (
                    line["prompt_token_ids"],
                    line["generated_token_ids"],
                    line["acc_eagle"]["acc_len"],
                )
                if not (isinstance(line["id"], str | int) and all(map(_are_counts, lists))):
                    raise TypeError("its id or its lists are of another kind")
            except (KeyError, TypeError) as error:
                raise DraftgymError(f"{name} is no text: {error!r}", remedy) from error
            yield line


def _are_counts(values: Any) -> bool:
    """Whether these are whole numbers, none below 0, as token ids and lengths are."""
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)
