"""Which objective trains the better drafter? Many checkpoints on the same held-out texts, exactly.

    $ python -m benchmarks.drafters.objectives --baseline init --control plain \
        --json runs/objectives.json --checkpoints init=checkpoints/eagle3-smollm2-135m \
        plain=runs/plain-0/checkpoint,runs/plain-1/checkpoint tv=runs/tv-0/checkpoint

The target writes each prompt's text once per temperature; no drafter changes it. What a drafter
would have proposed at each of its positions then tells the rounds of decoding, of chains and of
trees: under greedy and coupled verification the very rounds, under rejection their expectation
given the text (`draftgym.drafters.positions.recorded`). Acceptance lengths are compared over the
same prompts, with intervals from a paired bootstrap.

The JSON file has every prompt and is written after every checkpoint. The same command goes on where
it stopped, and measures no weights twice; checkpoints may be added. Texts and the target's features
(four bytes a number in float32, gigabytes for all prompts) stay in --texts for other runs.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.drafters.figures import Run, summarise, tables
from benchmarks.drafters.held_out_texts import HeldOutText, Recordings, write_texts
from benchmarks.drafters.measure import conditions, measure_drafter
from benchmarks.report import Json, show
from benchmarks.results import Result, environment, write_json
from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.costs.cost_model import read_cost_model
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import read_json, user_path
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.loading import load_folder
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.responses.respond import RespondArgs

__all__ = ["ObjectivesArgs", "compare_objectives", "tables"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ObjectivesArgs:
    """Compare drafter checkpoints on held-out texts.

    Attributes:
        checkpoints: What to compare, as name=folder, or name=folder,folder,... for several seeds of
            one objective.
        baseline: Name that all are compared with: the checkpoint that training began with.
        control: A second one: what the same training without the new objective gives.
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        limit_per_category: Keep at most this many prompts of each category.
        skip_long_prompts: Leave out prompts that do not fit the target, and count them.
        max_new_tokens: Tokens per text at most.
        temperatures: 0 is greedy; above, coupled and rejection verification are measured.
        shapes: What is drafted: lengths of chains (4) and trees as depth x nodes (4x8).
        detail: The shape that is shown category by category; default: the first.
        texts: Folder of the target's texts and features; filled by the first call.
        cost_model: Predict speed at temperature 0 by this cost model (JSON).
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        dtype: auto, float32 (rounds are then exactly those of decoding), bfloat16 or
            float16.
        device: auto (an accelerator if torch finds one), cpu, cuda, cuda:1, mps or xpu.
        threads: CPU threads; default: every core this process may use.
        seed: Of the sampled texts.
        json: Result file.
    """

    checkpoints: tuple[str, ...]
    baseline: str
    control: str | None = None
    prompts: str = "heldout"
    limit_per_category: int | None = None
    skip_long_prompts: bool = False
    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 1.0)
    shapes: tuple[str, ...] = ("4", "4x8")
    detail: str | None = None
    texts: Path = Path("runs/objectives-texts")
    cost_model: Path | None = None
    target: str = "smollm2-135m"
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    json: Path = Path("runs/objectives.json")

    @property
    def references(self) -> list[str]:
        """Whom all are compared with."""
        both = [self.baseline, *([self.control] if self.control else [])]
        return list(dict.fromkeys(both))

    @property
    def writing(self) -> RespondArgs:
        """How the texts are written."""
        return RespondArgs(
            out=self.texts,
            prompts=self.prompts,
            limit_per_category=self.limit_per_category,
            skip_long_prompts=self.skip_long_prompts,
            temperatures=self.temperatures,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            target=self.target,
            dtype=self.dtype,
            threads=self.threads,
        )


@dataclass(frozen=True)
class Known:
    """A checkpoint as it was found on disk before anything is measured.

    Attributes:
        folder: Where.
        fingerprint: Of its weights.
        drafter: Its kind's name, as in arms.
        lag: Positions that it leaves to its next draft.
        tap_layers: What it reads.
    """

    folder: Path
    fingerprint: str
    drafter: str
    lag: int
    tap_layers: tuple[int, ...]


def compare_objectives(args: ObjectivesArgs) -> Result:
    """Measures what is missing, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is measured.
    """
    folders = read_names(args)
    check_writable(args.json)
    model = None
    if args.cost_model is not None:
        model = read_cost_model(args.cost_model, "name a file that this program wrote")
    target = load_target(args.target, args.dtype, args.threads, args.device)
    known = {name: [_look(one, target, args) for one in of] for name, of in folders.items()}
    texts = write_texts(args.writing, target)
    result = _start(args, target, texts, known)
    _measure_missing(args, target, texts, known, result)
    measured = result["measured"]
    runs = {
        name: [Run(one.drafter, one.lag, measured[one.fingerprint]) for one in of]
        for name, of in known.items()
    }
    wanted = conditions(args.temperatures, args.shapes)
    detail = args.detail or args.shapes[0]
    result["shown"] = {
        "conditions": list(map(str, wanted)),
        "references": args.references,
        "by_category": [str(one) for one in wanted if one.shape == detail],
    }
    result["figures"] = summarise(texts, runs, wanted, args.references, model)
    write_json(args.json, result, indent=None)
    show(tables(result))
    return result


def read_names(args: ObjectivesArgs) -> dict[str, list[Path]]:
    """The folders of every objective; raises `DraftgymError` for settings that cannot work."""
    folders: dict[str, list[Path]] = {}
    for text in args.checkpoints:
        name, _, places = text.partition("=")
        paths = [user_path(place) for place in places.split(",") if place]
        if not name or not paths or name in folders:
            raise DraftgymError(
                f"--checkpoints has {text!r}",
                "write each name once, as in tv=runs/tv or tv=runs/tv-0,runs/tv-1",
            )
        folders[name] = paths
    for option, reference in (("--baseline", args.baseline), ("--control", args.control)):
        if reference is not None and reference not in folders:
            raise DraftgymError(
                f"{option} is {reference!r}, which --checkpoints does not name",
                f"choose from {', '.join(folders) or 'names that you give'}",
            )
    if not args.shapes or args.detail not in (None, *args.shapes):
        raise DraftgymError(
            f"--shapes are {list(args.shapes)}, --detail is {args.detail}",
            "name some shapes, such as 4 4x8, and one of them for --detail",
        )
    return folders


def _look(folder: Path, target: Target, args: ObjectivesArgs) -> Known:
    drafter = load_folder(folder, target)
    _arms(drafter, args.shapes)
    facts = (drafter.fingerprint, drafter.name, drafter.lag, drafter.tap_layers)
    return Known(folder, *facts)


def _arms(drafter: Drafter, shapes: Sequence[str]) -> list[Arm]:
    arms = [parse_arm(f"{drafter.name}:{shape}") for shape in shapes]
    check_arms(arms, {drafter.name: drafter})
    return arms


def _start(
    args: ObjectivesArgs,
    target: Target,
    texts: Sequence[HeldOutText],
    known: Mapping[str, Sequence[Known]],
) -> Result:
    """What the result file says, with what an earlier run measured in it."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": target.fingerprint,
        "dtype": target.precision.dtype,
        "texts": _hash(texts),
        "max_new_tokens": args.max_new_tokens,
        "temperatures": list(args.temperatures),
        "shapes": list(args.shapes),
        "seed": args.seed,
    }
    return {
        "benchmark": "benchmarks.drafters.objectives",
        "environment": environment(args, target),
        "settings": settings,
        "texts": [
            {
                "question_id": one.question_id,
                "category": one.category,
                "temperature": one.temperature,
                "prompt_tokens": one.text.prompt_length,
                "tokens": one.decoded,
            }
            for one in texts
        ],
        "checkpoints": {
            name: [{"folder": str(one.folder), "fingerprint": one.fingerprint} for one in of]
            for name, of in known.items()
        },
        "measured": _measured_before(args.json, settings),
    }


def _hash(texts: Sequence[HeldOutText]) -> str:
    """A short hash of all texts, in their order."""
    made = hashlib.sha256()
    for one in texts:
        made.update(f"{one.question_id} {one.temperature} {one.seed}".encode())
        made.update(one.text.tokens.numpy().tobytes())
    return made.hexdigest()[:16]


def _measured_before(path: Path, settings: Json) -> Result:
    """What the file has, by fingerprint; raises `DraftgymError` if it has other settings."""
    if not path.exists():
        return {}
    remedy = "name another file with --json, or delete this one"
    try:
        body = read_json(path, remedy)
        before, measured = body["settings"], dict(body["measured"])
    except DraftgymError as error:
        raise DraftgymError(f"{path} holds no results: {error.problem}", remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DraftgymError(
            f"{path} holds no results of this command: {error!r}", remedy
        ) from error
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise DraftgymError(f"{path} was measured with other {', '.join(changed)}", remedy)
    return measured


def _measure_missing(
    args: ObjectivesArgs,
    target: Target,
    texts: Sequence[HeldOutText],
    known: Mapping[str, Sequence[Known]],
    result: Result,
) -> None:
    """Measures weights that were not measured yet, one checkpoint after the other."""
    every = [one for of in known.values() for one in of]
    missing = {one.fingerprint: one for one in every if one.fingerprint not in result["measured"]}
    if not missing:
        return
    layers = {layer for one in every for layer in one.tap_layers}
    recordings = Recordings(args.texts, target, texts, layers, args.max_new_tokens)
    recordings.prepare()
    for number, (fingerprint, one) in enumerate(missing.items(), start=1):
        print(f"measuring {one.folder} ({number} of {len(missing)})", file=sys.stderr)
        drafter = load_folder(one.folder, target)
        arms = _arms(drafter, args.shapes)
        result["measured"][fingerprint] = measure_drafter(drafter, recordings, arms, args.shapes)
        write_json(args.json, result, indent=None)


if __name__ == "__main__":
    with exit_on_user_error():
        compare_objectives(tyro.cli(ObjectivesArgs, description=__doc__))
