"""Texts to train drafters on: the target's own responses, as token ids in a Parquet file.

Columns: `prompt` and `response`, lists of token ids (a response ends with the stop token where the
target stopped by itself), and `temperature`, where there is one; others are ignored.
`draftgym.drafters.training.data.responses` describes the files that `draftgym respond` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.training.data.responses import check_target, shards_of

LONGEST_TEXT = 768
"""Tokens of a training text; the rest is cut, since attention costs its square."""


@dataclass(frozen=True)
class Text:
    """One prompt with the target's response.

    Attributes:
        tokens: Prompt and response `[n]`.
        prompt_length: How many of them are the prompt.
        temperature: At which the response was sampled; 0 for greedy, and where nobody says.
    """

    tokens: Tensor
    prompt_length: int
    temperature: float = 0.0


@dataclass(frozen=True)
class Corpus:
    """Texts split into those to train on and a few to validate on."""

    train: list[Text]
    validation: list[Text]

    @property
    def response_tokens(self) -> int:
        """Response tokens in the training part."""
        return sum(text.tokens.shape[0] - text.prompt_length for text in self.train)

    def token_counts(self, vocab: int) -> Tensor:
        """Occurrences of every token in the training responses, `[vocab]`."""
        responses = torch.cat([text.tokens[text.prompt_length :] for text in self.train])
        return torch.bincount(responses, minlength=vocab)

    def batches(self, size: int, seed: int, skip: int = 0) -> Iterator[list[Text]]:
        """Endless batches of texts of similar length, in an order that depends on the seed alone.

        Args:
            size: Texts per batch.
            seed: Seed of the order.
            skip: Batches already seen (resume).
        """
        epoch = 0
        while True:
            rng = np.random.default_rng((seed, epoch))
            jitter = rng.uniform(0, 32, len(self.train))
            lengths = np.array([text.tokens.shape[0] for text in self.train])
            order = np.argsort(lengths + jitter)  # similar lengths together: little padding
            groups = [order[i : i + size] for i in range(0, len(order), size)]
            for index in rng.permutation(len(groups)):
                if skip > 0:
                    skip -= 1
                    continue
                yield [self.train[i] for i in groups[index]]
            epoch += 1


def load_corpus(
    path: Path,
    vocab: int,
    max_length: int = LONGEST_TEXT,
    validation: int = 40,
    seed: int = 0,
    hottest: float | None = None,
    fingerprint: str | None = None,
) -> Corpus:
    """Reads a corpus.

    Args:
        path: Parquet file, or a folder of them.
        vocab: The target's vocabulary size; larger ids are refused.
        max_length: Longer texts are cut.
        validation: Texts set aside, chosen by the seed.
        seed: Seed of that choice.
        hottest: Texts sampled at a higher temperature are left out; None keeps all.
        fingerprint: The target's; files that name another one are refused.

    Raises:
        DraftgymError: Missing file or columns, ids of another tokenizer, responses of another
            target, too few texts.
    """
    shards = shards_of(path)
    if fingerprint is not None:
        for shard in shards:
            check_target(shard, fingerprint)
    read = (text for shard in shards for text in _read(shard, vocab, max_length, hottest))
    texts = [text for text in read if _usable(text)]
    if len(texts) <= validation:
        raise DraftgymError(
            f"{path} has {len(texts)} usable texts, fewer than the {validation} to validate on",
            "give a corpus with more responses of at least 4 tokens",
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    held, kept = order[:validation], order[validation:]
    return Corpus([texts[i] for i in kept], [texts[i] for i in held])


def _usable(text: Text) -> bool:
    return text.prompt_length > 0 and text.tokens.shape[0] - text.prompt_length >= 4


def _read(path: Path, vocab: int, max_length: int, hottest: float | None) -> list[Text]:
    import pyarrow.parquet as parquet

    try:
        said = "temperature" in parquet.read_schema(path).names
        columns = ["prompt", "response"] + (["temperature"] if said or hottest is not None else [])
        rows = parquet.read_table(path, columns=columns).to_pylist()
        if hottest is not None:
            rows = [row for row in rows if row["temperature"] <= hottest]
        texts = [
            Text(
                torch.tensor(row["prompt"] + row["response"], dtype=torch.long)[:max_length],
                len(row["prompt"]),
                float(row.get("temperature") or 0.0),
            )
            for row in rows
        ]
    except Exception as error:  # pyarrow raises many kinds
        raise DraftgymError(
            f"cannot read corpus {path}: {error}",
            "it must be Parquet with list columns `prompt` and `response` of token ids (and "
            "`temperature`, where texts are to be chosen by it)",
        ) from error
    for text in texts:
        strange = text.tokens[(text.tokens < 0) | (text.tokens >= vocab)]
        if len(strange):
            raise DraftgymError(
                f"corpus {path} holds token id {int(strange[0])}, the target has {vocab}",
                "use responses of this target",
            )
    return texts
