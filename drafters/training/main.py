"""Train a drafter on the target's own responses.

draftgym train-drafter eagle3 --corpus responses.parquet --trainer.minutes 45
draftgym train-drafter dflash --corpus responses.parquet --trainer.updates 2000
draftgym train-drafter small-lm --corpus responses.parquet --trainer.patience 3

A run folder is resumed when it exists. Watch it with `tensorboard --logdir runs`.
`torchrun --nproc-per-node 2 -m -- draftgym train-drafter ...` trains by two processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_text
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.generic.shared import TENSOR_PARALLEL
from draftgym.decoding.model.precision import choose_precision
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import sole_writer, write_run_config
from draftgym.drafters.dflash.network import default_taps as default_dflash_taps
from draftgym.drafters.eagle3.network import default_taps
from draftgym.drafters.training.build import (
    DFlashSettings,
    Eagle3Settings,
    build_dflash,
    build_eagle3,
)
from draftgym.drafters.training.data.corpus import LONGEST_TEXT, Corpus, load_corpus
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.drafters.training.loop.card import card
from draftgym.drafters.training.loop.parts import count_parts
from draftgym.drafters.training.loop.progress import TrainerConfig, check_trainer
from draftgym.drafters.training.loop.team import Team, joined
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.loop.watch import make_watch
from draftgym.drafters.training.objectives.losses import LossSettings, ObjectiveName, make_loss
from draftgym.drafters.training.objectives.objective import Objective, RecordedObjective
from draftgym.drafters.training.objectives.replay import (
    ReplayObjective,
    ReplaySettings,
    check_replay,
)
from draftgym.drafters.training.objectives.small_lm import SmallLMSettings, build_small_lm
from draftgym.drafters.training.objectives.unroll import Unroller
from draftgym.drafters.training.objectives.vsd import VSDObjective, VSDSettings

LONGEST_DRAFT = 64
"""Positions that a draft may reach behind the end of a text."""


@dataclass(frozen=True)
class DrafterArgs:
    """Settings that all drafters share."""

    corpus: Path
    """Parquet file (or folder) of the target's responses: columns prompt, response. Those to 40
    questions are set aside to measure on."""
    run: Path
    """Run folder; resumed when it exists. `checkpoint` in it is the trained drafter."""
    validation: Path | None = None
    """Other texts to measure on, of the same kind; then nothing of the corpus is set aside."""
    hottest: float | None = None
    """Leave out texts sampled at a higher temperature (column `temperature`); 0 keeps the greedy
    ones. Default: all."""
    skip_long_prompts: bool = False
    """Leave out texts whose prompts leave no room for a response, and count them; else they are
    refused before anything is trained."""
    features: Path | None = None
    """Folder where the target's hidden states are kept for later visits and other drafters (8 KB a
    token for the embedded target); default: the target runs at every visit."""
    target: str = "smollm2-135m"
    """Embedded target, Hugging Face folder, Hub id or .gguf file."""
    dtype: str = "auto"
    """auto (a probe picks the faster one; bfloat16 on an accelerator), float32, bfloat16 or float16
    (of the target's passes; its drafter then learns in float32)."""
    device: str = "auto"
    """Where target and drafter compute: auto (an accelerator that torch can use, else the
    processor), cpu, cuda, cuda:1, mps or xpu; for a target over several accelerators balanced,
    balanced_low_0, sequential or a .json file of transformers' device_map. A run may go on
    elsewhere than it began."""
    backend: Backend = "auto"
    """Whose pass runs the target: auto (draftgym's own where it computes what transformers
    computes, else transformers'), compact (draftgym's own), openvino (its own, compiled for few
    rows) or transformers."""
    threads: int | None = None
    """CPU threads; default: all cores."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The loop: budget, batches, measurements."""


@dataclass(frozen=True)
class RecordedSettings:
    """Knobs of the objectives on recorded text."""

    loss: LossSettings = field(default_factory=LossSettings)
    """The losses on recorded text."""


@dataclass(frozen=True)
class ObjectiveSettings(RecordedSettings):
    """Knobs of the objectives."""

    vsd: VSDSettings = field(default_factory=VSDSettings)
    """Variational training."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Training where verification found the drafter wrong."""


@dataclass(frozen=True)
class NeuralArgs(DrafterArgs):
    """Settings of the drafters that read the target's hidden states."""

    objective: ObjectiveName = "plain"
    """plain: cross-entropy, as the drafter was published. lk, lk-alpha: overlap with the target
    (arXiv 2602.23881). dpace: weights that follow the drafter (2605.18810). length: expected
    accepted length on recorded text. l2r: left to right, as drafts are verified: earlier positions
    weigh more, the first error counts extra, and so does the accepted share (2606.11552). replay:
    also where decoding with the drafter as it is now rejects its tokens (after 2605.29343). vsd:
    paths the drafter draws, verified by the target (2602.05774)."""
    init: Path | None = None
    """Checkpoint folder to start from; its sizes and vocabulary are kept."""
    terms: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """Knobs of the objectives."""


@dataclass(frozen=True)
class Eagle3Args(NeuralArgs):
    """Train an EAGLE-3 head (autoregressive)."""

    run: Path = Path("runs/eagle3")
    drafter: Eagle3Settings = field(default_factory=Eagle3Settings)
    """The head and its objective."""


@dataclass(frozen=True)
class DFlashArgs(NeuralArgs):
    """Train a DFlash drafter (block diffusion)."""

    run: Path = Path("runs/dflash")
    drafter: DFlashSettings = field(default_factory=DFlashSettings)
    """The drafter and its objective."""


@dataclass(frozen=True)
class SmallLMArgs(DrafterArgs):
    """Train a small language model (the target with most layers taken out)."""

    run: Path = Path("runs/small-lm")
    objective: Literal["plain", "lk", "lk-alpha"] = "plain"
    """plain: cross-entropy. lk, lk-alpha: overlap with the target (arXiv 2602.23881)."""
    init: Path | None = None
    """Small LM to start from; its draft vocabulary is kept where it has one."""
    terms: RecordedSettings = field(default_factory=RecordedSettings)
    """Knobs of the objective."""
    drafter: SmallLMSettings = field(default_factory=SmallLMSettings)
    """The network."""


def train(args: Eagle3Args | DFlashArgs | SmallLMArgs) -> Path:
    """Trains until the budget is spent, or until acceptance no longer rises.

    Args:
        args: Settings.

    Returns:
        The checkpoint folder, with the best measured weights.
    """
    _check_args(args)
    with (
        joined(args.device) as team,
        sole_writer(args.run, "--run") if team.leads else nullcontext(),
    ):
        return _train(args, team)


def _train(args: Eagle3Args | DFlashArgs | SmallLMArgs, team: Team) -> Path:
    _check_parts(args, count_parts(args.trainer, team.size))
    torch.manual_seed(args.trainer.seed)
    print(f"loading {args.target} and {args.corpus}")
    target = _load(args, team)
    print(f"target {target.name}: {target.precision}")
    longest = min(LONGEST_TEXT, target.context_limit - LONGEST_DRAFT)
    corpus = load_corpus(
        args.corpus,
        target.vocab_size,
        longest,
        40 if args.validation is None else args.validation,
        hottest=args.hottest,
        target=target,
        skip_long_prompts=args.skip_long_prompts,
    )
    left_out = f"; left out: {corpus.too_long} too long, {corpus.too_short} too short"
    print(
        f"corpus: {len(corpus.train)} texts, {corpus.response_tokens} response tokens"
        f"{left_out if corpus.too_long or corpus.too_short else ''}"
    )
    objective = _objective(args, target, corpus)

    facts = {"corpus": corpus.describe(), "processes": team.size}
    team.led(lambda: write_run_config(args.run, args, target, facts))
    features = _features(args, target, objective.tap_layers)
    watch = make_watch(target, features, corpus)
    print(f"{args.trainer.plan}; interrupt it when you like, the same command goes on")
    trainer = Trainer(objective, target, corpus, args.run, args.trainer, watch, features, team)
    trainer.run()
    team.led(lambda: write_text(trainer.checkpoint / "README.md", card(args.run)))
    print(f"checkpoint: {trainer.checkpoint}")
    return trainer.checkpoint


def _load(args: DrafterArgs, team: Team) -> Target:
    """The target, where this process computes."""
    dtype, threads = args.dtype, team.own_threads(args.threads)
    if team.size > 1:  # each would try which dtype is faster, and might find otherwise
        where = team.own_device(args.device)
        dtype = team.led(lambda: choose_precision(args.dtype, threads, where).dtype)
    return load_target(args.target, dtype, threads, team.own_device(args.device), args.backend)


def _objective(
    args: Eagle3Args | DFlashArgs | SmallLMArgs, target: Target, corpus: Corpus
) -> Objective:
    loss = make_loss(args.objective, args.terms.loss)
    if isinstance(args, SmallLMArgs):
        return build_small_lm(args.drafter, args.init, target, corpus, loss)
    unroller: Unroller[Any]
    if isinstance(args, Eagle3Args):
        unroller = build_eagle3(args.drafter, args.init, target, corpus)
    else:
        unroller = build_dflash(args.drafter, args.init, target, corpus)
    anchors = args.drafter.anchors
    if args.objective == "replay":
        features = _features(args, target, unroller.tap_layers)
        replay, texts = args.terms.replay, corpus.train
        return ReplayObjective(unroller, loss, replay, texts, features, anchors)
    if args.objective == "vsd":
        return VSDObjective(unroller, target, loss, args.terms.vsd, anchors)
    return RecordedObjective(unroller, loss, anchors)


def _features(args: DrafterArgs, target: Target, tap_layers: Sequence[int]) -> FeatureCache:
    """The target's states: those that this drafter reads, and those that others read by default."""
    layers = target.decoder.shape.layers
    usual = {*default_taps(layers), *default_dflash_taps(layers)}
    return FeatureCache(args.features, target, {*usual, *tap_layers})


def _check_args(args: DrafterArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    check_trainer(args.trainer)
    if args.device == TENSOR_PARALLEL:
        raise DraftgymError(
            "processes that train a drafter divide the texts, and cannot divide the target, too",
            "let one process spread it: --device balanced",
        )
    if isinstance(args, DFlashArgs) and (args.drafter.block_size or 2) < 2:
        raise DraftgymError(
            f"--drafter.block-size is {args.drafter.block_size}",
            "a block is the anchor and at least one mask: use 2 or more",
        )
    if isinstance(args, NeuralArgs) and args.objective == "replay":
        check_replay(args.terms.replay)


def _check_parts(args: DrafterArgs, parts: int) -> None:
    if isinstance(args, NeuralArgs) and args.objective == "replay" and parts > 1:
        raise DraftgymError(
            f"replay keeps one account of errors, and batches have {parts} parts",
            "train it by one process, in one part, or with another --objective",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-drafter`."""
    train(
        tyro.extras.subcommand_cli_from_dict(
            {"eagle3": Eagle3Args, "dflash": DFlashArgs, "small-lm": SmallLMArgs},
            args=arguments,
            description=__doc__,
            prog="draftgym train-drafter",
        )
    )
