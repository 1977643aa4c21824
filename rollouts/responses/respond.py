"""Write the target's own responses to many prompts: the corpus that drafters are trained on.

    $ draftgym respond --prompts train --out responses
    $ draftgym respond --prompts questions.jsonl --out responses --shares 0.65 0.35
    $ draftgym respond --prompts many.jsonl --out /shared/responses --ray auto  # on a Ray cluster
    $ draftgym train-drafter eagle3 --corpus responses

A drafter learns to guess what its target will say, so it should train on what its target does say.
Many texts are written in shared passes. Interrupt the command whenever you like: the same command
goes on where it stopped, and loses or doubles no text. The folder holds Parquet shards with the
columns id, category, temperature, seed, prompt and response (lists of token ids).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.fingerprint import is_sampled
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import command_line, sole_writer
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.training.data.corpus import read_metadata
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.responses.responder import Responder, ResponsePlan
from draftgym.rollouts.traces.shards import numbers_in, shards_in
from draftgym.rollouts.workers.options import WorkerOptions
from draftgym.rollouts.workers.pool import Pool, open_pool
from draftgym.rollouts.workers.shard import Shard, cut_shards

Done = dict[tuple[str, float], list[int]]
"""Prompts (token ids) of the texts that are there, by question id and temperature."""


@dataclass(frozen=True, kw_only=True)
class RespondArgs(WorkerOptions):
    """What to write.

    Attributes:
        out: Folder of the responses; a run that was interrupted goes on there.
        prompts: train or heldout (shipped sets), or a JSON-lines file with question_id, category,
            turns and perhaps system. All turns are answered, each behind the target's own answers
            to those before; the second turn of question 81 is called 81#2. Do not train on what
            you will report.
        limit_per_category: Keep at most this many prompts of each category.
        turns: Answer at most this many turns of each prompt.
        temperatures: 0 takes the likeliest token every time, 1 samples from the model's
            distribution. Every prompt is answered once at each of them, unless --shares is given.
        shares: Answer every prompt only once: each temperature gets this share of the prompts (one
            number per temperature). Which prompt gets which depends on the prompt's id and --seed.
        max_new_tokens: Tokens per response at most.
        max_prompt_tokens: Leave longer prompts out, and count them.
        skip_long_prompts: Leave out prompts that do not fit the target with `max_new_tokens`, and
            count them; else they are refused before anything is written.
        seed: Seed of sampling; every prompt and temperature gets one of its own from it.
        batch_size: Texts that are written in one pass. More is faster until arithmetic is the
            limit, and takes more memory. In float32 it does not change the texts. Default: 64, or
            what half of an accelerator's free memory holds, 512 at most.
        shard_texts: Texts per file. A killed process loses at most the work on that many and on
            one batch; an interrupted one (Ctrl-C, SIGTERM) only the batch.
        target: smollm2-135m (embedded), a Hugging Face folder, a Hub id or a .gguf file;
            `:int8` or `:q4` behind the name makes it a target of rounded weights.
        dtype: auto (a probe picks the faster one; bfloat16 on an accelerator), float32, bfloat16 or
            float16.
        device: Where: auto (an accelerator that torch can use, else the processor), cpu, cuda,
            cuda:1, mps or xpu. A folder may go on where another device left it.
        backend: Whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
        threads: CPU threads; default: every core this process may use.
    """

    out: Path
    prompts: str = "train"
    limit_per_category: int | None = None
    turns: int | None = None
    temperatures: tuple[float, ...] = (0.0, 1.0)
    shares: tuple[float, ...] | None = None
    max_new_tokens: int = 256
    max_prompt_tokens: int | None = None
    skip_long_prompts: bool = False
    seed: int = 0
    batch_size: int | None = None
    shard_texts: int = 256
    target: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None


class Written(NamedTuple):
    """What one run of the command did: texts and their response tokens; texts there before."""

    texts: int
    tokens: int
    done_before: int


def respond(args: RespondArgs, target: Target | None = None) -> Written:
    """Writes what is missing in the folder.

    Args:
        args: Settings.
        target: The target that they name, where it is loaded already; not for workers on Ray.

    Raises:
        DraftgymError: Bad settings, or a folder that was written with others.
    """
    _check_args(args)
    args = args.with_threads()
    prompts = load_prompts(
        args.prompts, limit_per_category=args.limit_per_category, turns=args.turns
    )
    make = partial(Responder, args, target)
    with sole_writer(args.out), open_pool(make, args, args.out) as pool:
        there = shards_in(args.out)[:1]
        began = read_metadata(there[0]) if there else None
        plan: ResponsePlan = pool.ask("plan", prompts, began)
        plan.facts["command"] = command_line()  # this one, and not a worker's
        done = _read_done(args.out, plan.settings)
        wanted, written = plan.requests, Written(0, 0, 0)
        plan = replace(plan, requests=[])
        while wanted:  # first turns, then the second ones behind their answers, and so on
            _check_same_prompts(done, wanted)
            missing = [one for one in wanted if (one.question_id, one.temperature) not in done]
            there_before = len(wanted) - len(missing)
            with Progress("responses", "tokens", len(wanted), there_before) as bar:
                pool.write(_cut(args, wanted, missing), plan, bar)
            written = Written(
                written.texts + len(missing),
                written.tokens + bar.count,
                written.done_before + there_before,
            )
            wanted = _next_turns(args, pool, wanted)
    return written


def _cut(args: RespondArgs, wanted: Sequence[Request], missing: Sequence[Request]) -> list[Shard]:
    """Shards of what is missing; in one process all of it is one, so that no batch runs empty."""
    if args.ray is None:
        number = 1 + max(numbers_in(args.out), default=-1)
        return [Shard(number, tuple(missing))] if missing else []
    return cut_shards(args.out, wanted, missing, args.shard_texts)


def _next_turns(args: RespondArgs, pool: Pool, requests: Sequence[Request]) -> list[Request]:
    """What follows on responses that are in the folder."""
    import pyarrow.parquet

    longer = [one for one in requests if one.asked and one.asked.has_next]
    if not longer:
        return []
    answers = {}
    for shard in shards_in(args.out):
        columns = ["id", "temperature", "response"]
        for row in pyarrow.parquet.read_table(shard, columns=columns).to_pylist():
            answers[row["id"], row["temperature"]] = row["response"]
    asked = {(one.question_id, one.temperature) for one in longer}
    following: list[Request] = pool.ask("following", longer, {key: answers[key] for key in asked})
    return following


def _read_done(folder: Path, settings: Mapping[str, Any]) -> Done:
    """Which texts are there already; shards that were written with other settings are refused."""
    import pyarrow.parquet

    done: Done = {}
    for shard in shards_in(folder):
        refuse_other_settings(shard, settings)
        columns = ["id", "temperature", "prompt"]
        for row in pyarrow.parquet.read_table(shard, columns=columns).to_pylist():
            done[row["id"], row["temperature"]] = row["prompt"]
    return done


def refuse_other_settings(shard: Path, settings: Mapping[str, Any]) -> None:
    """Raises `DraftgymError` for a shard whose texts were written with other settings.

    Args:
        shard: A shard of the folder that is to be gone on with.
        settings: What decides the texts.
    """
    before = read_metadata(shard).get("settings", {})
    changed = [key for key in settings if before.get(key) != settings[key]]
    if is_sampled(before.get("fingerprint")):
        raise DraftgymError(
            f"{shard} carries an older version's fingerprint of the target, which read only a "
            "sample of the weights",
            "drafters learn from such a folder as before; new responses go to another one, "
            "which --out names",
        )
    if changed:
        raise DraftgymError(
            f"{shard} was written with other settings "
            f"({', '.join(f'{key}: {before.get(key)}' for key in changed)})",
            "go on with the settings of the first run, or name another folder with --out",
        )


def _check_same_prompts(done: Done, requests: Sequence[Request]) -> None:
    """Raises `DraftgymError` for a question that was answered when it still read differently."""
    for one in requests:
        question, tokens = one.question_id, done.get((one.question_id, one.temperature))
        if tokens is not None and one.prompt.tolist() != tokens:
            raise DraftgymError(
                f"question {question!r} was answered before with another text",
                "give changed prompts new ids, or write to another folder with --out",
            )


def _check_args(args: RespondArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    for option in ("max_new_tokens", "batch_size", "shard_texts"):
        value = getattr(args, option)
        if value is not None and value < 1:
            name = "--" + option.replace("_", "-")
            raise DraftgymError(f"{name} is {value}", "give at least one")
    args.check_workers()
    temperatures, shares = args.temperatures, args.shares
    if len(set(temperatures)) != len(temperatures) or not temperatures:
        raise DraftgymError(
            f"--temperatures are {list(temperatures)}", "name one or several, each once"
        )
    for temperature in temperatures:
        make_rule(None, temperature, args.seed, vocab_size=1)
    if shares is not None and (
        len(shares) != len(temperatures) or min(shares) < 0 or not sum(shares) > 0
    ):
        raise DraftgymError(
            f"--shares are {list(shares)}",
            "give one number of at least 0 per temperature, as in --shares 0.65 0.35",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym respond`."""
    parsed = tyro.cli(RespondArgs, args=arguments, description=__doc__, prog="draftgym respond")
    texts, tokens, done_before = respond(parsed)
    print(f"{parsed.out}: {texts} texts, {tokens} tokens written ({done_before} texts were there)")
