"""Collect traces: what every arm would do at every position of texts that the target writes.

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym collect --prompts heldout --out runs/heldout --arms eagle3:2 ngram:8
    $ draftgym collect --prompts many.jsonl --out /shared/traces --ray auto    # on a Ray cluster
    $ draftgym train-router --traces runs/traces

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
from typing import get_args

import tyro

from draftgym.decoding.arms import Arm, parse_arm, single_arms
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import command_line, sole_writer
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.decode.options import DecodingOptions
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts
from draftgym.rollouts.traces.counterfactual import hash_prompt
from draftgym.rollouts.traces.file import (
    read_answers,
    read_done,
    read_origin,
    read_traces,
    rows_in,
)
from draftgym.rollouts.traces.shards import shards_in
from draftgym.rollouts.traces.trace import States, TraceSet
from draftgym.rollouts.traces.tracer import TracePlan, Tracer
from draftgym.rollouts.workers.options import WorkerOptions
from draftgym.rollouts.workers.pool import Pool, open_pool
from draftgym.rollouts.workers.shard import cut_shards


@dataclass(frozen=True, kw_only=True)
class CollectArgs(DecodingOptions, WorkerOptions):
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
        states: How the target's hidden states are stored: float32, float16 (half of nearly all that
            traces take) or none (a tenth; for policies that do not read them).
        batch_size: Texts that the target writes in one pass. More is faster until arithmetic is the
            limit, and takes more memory.
        shard_texts: Texts per file: what is traced together, what a worker does in one go, and what
            a killed process loses at most. Fewer than --batch-size make smaller batches.
    """

    out: Path = Path("runs/traces")
    arms: tuple[str, ...] | None = None
    prompts: str = "train"
    categories: tuple[str, ...] | None = None
    limit_per_category: int | None = None
    turns: int | None = None
    skip_long_prompts: bool = False
    max_new_tokens: int = 128
    states: States = "float32"
    batch_size: int = 64
    shard_texts: int = 64


def collect(args: CollectArgs) -> TraceSet:
    """Traces what is missing in the folder; returns all that it holds.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is traced.
    """
    trace(args)
    return read_traces(args.out)


def trace(args: CollectArgs) -> None:
    """As `collect`, but reads nothing back."""
    named, args = _check_args(args), _in_the_dtype_of(args).with_threads()
    prompts = load_prompts(
        args.prompts,
        limit_per_category=args.limit_per_category,
        categories=args.categories,
        turns=args.turns,
    )
    make = partial(Tracer, args, named)
    with sole_writer(args.out), open_pool(make, args, args.out) as pool:
        there = shards_in(args.out)[:1]
        began = read_origin(there[0]).host if there else None
        plan: TracePlan = pool.ask("plan", interleave_categories(prompts), began)
        plan.origin.host["command"] = command_line()  # this one, and not a worker's
        done, requests = read_done(args.out, plan.origin), plan.requests
        plan = replace(plan, requests=[])
        while requests:  # first turns, then the second ones behind their answers, and so on
            _check_same_prompts(done, requests)
            missing = [one for one in requests if one.question_id not in done]
            shards = cut_shards(args.out, requests, missing, args.shard_texts)
            with Progress(
                "tracing", "positions", len(requests), len(requests) - len(missing)
            ) as bar:
                pool.write(shards, plan, bar)
            requests = _next_turns(args, pool, requests)


def _next_turns(args: CollectArgs, pool: Pool, requests: Sequence[Request]) -> list[Request]:
    """What follows on texts that are in the folder."""
    longer = [one for one in requests if one.asked and one.asked.has_next]
    if not longer:
        return []
    answers = read_answers(args.out, {one.question_id for one in longer})
    following: list[Request] = pool.ask("following", longer, answers)
    return following


def _in_the_dtype_of(args: CollectArgs) -> CollectArgs:
    """With dtype `auto`, that of the traces that are there: a probe may come out another way."""
    shards = shards_in(args.out) if args.out.is_dir() else []
    if args.dtype != "auto" or not shards:
        return args
    return replace(args, dtype=read_origin(shards[0]).dtype)


def _check_same_prompts(done: Mapping[str, str], requests: Sequence[Request]) -> None:
    for request in requests:
        before = done.get(request.question_id)
        if before is not None and before != hash_prompt(request.prompt):
            raise DraftgymError(
                f"question {request.question_id!r} was traced before with another text",
                "give changed prompts new ids, or trace into another folder with --out",
            )


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
    if args.states not in get_args(States):
        raise DraftgymError(
            f"--states is {args.states!r}", f"choose from {', '.join(get_args(States))}"
        )
    args.check_workers()
    arms = single_arms(map(parse_arm, args.arms or ()))  # what joint arms do follows from these
    if not arms and args.arms is not None:
        raise DraftgymError("--arms names nothing that drafts", "name some, such as eagle3:2")
    return arms


def main(arguments: Sequence[str]) -> None:
    """`draftgym collect`."""
    parsed = tyro.cli(CollectArgs, args=arguments, description=__doc__, prog="draftgym collect")
    trace(parsed)
    texts = len(read_done(parsed.out))
    positions = sum(map(rows_in, shards_in(parsed.out))) - texts
    print(f"{parsed.out}: {texts} texts, {positions} positions")
