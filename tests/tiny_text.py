"""A tiny target that reads and writes text: one token per byte, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from draftgym.decoding.model.target import Target, wrap_model
from draftgym.drafters.checkpoint import save_checkpoint
from tests.tiny import ONE_THREAD, tiny_dflash, tiny_eagle3, tiny_model

VOCAB = 257  # the bytes and one end token
CATEGORIES = ("chat", "code", "math")


def byte_tokenizer() -> Any:
    """A byte-level tokenizer without merges: a letter is a token, an emoji is four.

    It names no token that ends a text: texts run to the token limit unless a test says otherwise.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>")


def text_model(seed: int = 0) -> Any:
    """Its weights."""
    return tiny_model(seed=seed, vocab_size=VOCAB)


def text_target() -> Target:
    """The target, in memory."""
    return wrap_model(text_model(), byte_tokenizer(), "tiny-text", ONE_THREAD)


def save_target(folder: Path, seed: int = 0) -> Path:
    """Saves the target as a Hugging Face folder."""
    text_model(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_drafters(target: Target, folder: Path) -> list[Path]:
    """Saves an EAGLE-3 and a DFlash checkpoint for the target."""
    drafters = {"eagle3": tiny_eagle3(target), "dflash": tiny_dflash(target)}
    for name, drafter in drafters.items():
        save_checkpoint(drafter.network, folder / name, target)
    return [folder / name for name in drafters]


def save_prompts(path: Path, per_category: int = 2) -> Path:
    """Writes a prompt file with three categories."""
    lines = [
        {"question_id": f"{kind}-{i}", "category": kind, "turns": [f"{kind} number {i}, please"]}
        for kind in CATEGORIES
        for i in range(per_category)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
