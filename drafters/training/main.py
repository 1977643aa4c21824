"""What `train_drafter.py` does: settings in, checkpoint folder out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from decoding.drafting import Drafter
from decoding.errors import check_number
from decoding.provenance import check_run_folder, write_run_config
from decoding.target import Target, load_target
from drafters.checkpoint import load_drafter
from drafters.training.build import (
    DFlashSettings,
    Eagle3Settings,
    build_dflash,
    build_eagle3,
)
from drafters.training.corpus import LONGEST_TEXT, load_corpus
from drafters.training.objective import Objective
from drafters.training.trainer import Trainer, TrainerConfig

LONGEST_DRAFT = 64
"""Positions that a draft may reach behind the end of a text."""


@dataclass(frozen=True)
class DrafterArgs:
    """Settings that both drafters share.

    Attributes:
        corpus: Parquet file, or a folder of them, with the target's own responses: columns prompt
            and response, lists of token ids.
        run: Run folder; resumed when it holds a run. The drafter is in its folder checkpoint.
        target: The model to draft for: smollm2-135m (embedded), a Hugging Face folder, a .gguf
            file or a Hub id (owner/name).
        dtype: The target's numbers: auto (a probe picks the faster one), float32 or bfloat16.
        threads: CPU threads; default: every core this process may use.
        trainer: The training loop.
    """

    corpus: Path
    run: Path
    target: str = "smollm2-135m"
    dtype: str = "auto"
    threads: int | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class Eagle3Args(DrafterArgs):
    """Train an EAGLE-3 head: it drafts token by token from the target's hidden states.

    Attributes:
        drafter: The head and its objective.
    """

    run: Path = Path("runs/eagle3")
    drafter: Eagle3Settings = field(default_factory=Eagle3Settings)


@dataclass(frozen=True)
class DFlashArgs(DrafterArgs):
    """Train a DFlash drafter: it drafts a whole block in one pass (block diffusion).

    Attributes:
        drafter: The drafter and its objective.
    """

    run: Path = Path("runs/dflash")
    drafter: DFlashSettings = field(default_factory=DFlashSettings)


MeasureDrafter = Callable[[Target, Drafter], dict[str, float]]
"""Decodes held-out prompts with a drafter and names what came out."""


def train(args: Eagle3Args | DFlashArgs, measure: MeasureDrafter | None = None) -> Path:
    """Trains until the budget is spent.

    Args:
        args: Settings.
        measure: Live measurement, called now and then with the current weights.

    Returns:
        The checkpoint folder.
    """
    _check_args(args)
    torch.manual_seed(args.trainer.seed)
    target = load_target(args.target, args.dtype, args.threads)
    print(f"target {target.name}: {target.precision}")
    longest = min(LONGEST_TEXT, target.context_limit - LONGEST_DRAFT)
    corpus = load_corpus(args.corpus, target.vocab_size, longest)
    print(f"corpus: {len(corpus.train)} texts, {corpus.response_tokens} response tokens")
    objective: Objective[Any]
    if isinstance(args, Eagle3Args):
        objective = build_eagle3(args.drafter, target, corpus)
    else:
        objective = build_dflash(args.drafter, target, corpus)

    def measure_folder(folder: Path) -> dict[str, float]:
        return measure(target, load_drafter(folder, target)) if measure is not None else {}

    write_run_config(args.run, args, target)
    trainer = Trainer(objective, target, corpus, args.run, args.trainer, measure_folder)
    trainer.run()
    print(f"checkpoint: {trainer.checkpoint}")
    return trainer.checkpoint


def _check_args(args: Eagle3Args | DFlashArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    trainer, drafter = args.trainer, args.drafter
    check_number("--trainer.minutes", trainer.minutes, above=0)
    check_number("--trainer.batch-size", trainer.batch_size, least=1)
    check_number("--trainer.lr", trainer.lr, above=0)
    check_number("--trainer.warmup", trainer.warmup, least=0, most=0.99)
    check_number("--trainer.clip", trainer.clip, above=0)
    check_number("--trainer.save-minutes", trainer.save_minutes, least=0)
    check_number("--trainer.measure-minutes", trainer.measure_minutes, least=0)
    check_number("--trainer.seed", trainer.seed, least=0)
    check_number("--drafter.draft-vocab", drafter.draft_vocab, least=1)
    if isinstance(drafter, Eagle3Settings):
        check_number("--drafter.steps", drafter.steps, least=1, most=LONGEST_DRAFT)
        check_number("--drafter.decay", drafter.decay, above=0)
    else:
        check_number("--drafter.layers", drafter.layers, least=1)
        check_number("--drafter.block-size", drafter.block_size, least=2, most=LONGEST_DRAFT)
        check_number("--drafter.anchors", drafter.anchors, least=1)
        check_number("--drafter.gamma", drafter.gamma, above=0)
    check_run_folder(args.run)
