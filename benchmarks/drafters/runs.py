"""Trains one drafter with many objectives, from one checkpoint, equally long, and compares them.

    $ python -m benchmarks.drafters.runs eagle3 --corpus responses \
        --init checkpoints/eagle3-smollm2-135m

The controls train on the recorded text; left-to-right training and VSD are also run without each of
their terms, VSD also with other numbers of paths. What is compared
(`benchmarks.drafters.objectives`), on held-out prompts, are the last weights of each run: the best
that it met may be those it started from. Interrupt it whenever you like: the same command goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.drafters.objectives import ObjectivesArgs, compare_objectives
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.drafters.training.build import DFlashSettings, Eagle3Settings
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import DFlashArgs, Eagle3Args, ObjectiveSettings, train
from draftgym.drafters.training.objectives.losses import LossSettings, ObjectiveName
from draftgym.drafters.training.objectives.replay import ReplaySettings
from draftgym.drafters.training.objectives.vsd import VSDSettings


@dataclass(frozen=True)
class Variant:
    """An objective and the settings in which it differs from its defaults.

    Attributes:
        objective: Its name.
        loss: Fields of `LossSettings`; the decay is else the drafter's.
        vsd: What VSD is run with.
        replay: What replay is run with.
    """

    objective: ObjectiveName
    loss: Mapping[str, Any] = field(default_factory=dict)
    vsd: VSDSettings = field(default_factory=VSDSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)

    def terms(self, decay: float) -> ObjectiveSettings:
        """All settings of the objective, for a drafter whose draft position k weighs decay ** k."""
        loss = LossSettings(**{"decay": decay, **self.loss})
        return ObjectiveSettings(loss, self.vsd, self.replay)


def _vsd(**settings: Any) -> Variant:
    return Variant("vsd", vsd=VSDSettings(**settings))


VARIANTS: dict[str, Variant] = {
    "plain": Variant("plain"),
    "lk": Variant("lk"),
    "dpace": Variant("dpace"),
    "length": Variant("length"),
    "l2r": Variant("l2r"),
    "l2r-chain-10": Variant("l2r", {"chain": 10.0}),
    "l2r-no-weights": Variant("l2r", {"decay": 1.0}),
    "l2r-no-focal": Variant("l2r", {"focal": 0.0}),
    "l2r-no-chain": Variant("l2r", {"chain": 0.0}),
    "replay": Variant("replay"),
    "replay-rounds": Variant("replay", replay=ReplaySettings(where="round")),
    "replay-only": Variant("replay", replay=ReplaySettings(share=1.0)),
    "vsd": _vsd(),
    "vsd-greedy": _vsd(temperature=0.0),
    "vsd-no-filter": _vsd(oracle_filter=False),
    "vsd-no-weights": _vsd(weighting="uniform"),
    "vsd-no-regulariser": _vsd(confidence=0.0),
    "vsd-no-anchor": _vsd(anchor=0.0),
    "vsd-no-tree": _vsd(tree_nodes=0),
    "vsd-whole-path": _vsd(whole_path=True),
    "vsd-1-path": _vsd(paths=1),
    "vsd-16-paths": _vsd(paths=16),
}
"""Every objective and ablation that is compared."""

DECAY = {"eagle3": 0.8, "dflash": 0.78}
"""Weight of draft position k is DECAY ** k, as each drafter was published."""


@dataclass(frozen=True)
class CompareSettings:
    """What is measured on held-out prompts.

    Attributes:
        limit_per_category: Keep at most this many prompts of each category.
        max_new_tokens: Tokens per text at most.
        temperatures: 0 is greedy; above, coupled and rejection verification are measured.
        shapes: Lengths of chains (4) and trees as depth x nodes (4x8).
        cost_model: Predict speed at temperature 0 by this cost model (JSON).
    """

    limit_per_category: int | None = None
    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 1.0)
    shapes: tuple[str, ...] = ("2", "4", "4x8")
    cost_model: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectiveRunsArgs:
    """What to train.

    Attributes:
        drafter: Which drafter.
        corpus: The target's responses (see train_drafter.py).
        init: Checkpoint folder that all runs start from.
        validation: Texts to measure on; default: some of the corpus.
        anchors: Random anchors per text and visit; default: the drafter's.
        out: Folder of the runs, one per variant and seed.
        variants: Only these; default: all.
        seeds: Seeds of each of `repeated`; the others take the first.
        repeated: Variants that are run with all seeds.
        hottest: Leave out texts sampled at a higher temperature.
        features: Folder of the target's hidden states, shared by all runs.
        target: smollm2-135m (embedded), a Hugging Face folder, a Hub id or a .gguf file.
        dtype: auto, float32, bfloat16 or float16.
        device: auto (an accelerator if torch finds one), cpu, cuda, cuda:1, mps or xpu.
        threads: CPU threads; default: all cores.
        trainer: The loop; its seed is replaced.
        prompts: heldout or train (shipped sets), or a JSON-lines file, to compare on.
        compare: What to measure in the end.
    """

    drafter: tyro.conf.Positional[Literal["eagle3", "dflash"]]
    corpus: Path
    init: Path
    validation: Path | None = None
    anchors: int | None = None
    out: Path = Path("runs/objectives")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    repeated: tuple[str, ...] = ("plain", "lk", "vsd")
    hottest: float | None = 0.0
    features: Path | None = Path("runs/features")
    target: str = "smollm2-135m"
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    prompts: str = "heldout"
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(updates=90, measure_updates=30, batch_size=6, lr=3e-4)
    )
    compare: CompareSettings = field(default_factory=CompareSettings)


def planned_runs(args: ObjectiveRunsArgs) -> Iterator[Eagle3Args | DFlashArgs]:
    """The trainings, in order: the first seed of every variant before the other seeds."""
    for seed in args.seeds:
        for name in args.variants:
            if seed != args.seeds[0] and name not in args.repeated:
                continue
            variant = VARIANTS[name]
            kind: Any = Eagle3Args if args.drafter == "eagle3" else DFlashArgs
            settings: Any = Eagle3Settings() if args.drafter == "eagle3" else DFlashSettings()
            if args.anchors is not None:
                settings = replace(settings, anchors=args.anchors)
            yield kind(
                corpus=args.corpus,
                validation=args.validation,
                drafter=settings,
                run=args.out / args.drafter / f"{name}-{seed}",
                hottest=args.hottest,
                features=args.features,
                target=args.target,
                dtype=args.dtype,
                device=args.device,
                threads=args.threads,
                trainer=replace(args.trainer, seed=seed),
                objective=variant.objective,
                init=args.init,
                terms=variant.terms(DECAY[args.drafter]),
            )


def comparison(args: ObjectiveRunsArgs, runs: Sequence[Path]) -> ObjectivesArgs:
    """The comparison of finished runs, each named variant-seed."""
    folders: dict[str, list[str]] = {"init": [str(args.init)]}
    for run in runs:
        last = run / "latest"  # not there if no text set aside is greedy: then nothing is watched
        weights = last if last.exists() else run / "checkpoint"
        folders.setdefault(run.name.rpartition("-")[0], []).append(str(weights))
    return ObjectivesArgs(
        checkpoints=tuple(f"{name}={','.join(paths)}" for name, paths in folders.items()),
        baseline="init",
        control="plain" if "plain" in folders else None,
        prompts=args.prompts,
        texts=args.out / "texts",
        target=args.target,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        json=args.out / f"{args.drafter}.json",
        **vars(args.compare),
    )


def main(args: ObjectiveRunsArgs) -> None:
    """Runs all trainings, one after the other, then the comparison.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check_variants(args)
    runs = list(planned_runs(args))
    for number, run in enumerate(runs, start=1):
        print(f"\n{run.run} ({number} of {len(runs)})")
        train(run)
    compare_objectives(comparison(args, [run.run for run in runs]))


def check_variants(args: ObjectiveRunsArgs) -> None:
    """Raises `DraftgymError` for names that no variant has."""
    strange = sorted({*args.variants, *args.repeated} - set(VARIANTS))
    if strange or not args.seeds:
        raise DraftgymError(
            f"no such variants: {', '.join(strange)}" if strange else "--seeds is empty",
            f"choose from {', '.join(VARIANTS)}, and give at least one seed",
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(ObjectiveRunsArgs, description=__doc__))
