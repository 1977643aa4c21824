"""What `train_drafter.py` does: settings in, checkpoint folder out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from decoding.target import load_target
from drafters.training.build import (
    DFlashSettings,
    Eagle3Settings,
    build_dflash,
    build_eagle3,
)
from drafters.training.corpus import load_corpus
from drafters.training.objective import Objective
from drafters.training.trainer import Trainer, TrainerConfig


@dataclass(frozen=True)
class DrafterArgs:
    """Settings that both drafters share."""

    corpus: Path
    """Parquet file (or folder) of the target's responses: columns prompt, response."""
    run: Path
    """Run folder; resumed when it exists."""
    target: str = "smollm2-135m"
    """Embedded target, Hugging Face folder, Hub id or .gguf file."""
    dtype: str = "auto"
    """auto, float32 or bfloat16."""
    threads: int | None = None
    """CPU threads; default: all cores."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The loop."""


@dataclass(frozen=True)
class Eagle3Args(DrafterArgs):
    """Train an EAGLE-3 head (autoregressive)."""

    run: Path = Path("runs/eagle3")
    drafter: Eagle3Settings = field(default_factory=Eagle3Settings)
    """The head and its objective."""


@dataclass(frozen=True)
class DFlashArgs(DrafterArgs):
    """Train a DFlash drafter (block diffusion)."""

    run: Path = Path("runs/dflash")
    drafter: DFlashSettings = field(default_factory=DFlashSettings)
    """The drafter and its objective."""


def train(args: Eagle3Args | DFlashArgs) -> Path:
    """Trains until the budget is spent; returns the checkpoint folder."""
    torch.manual_seed(args.trainer.seed)
    target = load_target(args.target, args.dtype, args.threads)
    print(f"target {target.name}: {target.precision}")
    corpus = load_corpus(args.corpus, target.vocab_size)
    print(f"corpus: {len(corpus.train)} texts, {corpus.response_tokens} response tokens")
    objective: Objective[Any]
    if isinstance(args, Eagle3Args):
        objective = build_eagle3(args.drafter, target, corpus)
    else:
        objective = build_dflash(args.drafter, target, corpus)
    trainer = Trainer(objective, target, corpus, args.run, args.trainer)
    trainer.run()
    print(f"checkpoint: {trainer.checkpoint}")
    return trainer.checkpoint
