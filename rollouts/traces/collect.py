"""Collect traces: what every arm would do at every position of texts that the target writes.

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym collect --prompts heldout --out runs/heldout --arms eagle3:2 ngram:8
    $ python train_router.py --traces runs/traces

Routers are trained, compared and bounded on traces thousands of times faster than by decoding, with
the same rounds (`draftgym.rollouts.replay.replay`). Interrupt the command whenever you like: the
same command goes on where it stopped. Other prompts may be added to a folder, other arms, weights
or settings not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

from draftgym.decoding.arms import Arm, check_arms, parse_arm, single_arms
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import describe_device, describe_host, note_other_device
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.seeds import text_seed
from draftgym.rollouts.decode.batched import Request, next_requests, requests_of_run
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.decode.options import DecodingOptions
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts
from draftgym.rollouts.traces.counterfactual import hash_prompt, trace_texts
from draftgym.rollouts.traces.file import read_done, read_origin, read_traces, trace_table
from draftgym.rollouts.traces.shards import ShardWriter, shards_in, sole_writer
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet

DEFAULT_ARMS = (
    *("eagle3:1", "eagle3:2", "eagle3:3", "eagle3:4", "eagle3:3x6", "eagle3:4x8"),
    *("dflash:1", "dflash:2", "dflash:4", "dflash:3x6", "dflash:4x8"),
    *("ngram:3", "ngram:8", "ngram:16", "suffix:8", "suffix:16"),
)
"""Small arms of every drafter that is no language model itself; `plain` needs no trace. What the
drafters at hand cannot draft, or the target cannot verify, is left out."""


@dataclass(frozen=True, kw_only=True)
class CollectArgs(DecodingOptions):
    """What to trace.

    Attributes:
        out: Folder of the traces; a run that was interrupted goes on there.
        arms: What is asked at every position: drafters with draft lengths (eagle3:4) or trees
            (eagle3:5x16). Chains of one drafter cost no more than its longest. Default: small arms
            of the drafters that are there, trees among them where the target verifies trees.
        prompts: train or heldout (shipped sets), or a JSON-lines file with question_id, category,
            turns and perhaps system. All turns are traced, each behind the target's own answers to
            those before; the second turn of question 81 is called 81#2. Train routers on train,
            report on heldout.
        categories: Keep only these categories.
        limit_per_category: Keep at most this many prompts of each category.
        turns: Trace at most this many turns of each prompt.
        skip_long_prompts: Leave out prompts that do not fit the target with `max_new_tokens`, and
            count them; else they are refused before anything is written.
        batch_size: Texts that the target writes in one pass. More is faster until arithmetic is the
            limit, and takes more memory.
        shard_texts: Texts per file: what a killed process loses at most.
    """

    out: Path = Path("runs/traces")
    arms: tuple[str, ...] | None = None
    prompts: str = "train"
    categories: tuple[str, ...] | None = None
    limit_per_category: int | None = None
    turns: int | None = None
    skip_long_prompts: bool = False
    max_new_tokens: int = 128
    batch_size: int = 64
    shard_texts: int = 32


def collect(args: CollectArgs) -> TraceSet:
    """Traces what is missing in the folder; returns all that it holds.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is traced.
    """
    named, args = _check_args(args), _in_the_dtype_of(args)
    prompts = load_prompts(
        args.prompts,
        limit_per_category=args.limit_per_category,
        categories=args.categories,
        turns=args.turns,
    )
    with sole_writer(args.out):
        target, drafters = args.load()
        arms = named or default_arms(drafters, target.decoder.draws_trees)
        check_arms(arms, drafters, target.decoder.draws_trees)
        fitted = fit_prompts(
            target,
            interleave_categories(prompts),
            args.max_new_tokens,
            args.skip_long_prompts,
            all_turns=True,
        )
        costs = load_cost_model(target, drafters, arms, args.max_new_tokens + fitted.longest)
        origin = describe_origin(args, target, drafters, arms, costs)
        origin.host["prompts"] = fitted.describe()
        done = read_done(args.out, origin)
        if done:
            began = read_origin(shards_in(args.out)[0]).host
            costs_stay = "costs stay those of where they began; near ties may fall differently"
            note_other_device(f"traces {args.out}", began, target, costs_stay)
        requests = requests_of_run(fitted, args.temperature, args.seed)
        while requests:  # first turns, then the second ones behind their answers, and so on
            _check_same_prompts(done, requests)
            missing = [one for one in requests if one.question_id not in done]
            _trace_missing(args, target, drafters, arms, missing, origin)
            requests = _next_turns(args, target, requests)
    return read_traces(args.out)


def _next_turns(args: CollectArgs, target: Target, requests: Sequence[Request]) -> list[Request]:
    """What follows on texts that are in the folder."""
    longer = [one for one in requests if one.asked and one.asked.has_next]
    if not longer:
        return []
    answers = {text.question_id: text.tokens.tolist() for text in read_traces(args.out).texts}
    answered = [(one, answers[one.question_id]) for one in longer]

    def seed_of(question_id: str, temperature: float) -> int:
        return text_seed(args.seed, question_id)

    return next_requests(target, answered, seed_of, args.max_new_tokens)


def _in_the_dtype_of(args: CollectArgs) -> CollectArgs:
    """With dtype `auto`, that of the traces that are there: a probe may come out another way."""
    shards = shards_in(args.out) if args.out.is_dir() else []
    if args.dtype != "auto" or not shards:
        return args
    return replace(args, dtype=read_origin(shards[0]).dtype)


def describe_origin(
    args: CollectArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    costs: CostModel,
) -> TraceOrigin:
    """What the traces' file says about where they come from."""
    used = {arm.drafter: drafters[arm.drafter] for arm in arms}
    rule = make_rule(args.verification, args.temperature, args.seed, target.vocab_size)
    return TraceOrigin(
        target=target.name,
        target_fingerprint=target.fingerprint,
        dtype=target.precision.dtype,
        drafters={name: drafter.fingerprint for name, drafter in used.items()},
        lags={name: drafter.lag for name, drafter in used.items()},
        arms=tuple(map(str, arms)),
        verification=rule.name,
        temperature=args.temperature,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        cost_model=costs,
        host={**describe_host(), **describe_device(target)},
    )


def _trace_missing(
    args: CollectArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    requests: Sequence[Request],
    origin: TraceOrigin,
) -> None:
    to_table = partial(trace_table, origin=origin)
    with (
        ShardWriter(args.out, to_table, args.shard_texts) as writer,
        Progress("tracing", "positions", len(requests)) as progress,
    ):
        for text in trace_texts(
            target, drafters, arms, requests, args.max_new_tokens, args.batch_size
        ):
            writer.add(text)
            progress.add(len(text))


def _check_same_prompts(done: Mapping[str, str], requests: Sequence[Request]) -> None:
    for request in requests:
        before = done.get(request.question_id)
        if before is not None and before != hash_prompt(request.prompt):
            raise DraftgymError(
                f"question {request.question_id!r} was traced before with another text",
                "give changed prompts new ids, or trace into another folder with --out",
            )


def default_arms(drafters: Mapping[str, Drafter], trees: bool) -> list[Arm]:
    """Those of `DEFAULT_ARMS` that can be served.

    Args:
        drafters: The loaded drafters.
        trees: Whether the target verifies trees.
    """

    def is_served(arm: Arm) -> bool:
        try:
            check_arms([arm], drafters, trees)
        except DraftgymError:
            return False
        return True

    return [arm for arm in map(parse_arm, DEFAULT_ARMS) if is_served(arm)]


def _check_args(args: CollectArgs) -> list[Arm]:
    """The arms that are named, if any; raises `DraftgymError` for settings that cannot work."""
    if args.verification == "rejection":
        raise DraftgymError(
            "texts under rejection verification depend on the arm", "use greedy or coupled"
        )
    for option in ("max_new_tokens", "batch_size", "shard_texts"):
        if getattr(args, option) < 1:
            name = "--" + option.replace("_", "-")
            raise DraftgymError(f"{name} is {getattr(args, option)}", "give at least one")
    arms = single_arms(map(parse_arm, args.arms or ()))  # what joint arms do follows from these
    if not arms and args.arms is not None:
        raise DraftgymError("--arms names nothing that drafts", "name some, such as eagle3:2")
    return arms


def main(arguments: Sequence[str]) -> None:
    """`draftgym collect`."""
    parsed = tyro.cli(CollectArgs, args=arguments, description=__doc__, prog="draftgym collect")
    traces = collect(parsed)
    print(f"{parsed.out}: {len(traces.texts)} texts, {traces.positions} positions")
