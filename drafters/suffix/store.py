"""Earlier responses to copy from: SuffixDecoding's global tree, as a folder.

    $ draftgym respond --prompts prompts.jsonl --out responses
    $ draftgym suffix-store --corpus responses --out store
    $ draftgym generate --drafters store --policy suffix

A store is made once and never grows while texts are written: a proposal must depend on the text
alone. In place of a tree, all positions are sorted by what stands before them, read backwards. The
occurrences of a text's last tokens then lie side by side, those of more tokens within those of
fewer, and two binary searches find each: eight bytes a token.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from safetensors.torch import save_file

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing, write_json
from draftgym.decoding.model.fingerprint import fits, other_target
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.formats.files import WEIGHTS, check_new_folder, read_json, read_tensors
from draftgym.drafters.suffix.matches import MOST, Match
from draftgym.drafters.training.data.corpus import read_texts

MODEL_TYPE = "suffix_store"
END = -1
"""Stands behind every response; no token has this id, so nothing is matched or copied across it."""
TOKENS = "tokens"
AGAIN = "make it again: draftgym suffix-store --corpus RESPONSES --out NEW_FOLDER"


class ResponseStore:
    """Responses, in an order in which the occurrences of a text's end lie side by side.

    Args:
        tokens: Responses one behind the other, each followed by `END`, `[n]`.
        longest: Most tokens that are matched.
    """

    def __init__(self, tokens: NDArray[np.int32], longest: int) -> None:
        self.longest = longest
        self.fingerprint = hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
        # With so many ends in front no context begins before the array.
        padded = np.concatenate([np.full(longest, END, dtype=np.int32), tokens])
        order = sorted_by_context(padded, longest)
        followed = order[order < len(padded) - 1]
        self._order = followed[(padded[followed] != END) & (padded[followed + 1] != END)]
        self._text, self._places = padded.data, self._order.data

    def matches(self, tokens: Sequence[int], never: Collection[int]) -> Iterator[Match]:
        """The occurrences of a text's last tokens, as `TextIndex.matches`.

        Of more than `MOST` occurrences as many are counted, at even distances in the order.
        """
        ranges: list[tuple[int, int, int]] = []
        low, high = 0, len(self._places)
        for length in range(1, min(self.longest, len(tokens)) + 1):
            token, size = tokens[-length], high - low
            if token in never:
                break
            low = bisect_left(self._places, token, low, high, key=self._before(length))
            high = bisect_right(self._places, token, low, high, key=self._before(length))
            if low == high:
                break
            if ranges and high - low == size:
                ranges.pop()
            ranges.append((length, low, high))
        for length, low, high in reversed(ranges):
            some = self._order[low : high : (high - low - 1) // MOST + 1]
            yield Match(length, self._text, (np.sort(some)[::-1] + 1).tolist())

    def _before(self, length: int) -> Callable[[int], int]:
        """Tells the token `length - 1` before a position."""
        text, back = self._text, length - 1
        return lambda place: text[place - back]


def sorted_by_context(tokens: NDArray[np.int32], depth: int) -> NDArray[np.int32]:
    """Positions, sorted by their token, then the token before it, and so on.

    Args:
        tokens: Token ids `[n]`.
        depth: How many tokens count; some more may.

    Returns:
        All positions `[n]`; those with equal contexts ascend.
    """
    ranks, reach = np.unique(tokens, return_inverse=True)[1], 1
    while reach < depth:  # ranks of contexts of twice the length from pairs of those
        before = np.concatenate([np.zeros(reach, dtype=ranks.dtype), ranks])[: len(ranks)]
        ranks = np.unique(ranks * len(tokens) + before, return_inverse=True)[1]
        reach *= 2
    return np.argsort(ranks, kind="stable").astype(np.int32)


def save_store(
    responses: Sequence[Sequence[int]], folder: Path, target: Target, most: int
) -> dict[str, Any]:
    """Writes a store; its `config.json`, which makes a folder one, appears last.

    Args:
        responses: Token ids of each, the oldest first.
        folder: New, or empty.
        target: Who wrote them.
        most: Tokens that are kept at most: the oldest responses that are too many are left out.

    Returns:
        What `config.json` says of it.

    Raises:
        DraftgymError: The folder is in use, or nothing is left.
    """
    check_new_folder(folder)
    kept: list[Sequence[int]] = []
    for response in reversed(responses):
        most -= len(response)
        if most < 0:
            break
        kept.append(response)
    size = sum(map(len, kept))
    if not size:
        raise DraftgymError(
            f"of {len(responses)} responses none is kept", "give more of them, or a larger --tokens"
        )
    tokens = [token for response in reversed(kept) for token in (*response, END)]
    told = {
        "target": target.name,
        "target_fingerprint": target.fingerprint,
        "responses": len(kept),
        "tokens": size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as partial:
        save_file({TOKENS: torch.tensor(tokens, dtype=torch.int32)}, partial)
    write_json(folder / "config.json", {"model_type": MODEL_TYPE, "draftgym": told})
    return told


def load_store(folder: Path, target: Target, longest: int) -> ResponseStore:
    """Reads a store, and sorts it.

    Args:
        folder: What `save_store` wrote.
        target: The target.
        longest: Most tokens that are matched.

    Raises:
        DraftgymError: It is damaged, or of another target.
    """
    told = read_json(folder).get("draftgym")
    carried = told.get("target_fingerprint") if isinstance(told, dict) else None
    if not fits(carried, target):
        key = "draftgym.target_fingerprint in its config.json"
        raise other_target(f"store of responses {folder}", carried, target, key, AGAIN)
    tensors = read_tensors(folder)
    tokens = tensors.get(TOKENS)
    if tokens is None or tokens.dtype != torch.int32 or tokens.dim() != 1 or len(tokens) < 2:
        raise DraftgymError(f"{folder} holds no responses", AGAIN)
    if tokens.min() < END or tokens.max() >= target.vocab_size or tokens[-1] != END:
        raise DraftgymError(f"{folder} holds token ids that {target.name!r} does not have", AGAIN)
    return ResponseStore(tokens.numpy(), longest)


@dataclass(frozen=True)
class StoreArgs:
    """What to keep.

    Attributes:
        corpus: Responses of the target: a folder of draftgym respond, or a Parquet file with the
            columns prompt and response.
        out: Folder to write; new, or empty. --drafters takes it.
        target: Who wrote them.
        tokens: Response tokens to keep at most; the oldest responses are left out.
    """

    corpus: Path
    out: Path
    target: str = "smollm2-135m"
    tokens: int = 1_000_000


def main(arguments: Sequence[str]) -> None:
    """`draftgym suffix-store`."""
    args = tyro.cli(StoreArgs, args=arguments, description=__doc__, prog="draftgym suffix-store")
    check_new_folder(args.out)
    target = load_target(args.target, "bfloat16", device="cpu")
    texts = read_texts(args.corpus, target)
    responses = [text.tokens[text.prompt_length :].tolist() for text in texts]
    told = save_store(responses, args.out, target, args.tokens)
    print(f"{args.out}: {told['responses']} of {len(texts)} responses, {told['tokens']} tokens")
