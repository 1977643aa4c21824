"""Texts to train drafters on: a target's own responses, as token ids in Parquet files.

    column       type         what
    id           string       question id
    category     string       what kind of question
    temperature  float64      0 for greedy
    seed         int64        seed of the sampling noise
    prompt       list<int32>  token ids
    response     list<int32>  token ids, with the stop token where the target stopped by itself
    shown        string       where the prompt shows images, its messages as JSON; paths of images
                              are relative to the file's folder

`draftgym respond` writes all of these; training needs `prompt` and `response` alone, reads
`temperature` and `shown` where they are there, and ignores others. The schema's metadata holds one
JSON object under the key `draftgym`: schema version, target, fingerprint, dtype, settings,
versions, revision. A file without it is legal (it may come from elsewhere); one of another target
is refused.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.fingerprint import is_sampled, sampled_fingerprint
from draftgym.decoding.model.prompts.messages import Message
from draftgym.decoding.model.target import Target

SCHEMA_VERSION = 1
METADATA_KEY = b"draftgym"

LONGEST_TEXT = 768
"""Tokens of a training text; the rest is cut, since attention costs its square."""

SHORTEST_RESPONSE = 4
"""Response tokens that are left of a text, at least."""

SHAPE = "it must be Parquet with list columns `prompt` and `response` of token ids"


@dataclass(frozen=True)
class Text:
    """One prompt with the target's response.

    Attributes:
        tokens: Prompt and response `[n]`.
        prompt_length: How many of them are the prompt.
        temperature: At which the response was sampled; 0 for greedy, and where nobody says.
        question_id: Which question it answers; empty where nobody says.
        shown: The messages of a prompt that shows images; empty for others.
    """

    tokens: Tensor
    prompt_length: int
    temperature: float = 0.0
    question_id: str = ""
    shown: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Texts split into those to train on and a few to validate on.

    Attributes:
        train: To train on.
        validation: To validate on.
        too_long: Texts left out on request: their prompts leave no room for a response.
        too_short: Texts left out for an empty prompt or a response of few tokens.
    """

    train: list[Text]
    validation: list[Text]
    too_long: int = 0
    too_short: int = 0

    def describe(self) -> dict[str, int]:
        """How many texts became what."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "left_out_too_long": self.too_long,
            "left_out_too_short": self.too_short,
        }

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
    validation: int | Path = 40,
    seed: int = 0,
    hottest: float | None = None,
    target: Target | None = None,
    skip_long_prompts: bool = False,
) -> Corpus:
    """Reads a corpus.

    Args:
        path: Parquet file, or a folder of them.
        vocab: The target's vocabulary size; larger ids are refused.
        max_length: Longer texts are cut.
        validation: Questions set aside, chosen by the seed: one text of each (a greedy one where
            there is one) is validated on, and no other is trained on. Or another corpus, all of
            whose texts are validated on; then nothing is set aside.
        seed: Seed of that choice.
        hottest: Texts sampled at a higher temperature are left out; None keeps all.
        target: The target; files that name another one are refused.
        skip_long_prompts: Whether texts whose prompts leave no room for a response are left out.

    Raises:
        DraftgymError: Missing file or columns, ids of another tokenizer, responses of another
            target, prompts that leave no room for a response, too few texts.
    """
    texts, too_long, too_short = _usable(
        path, vocab, max_length, hottest, target, skip_long_prompts
    )
    if isinstance(validation, Path):
        held, *_ = _usable(validation, vocab, max_length, hottest, target, skip_long_prompts)
        for name, some in ((path, texts), (validation, held)):
            if not some:
                raise DraftgymError(f"{name} has no usable text", "name another corpus")
        return Corpus(texts, held, too_long, too_short)
    questions = _by_question(texts)
    if len(questions) <= validation:
        raise DraftgymError(
            f"{path} has {len(questions)} usable texts of different questions, fewer than the "
            f"{validation} to validate on",
            "give a corpus with more responses of at least 4 tokens, or name texts to validate on "
            "with --validation",
        )
    held_out, *kept = np.split(
        np.random.default_rng(seed).permutation(len(questions)), [validation]
    )
    held = [min(questions[i], key=lambda text: text.temperature) for i in held_out]
    train = [text for i in np.concatenate(kept) for text in questions[i]]
    return Corpus(train, held, too_long, too_short)


def _usable(
    path: Path,
    vocab: int,
    max_length: int,
    hottest: float | None,
    target: Target | None,
    skip_long_prompts: bool,
) -> tuple[list[Text], int, int]:
    """Texts with a prompt and a response; how many were left out as too long, and as too short."""
    read = _read_all(path, vocab, max_length, hottest, target)
    too_long = [text for text in read if text.prompt_length > max_length - SHORTEST_RESPONSE]
    if too_long and not skip_long_prompts:
        raise DraftgymError(
            f"{len(too_long)} of {len(read)} texts of {path} have prompts that leave no room for a "
            f"response: {_told(too_long)}; a text is cut to {max_length} tokens",
            "write responses to shorter prompts (draftgym respond --max-prompt-tokens "
            f"{max_length - SHORTEST_RESPONSE}), or leave them out with --skip-long-prompts",
        )
    texts = [
        text for text in read if 0 < text.prompt_length <= len(text.tokens) - SHORTEST_RESPONSE
    ]
    return texts, len(too_long), len(read) - len(too_long) - len(texts)


def read_texts(path: Path, target: Target) -> list[Text]:
    """All texts of a corpus in their order, whole and with whatever they lack.

    Raises:
        DraftgymError: Missing file or columns, ids of another tokenizer, or another target's texts.
    """
    return _read_all(path, target.vocab_size, None, None, target)


def _read_all(
    path: Path, vocab: int, max_length: int | None, hottest: float | None, target: Target | None
) -> list[Text]:
    shards = _shards_of(path)
    if target is not None:
        for shard in shards:
            _check_target(shard, target)
    return [text for shard in shards for text in _read(shard, vocab, max_length, hottest)]


def _by_question(texts: Sequence[Text]) -> list[list[Text]]:
    """Texts that answer one question, at several temperatures or over several turns, together."""
    questions = defaultdict[str, list[Text]](list)
    for number, text in enumerate(texts):
        # A further turn, 81#2, is answered behind the first one; no name is a question of its own.
        questions[text.question_id.partition("#")[0] or f"#{number}"].append(text)
    return list(questions.values())


def _told(some: list[Text]) -> str:
    """The first few, with their lengths, and how many more there are."""
    named = [f"{text.question_id or 'one'} ({text.prompt_length} tokens)" for text in some[:3]]
    return ", ".join([*named, *([f"{len(some) - 3} more"] if len(some) > 3 else [])])


def response_schema(metadata: dict[str, Any]) -> Any:
    """The pyarrow schema of a shard; `schema_version` is added to its metadata."""
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    columns = {
        "id": pyarrow.string(),
        "category": pyarrow.string(),
        "temperature": pyarrow.float64(),
        "seed": pyarrow.int64(),
        "prompt": tokens,
        "response": tokens,
        "shown": pyarrow.string(),
    }
    return described_schema(columns, metadata)


def described_schema(columns: Mapping[str, Any], metadata: dict[str, Any]) -> Any:
    """A pyarrow schema of some columns, with what `read_metadata` reads."""
    import pyarrow

    body = json.dumps({"schema_version": SCHEMA_VERSION, **metadata})
    return pyarrow.schema(columns.items(), metadata={METADATA_KEY: body.encode()})


def read_metadata(shard: Path) -> dict[str, Any]:
    """What a shard says about its origin; empty if it says nothing.

    Raises:
        DraftgymError: No Parquet file, or one of a newer version of this format.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        stored = (pyarrow.parquet.read_schema(shard).metadata or {}).get(METADATA_KEY)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DraftgymError(
            f"cannot read {shard}: {error}",
            f"{SHAPE}; if it was cut off, delete it and make its texts again",
        ) from error
    told = (stored or b"{}").decode("utf-8", "replace")
    body = parse_json(told, f"the description in {shard}", "delete it and make its texts again")
    if body and body.get("schema_version") != SCHEMA_VERSION:
        raise DraftgymError(
            f"{shard} has schema version {body.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}",
            "use the version of draftgym that wrote it, or make the responses again",
        )
    return body


def write_shown(messages: Sequence[Message], folder: Path) -> str:
    """The column `shown` of a prompt with images, in a file of a folder."""

    def relative(image: object) -> str:
        return os.path.relpath(str(image), folder)

    return json.dumps(list(messages), default=relative)


def read_shown(shown: str | None, folder: Path) -> tuple[Message, ...]:
    """What `write_shown` wrote; empty for nothing."""
    messages: list[dict[str, Any]] = json.loads(shown or "[]")
    for message in messages:
        if not isinstance(message["content"], str):
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = str(folder / part["image"])
    return tuple(messages)


def _shards_of(path: Path) -> list[Path]:
    """The Parquet files of a corpus in order: the file itself, or those in a folder."""
    if not path.exists():
        raise DraftgymError(f"no corpus at {path}", "give a Parquet file with --corpus")
    # Names that begin with a dot are shards that were being written when a run was killed.
    found = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if path.is_dir() and not found:
        raise DraftgymError(f"folder {path} holds no Parquet file", "name a corpus with --corpus")
    return found or [path]


def _check_target(shard: Path, target: Target) -> None:
    """Refuses a shard that another target wrote; one that does not say is accepted.

    Responses take long to write and name their target in a place that nobody edits. So those of
    older versions are accepted, too, if their sample of the weights is this target's.
    """
    metadata = read_metadata(shard)
    written_by = metadata.get("fingerprint")
    if written_by in (None, target.fingerprint):
        return
    older = is_sampled(written_by) and isinstance(target.decoder, Decoder)
    if older and written_by == sampled_fingerprint(target.compact):
        return
    raise DraftgymError(
        f"corpus {shard} was written by another target ({metadata.get('target')!r}, "
        f"fingerprint {written_by}; this one has {target.fingerprint})",
        "name the target that wrote it with --target, or write responses of this target with "
        "draftgym respond",
    )


def _read(path: Path, vocab: int, max_length: int | None, hottest: float | None) -> list[Text]:
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        said = [name for name in ("id", "temperature", "shown") if name in names]
        columns = ["prompt", "response", *said]
        if hottest is not None and "temperature" not in said:
            columns.append("temperature")  # its absence is an error
        rows = parquet.read_table(path, columns=columns).to_pylist()
        texts = [
            Text(
                torch.tensor(row["prompt"] + row["response"], dtype=torch.long)[:max_length],
                len(row["prompt"]),
                float(row.get("temperature") or 0.0),
                str(row.get("id") or ""),
                read_shown(row.get("shown"), path.parent),
            )
            for row in rows
            if hottest is None or row["temperature"] <= hottest
        ]
    except Exception as error:  # pyarrow raises many kinds
        raise DraftgymError(
            f"cannot read corpus {path}: {error}",
            f"{SHAPE} (and `temperature`, where texts are to be chosen by it)",
        ) from error
    for text in texts:
        strange = text.tokens[(text.tokens < 0) | (text.tokens >= vocab)]
        if len(strange):
            raise DraftgymError(
                f"corpus {path} holds token id {int(strange[0])}, the target has {vocab}",
                "use responses of this target",
            )
    return texts
