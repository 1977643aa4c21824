"""Makes the target, trains heads on what it says of scenes, and measures them: all in one command.

    $ python -m benchmarks.multimodal.run --out runs/multimodal

All heads start as the shipped one of the language model inside (`start`), which has never seen an
image token, and learn for equally many updates: `eagle3` reads images like text, `vispec`
compresses them with two queries, `hidden` never sees them; `-vsd` are the first two under
`--objective vsd`. What is measured are the last weights of each. Interrupt it whenever you like:
the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from benchmarks.multimodal.acceptance import AcceptanceArgs, measure
from benchmarks.multimodal.accuracy import exactly_right
from benchmarks.multimodal.prompts import PromptsArgs, write_prompts
from benchmarks.multimodal.recipe import RecipeArgs, make_target
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.files import write_text
from draftgym.decoding.model.target import load_target
from draftgym.drafters.checkpoint import read_checkpoint, save_checkpoint
from draftgym.drafters.training.build import Eagle3Settings
from draftgym.drafters.training.data.corpus import load_corpus
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import Eagle3Args, train
from draftgym.drafters.training.objectives.losses import ObjectiveName
from draftgym.rollouts.responses.respond import RespondArgs, respond

VARIANTS: dict[str, tuple[int | None, ObjectiveName]] = {
    "eagle3": (None, "plain"),
    "vispec": (2, "plain"),
    "hidden": (0, "plain"),
    "eagle3-vsd": (None, "vsd"),
    "vispec-vsd": (2, "vsd"),
}
"""Queries for images, and the objective, of each head."""


@dataclass(frozen=True)
class RunArgs:
    """All of it."""

    out: Path
    """Folder of everything that is made."""
    recipe: RecipeArgs = field(default_factory=lambda: RecipeArgs(Path()))
    """The target; its `out` is not read."""
    prompts: PromptsArgs = field(default_factory=lambda: PromptsArgs(Path()))
    """What it is asked; its `out` is not read."""
    max_new_tokens: int = 80
    """Tokens per response at most."""
    updates: int = 150
    """Updates of every head."""
    batch_size: int = 4
    """Texts of each."""
    lr: float = 3e-4
    """Their peak learning rate."""
    init: Path = Path("checkpoints/eagle3-smollm2-135m")
    """The head that all start from."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which heads to train."""
    seed: int = 0
    """Of the heads' batches and queries."""
    device: str = "auto"
    """Where heads are trained and the target answers: auto (an accelerator if torch finds one),
    cpu, cuda, cuda:1, mps or xpu. The target itself is made on the processor."""
    threads: int | None = None
    """CPU threads; default: all cores."""


def run(args: RunArgs) -> Path:
    """Does what is missing; returns the file with the figures."""
    out, dtype = args.out, "bfloat16"
    folder = make_target(replace(args.recipe, out=out / "target", threads=args.threads))
    if not (out / "scenes" / "heldout.jsonl").is_file():
        write_prompts(replace(args.prompts, out=out / "scenes"))
    target = load_target(str(folder), dtype, args.threads, args.device)
    for name in ("train", "heldout"):
        respond(
            RespondArgs(
                out=out / "responses" / name,
                prompts=str(out / "scenes" / f"{name}.jsonl"),
                temperatures=(0.0,),
                max_new_tokens=args.max_new_tokens,
                target=str(folder),
                dtype=dtype,
                device=args.device,
                threads=args.threads,
            ),
            target,
        )
    start = out / "heads" / "start" / "latest"
    if not (start / "config.json").is_file():
        network, _ = read_checkpoint(args.init)
        start.mkdir(parents=True, exist_ok=True)
        save_checkpoint(network, start, target)
    heads = [start, *(_train(args, name, folder, start) for name in args.variants)]
    texts, file = out / "responses" / "heldout", out / "acceptance.json"
    body = measure(
        AcceptanceArgs(folder, texts, tuple(heads), None, dtype, args.device, args.threads)
    )
    read = load_corpus(texts, target.vocab_size, validation=0)
    body["exactly_right"] = exactly_right(target, read.train, args.prompts)
    write_text(file, json.dumps(body, indent=1) + "\n")
    return file


def _train(args: RunArgs, name: str, target: Path, start: Path) -> Path:
    """Trains a head; returns the folder of its last weights."""
    queries, objective = VARIANTS[name]
    folder = args.out / "heads" / name
    train(
        Eagle3Args(
            corpus=args.out / "responses" / "train",
            run=folder,
            features=args.out / "features",
            target=str(target),
            dtype="bfloat16",
            device=args.device,
            threads=args.threads,
            trainer=TrainerConfig(
                updates=args.updates,
                batch_size=args.batch_size,
                lr=args.lr,
                measure_minutes=0.0,
                seed=args.seed,
            ),
            objective=objective,
            init=start,
            drafter=Eagle3Settings(image_queries=queries),
        )
    )
    return folder / ("latest" if (folder / "latest").is_dir() else "checkpoint")


def main() -> None:
    """Command line."""
    print(f"figures: {run(tyro.cli(RunArgs, description=__doc__))}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
