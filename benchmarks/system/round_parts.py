"""Where the time of a round goes: the parts of a pass, and what a round does beside it.

    $ python -m benchmarks.system.round_parts --threads 2
    $ python -m benchmarks.system.round_parts --policies plain ngram:8 eagle3:3x6 router

Parts of the compact pass are timed around the functions that do them. Those of a compiled one are
OpenVINO's own counters, which slow it down a little; `outside` is what they leave of the clock.
A round is timed in real decoding of training prompts, by its phases.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import tyro

from benchmarks.report import Cell, Json, Table, number, titled
from benchmarks.results import Record, Result, TargetOptions, check, finish
from draftgym.decoding import round as round_module
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.model.compact import rows, transformer
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.passes import CompiledPass
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.rows import TorchRowWork
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows
from draftgym.policies.registry import make_policy
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts

Seconds = defaultdict[str, float]

NODES = {
    "FullyConnected": "products",
    "FullyConnectedCompressed": "products",
    "Subgraph": "attention",
    "MatMul": "attention",
    "Softmax": "attention",
    "ScaledDotProductAttention": "attention",
    "Concat": "cache",
    "Split": "cache",
    "RMS": "norms",
}
"""Parts of OpenVINO's operations; all others are small ones between them."""

PARTS = ("products", "head", "attention", "norms", "rotations", "cache", "rest", "outside")
PHASES = ("choose", "catch_up", "draft", "pass", "verdict", "commit")


@dataclass(frozen=True, kw_only=True)
class RoundPartsArgs(TargetOptions):
    """What to take apart.

    Attributes:
        policies: Policies and arms whose rounds are timed.
        rows: Rows of a pass.
        context: Cached positions of a pass.
        repeats: Timings of a pass, after two that warm up.
        prompts: Training prompts, of all categories in turn.
        max_new_tokens: Tokens per text at most.
        json: Write the figures to this file.
    """

    policies: tuple[str, ...] = ("plain", "ngram:8", "eagle3:3x6", "router")
    rows: tuple[int, ...] = (1, 9)
    context: int = 200
    repeats: int = 10
    prompts: int = 5
    max_new_tokens: int = 64
    json: Path | None = None


def measure(args: RoundPartsArgs) -> Result:
    """Takes passes and rounds apart, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings, or a target that transformers drives.
    """
    check(args, "context", "repeats", "prompts", "max_new_tokens")
    target, drafters = args.load()
    prompts = interleave_categories(load_prompts("train"))[: args.prompts]
    figures: dict[str, Any] = {"rounds": []}
    for name in args.policies:
        policy = make_policy(name, drafters, target)
        decoder = SpeculativeDecoder(target, drafters, policy)
        ids = [target.encode(prompt.turns[0]) for prompt in prompts]
        figures["rounds"].append({"policy": name, **round_parts(decoder, ids, args.max_new_tokens)})
    compiled = target.compact.compiled
    target.compact.compiled = None
    ways = {"compact": torch_parts}
    if compiled is not None:
        ways["compiled"] = compiled_parts
    figures["passes"] = [
        {"pass": name, "rows": count, **take_apart(target.compact, count, args)}
        for name, take_apart in ways.items()
        for count in args.rows
    ]
    return finish(tables, args, figures, target, drafters)


def round_parts(decoder: SpeculativeDecoder, prompts: list[Any], limit: int) -> Record:
    """Milliseconds of a round by phases, means over all rounds but those of the first text."""
    spent: Seconds = defaultdict(float)
    count = 0
    with timing(spent, {(round_module, "verify_together"): "verdict"}):
        for index, ids in enumerate([prompts[0], *prompts]):
            text = decoder.generate(ids, limit)
            if not index:
                spent.clear()
                continue
            count += len(text.rounds)
            spent["total"] += text.decode_seconds
            for item in text.rounds:
                times = item.record.times
                for phase in ("catch_up", "draft", "commit"):
                    spent[phase] += getattr(times, phase)
                spent["pass"] += times.verify
    spent["pass"] -= spent["verdict"]
    spent["choose"] = spent["total"] - sum(spent[phase] for phase in PHASES if phase != "choose")
    return {"rounds": count} | {name: 1e3 * spent[name] / count for name in (*PHASES, "total")}


def torch_parts(decoder: Decoder, count: int, args: RoundPartsArgs) -> Record:
    """Milliseconds of the compact pass by parts; medians."""
    timed = {
        (Products, "__call__"): "products",
        (TorchRowWork, "score"): "head",
        (transformer, "attend"): "attention",
        (transformer, "rms_norm"): "norms",
        (rows, "rms_norm"): "norms",
        (rows, "rotate"): "rotations",
        (KVCache, "write"): "cache",
    }
    run = _pass(decoder, count, args.context)

    def once() -> Seconds:
        spent: Seconds = defaultdict(float)
        with timing(spent, timed):
            start = time.perf_counter()
            run()
            spent["total"] = time.perf_counter() - start
        spent["products"] -= spent["head"]  # which is one of them
        return spent

    return _medians(once, args.repeats, "rest")


def compiled_parts(decoder: Decoder, count: int, args: RoundPartsArgs) -> Record:
    """Milliseconds of the compiled pass by parts; medians."""
    import openvino

    compile_model = openvino.Core.compile_model

    def counting(core: Any, model: Any, device: str, options: dict[str, Any]) -> Any:
        return compile_model(core, model, device, {**options, "PERF_COUNT": True})

    with patch.object(openvino.Core, "compile_model", counting):
        decoder.compiled = CompiledPass(decoder, torch.get_num_threads())
    request = decoder.compiled._run._request
    run = _pass(decoder, count, args.context)

    def once() -> Seconds:
        start = time.perf_counter()
        run()
        spent: Seconds = defaultdict(float, total=time.perf_counter() - start)
        nodes = [node for node in request.profiling_info if node.real_time.total_seconds()]
        products = [node for node in nodes if NODES.get(node.node_type) == "products"]
        for node in nodes:
            part = "head" if node is products[-1] else NODES.get(node.node_type, "rest")
            spent[part] += node.real_time.total_seconds()
        return spent

    record = _medians(once, args.repeats, "outside")
    decoder.compiled = None
    return record


def _pass(decoder: Decoder, count: int, context: int) -> Callable[[], object]:
    """A pass over so many rows behind a context."""
    cache = decoder.new_cache(context + count + 1)
    tokens = torch.arange(context + count) % len(decoder.embedding)
    decoder.forward([NewRows(cache, tokens[:context])])
    cache.keep(context)
    return lambda: decoder.forward([NewRows(cache, tokens[context:])])


def _medians(once: Callable[[], Seconds], repeats: int, left: str) -> Record:
    """Medians of the parts in milliseconds; what they leave of the whole is named `left`."""
    some = [once() for _ in range(repeats + 2)][2:]
    for spent in some:
        spent[left] += spent["total"] - sum(spent[part] for part in PARTS)
    return {part: 1e3 * median(spent[part] for spent in some) for part in (*PARTS, "total")}


@contextmanager
def timing(spent: Seconds, timed: dict[tuple[Any, str], str]) -> Iterator[None]:
    """Adds up how long functions take, under the names of their parts."""
    with ExitStack() as stack:
        for (owner, name), part in timed.items():
            stack.enter_context(
                patch.object(owner, name, _timed(getattr(owner, name), spent, part))
            )
        yield


def _timed(function: Any, spent: Seconds, part: str) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[part] += time.perf_counter() - start

    return run


def tables(result: Json) -> list[Table]:
    """Milliseconds of rounds by phases, and of passes by parts."""
    about = "{target}, {dtype}, threads {threads}; {machine}; ms".format(**titled(result))

    def told(name: str) -> Cell:
        return lambda row: f"{row[name]:.1f}" if row[name] >= 0.05 else ""

    phases: dict[str, Cell] = {"policy": number("policy", ""), "rounds": number("rounds", "")}
    phases |= {name.replace("_", " "): told(name) for name in (*PHASES, "total")}
    parts: dict[str, Cell] = {"pass": lambda row: f"{row['pass']}, {row['rows']} rows"}
    parts |= {name: told(name) for name in (*PARTS, "total")}
    return [
        Table.of(f"a round of {about}", result["rounds"], phases),
        Table.of(f"a pass of {about}", result["passes"], parts),
    ]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(RoundPartsArgs, description=__doc__))
