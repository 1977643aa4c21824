"""What a device drafts with: a small LM, or prompt lookup, and the tokenizer that it shares.

Neither needs the target. The shipped small LM leaves its embedding to its target; it is made a
whole model once, in the user's cache, and from then on read from there alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.embedded import cache_folder
from draftgym.decoding.model.prompts.messages import encode_messages
from draftgym.decoding.model.prompts.text import load_tokenizer
from draftgym.decoding.model.target import Target, load_target, resolve_target
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.loading import SHIPPED
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.drafters.small_lm.network import assemble_small_lm
from draftgym.drafters.small_lm.vocabulary import read_draft_ids, with_rows
from draftgym.serving.edge.protocol import vocabulary_fingerprint

NGRAM, SMALL = "ngram", "small"
SHIPPED_PART = SHIPPED / "small-lm-smollm2-135m"
WARM_UP = 8
"""Tokens of the drafts that tell how fast a device is."""


class DeviceText:
    """A text as its device has it (a `draftgym.decoding.drafting.DraftContext`).

    Args:
        prompt: Token ids.
        max_new_tokens: Tokens of the text at most.
        rule: How tokens are chosen.
    """

    def __init__(self, prompt: Sequence[int], max_new_tokens: int, rule: VerificationRule) -> None:
        self.rule, self.prompt_length = rule, len(prompt)
        self.token_ids = list(prompt)
        self._tokens = torch.zeros(len(prompt) + max_new_tokens, dtype=torch.long)
        self._tokens[: len(prompt)] = torch.tensor(list(prompt))

    @property
    def tokens(self) -> Tensor:
        """All token ids `[n]`."""
        return self._tokens[: len(self.token_ids)]

    @property
    def written(self) -> list[int]:
        """Those behind the prompt."""
        return self.token_ids[self.prompt_length :]

    @property
    def capacity(self) -> int:
        """Tokens there may be, prompt included."""
        return len(self._tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """What the target has written."""
        begin = len(self.token_ids)
        self.token_ids += tokens
        self._tokens[begin : len(self.token_ids)] = torch.tensor(list(tokens), dtype=torch.long)

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """A device has nothing of the target's."""
        return torch.empty(stop - start, 0)


@dataclass(frozen=True)
class Drafting:
    """A drafter with the tokenizer of its target.

    Attributes:
        drafter: The drafter.
        tokenizer: The transformers tokenizer; None where prompts are token ids.
        positions: Tokens of a text at most, prompt included; None for any.
        vocabulary: Fingerprint of the tokenizer.
    """

    drafter: Drafter
    tokenizer: Any
    positions: int | None
    vocabulary: str

    @property
    def name(self) -> str:
        """What schedulers call the drafter."""
        return self.drafter.name

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, in the chat template where there is one.

        Raises:
            DraftgymError: An empty prompt.
        """
        if not prompt.strip():
            raise DraftgymError("the prompt is empty", "give some text with --prompt")
        ids: list[int] = encode_messages(self.tokenizer, prompt, self.name, {}).tolist()
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def token_seconds(self, prompt: Sequence[int]) -> float:
        """Seconds that a drafted token takes here, measured; 0 of prompt lookup, as in cells."""
        if self.drafter.looks_up:
            return 0.0
        text = DeviceText(prompt, WARM_UP + 1, GreedyRule())
        state = self.drafter.new_state(text.capacity)
        self.drafter.catch_up(state, text)
        seconds = []
        for _ in range(3):  # the first one warms up
            begin = time.perf_counter()
            self.drafter.propose(state, text, DraftShape(WARM_UP))
            seconds.append((time.perf_counter() - begin) / WARM_UP)
        return min(seconds)


@dataclass(frozen=True, kw_only=True)
class DraftingArgs:
    """What a device drafts with.

    Attributes:
        drafter: small (the shipped small LM; its first use needs the target's files once), the
            folder of another small LM, or ngram (prompt lookup: no network, no weights).
        tokenizer: Of ngram: the target whose tokens are copied, by name or folder.
        dtype: Numbers of a small LM: auto, float32, bfloat16 or float16.
        device: Where a small LM computes: auto, cpu, cuda, cuda:1, mps or xpu.
        threads: CPU threads of a small LM.
    """

    drafter: str = SMALL
    tokenizer: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None


def load_drafting(args: DraftingArgs) -> Drafting:
    """Loads what a device drafts with.

    Raises:
        DraftgymError: There is no such thing, or it is damaged.
    """
    if args.drafter == NGRAM:
        who = f"target {args.tokenizer!r}"
        read = load_tokenizer(resolve_target(args.tokenizer), who)
        if read is None:
            raise DraftgymError(f"{who} has no tokenizer", "name a folder with tokenizer.json")
        return Drafting(NgramDrafter(), read, None, vocabulary_fingerprint(read, 0))
    folder = shipped_small_lm() if args.drafter == SMALL else user_path(args.drafter)
    if not (folder / "config.json").is_file():
        raise DraftgymError(
            f"{args.drafter!r} is no drafter of a device",
            "name ngram, small or the folder of a small LM",
        )
    model = load_target(str(folder), args.dtype, args.threads, args.device, "compact")
    return small_drafting(model, folder)


def small_drafting(model: Target, folder: Path | None = None) -> Drafting:
    """A small LM, which is loaded as any language model is, as a drafter.

    Args:
        model: The small LM.
        folder: Where it lies, with the tokens that it drafts where these are not all.
    """
    decoder, ids = model.compact, None
    if folder is not None:
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        ids = read_draft_ids(folder, config)
    if ids is not None:
        ids = ids.to(model.device)
        decoder = with_rows(decoder, ids, Products(model.precision.packed))
    drafter = SmallLMDrafter(decoder, rope_parameters=model.rope_parameters, draft_ids=ids)
    vocabulary = vocabulary_fingerprint(model.tokenizer, model.vocab_size)
    return Drafting(drafter, model.tokenizer, model.context_limit, vocabulary)


def shipped_small_lm() -> Path:
    """The shipped small LM as a whole model; made once, with its target."""
    weights = hashlib.sha256((SHIPPED_PART / "model.safetensors").read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "small-lm" / weights
    config = folder / "config.json"
    if not config.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # devices begin together
            if not config.is_file():
                target = load_target("smollm2-135m", "bfloat16", device="cpu")
                assemble_small_lm(SHIPPED_PART, folder, target)
    return folder
