"""What `benchmarks.system.accelerator` measures: a function a part, each loading what it needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.results import Record, TargetOptions, environment
from benchmarks.system.graphs import time_graphs
from benchmarks.system.losslessness import NEAR_TIE
from benchmarks.system.transfers import count_transfers, profile_kernels
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import choose_device, clock
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.rollouts.decode.evaluation import chosen_policies, plain_margins
from draftgym.rollouts.decode.fitting import encode_prompt, fit_prompts
from draftgym.rollouts.decode.interleaved import DecodedText, DecodeSettings, turn_order
from draftgym.rollouts.peers import transformers
from draftgym.rollouts.peers.peer import Conditions, Write
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.report.rows import Difference, find_differences
from draftgym.rollouts.report.statistics import Work, speed_ratio

One = TypeVar("One")
Part = Literal["tests", "speed", "texts", "rounds", "graphs"]
PROCESSOR = "the processor"
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Timed:
    """One text.

    Attributes:
        tokens: New token ids.
        seconds: The whole call, prompt included.
    """

    tokens: list[int]
    seconds: float


Written = list[tuple[Prompt, dict[str, Timed]]]
"""Prompts, each with everybody's text."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorArgs(TargetOptions):
    """What to measure.

    Attributes:
        out: Folder of `accelerator.json` and `card.md`.
        dtype: Of speeds, rounds and graphs: auto (bfloat16 on accelerators that have it), float32,
            bfloat16 or float16. Texts are compared in float32.
        require_accelerator: Stop at once where torch finds no accelerator, instead of measuring the
            processor.
        minutes: About how long all parts may take together.
        parts: Which ones.
        policies: Whose speed and texts; those whose drafters do not fit the target are left out.
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        speed_prompts: Prompts that speeds are measured on.
        text_prompts: Prompts whose texts are compared.
        max_new_tokens: Tokens per text at most.
        graph_rows: Rows of the passes that graphs are tried for.
        graph_context: Cached positions behind which they run.
        graph_capacity: Positions of the cache: what a pass of fixed shape attends to.
        repeats: Timings of each pass.
    """

    out: Path = Path("runs/gpu")
    dtype: str = "auto"
    require_accelerator: bool = False
    minutes: float = 9.0
    parts: tuple[Part, ...] = ("tests", "speed", "texts", "rounds", "graphs")
    policies: tuple[str, ...] = (
        "suffix:16~0.7>eagle3:3x6",
        "ngram:8",
        "eagle3:3x6",
        "eagle3:4",
        "dflash:4",
        "router",
    )
    prompts: str = "heldout"
    speed_prompts: int = 12
    text_prompts: int = 30
    max_new_tokens: int = 96
    graph_rows: tuple[int, ...] = (1, 2, 4, 7, 16, 32)
    graph_context: int = 256
    graph_capacity: int = 512
    repeats: int = 30

    @property
    def json(self) -> Path:
        """The result file."""
        return self.out / "accelerator.json"

    @property
    def card(self) -> Path:
        """The same for readers."""
        return self.out / "card.md"


def describe(args: AcceleratorArgs) -> Record:
    """Where the figures come from, and that target and drafters can be loaded there at all."""
    return environment(args, *args.load(args.dtype))


def run_tests(args: AcceleratorArgs, until: float) -> Record:
    """Runs the device tests: those of the accelerator's kind, or of the pretended device."""
    folder, kind = ROOT / "tests" / "device", choose_device(args.device)[0].type
    if not folder.is_dir():
        raise DraftgymError(f"no {folder}", "run from a clone of the repository")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q", str(folder)]  # one -q: a summary
    command += ["-k", kind] if kind != "cpu" else []
    left = max(10.0, until - time.monotonic())
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as error:
        raise DraftgymError(f"not done within {left:.0f} s", "give more --minutes") from error
    last = (done.stdout or done.stderr).strip().splitlines()[-20:]
    if done.returncode:
        raise DraftgymError("; ".join(last), "run pytest tests/device to see all of it")
    where = f"on {kind}" if kind != "cpu" else "on a pretended device (there is no other)"
    return {"summary": f"{where}: {last[-1]}"}


def compare_speeds(args: AcceleratorArgs, until: float) -> Record:
    """Everybody writes the first prompts, in an order that rotates."""
    target, drafters = args.load(args.dtype)
    pairs = _prompts(args, target, args.speed_prompts)
    contenders, left_out = _contenders(args, target, drafters, pairs[0][1])
    written = _write(contenders, pairs, args.max_new_tokens, target, until)
    records = [
        {"question_id": prompt.question_id, "texts": {n: asdict(t) for n, t in texts.items()}}
        for prompt, texts in written
    ]
    rows = [_speed_row(name, written) for name in contenders]
    return {"left_out": left_out, "rows": rows, "records": records}


def compare_texts(args: AcceleratorArgs, until: float) -> Record:
    """Compares everybody's texts with plain decoding's, and these with the processor's choices."""
    target, drafters = args.load("float32")
    pairs = _prompts(args, target, args.text_prompts)
    contenders, left_out = _contenders(args, target, drafters, pairs[0][1])
    written = _write(contenders, pairs, args.max_new_tokens, target, until)
    texts = [
        DecodedText(prompt, name, Generation(text.tokens))
        for prompt, all_texts in written
        for name, text in all_texts.items()
    ]
    how = DecodeSettings(args.max_new_tokens)
    found = find_differences(texts, lambda text: plain_margins(target, text.prompt, how))
    here = target
    if target.device.type != "cpu":
        here = load_target(args.target, "float32", args.threads, "cpu", args.backend)
    plain = [one for one in texts if one.policy == PLAIN]
    found += filter(None, (processor_differs(here, one) for one in plain))
    return {
        "dtype": "float32",
        "matmul_precision": torch.get_float32_matmul_precision(),
        "left_out": left_out,
        "rows": [_text_row(name, len(written), found) for name in (*contenders, PROCESSOR)],
        "differences": [asdict(one) for one in found],
    }


def processor_differs(target: Target, text: DecodedText) -> Difference | None:
    """Where the processor would not have written a greedy text, with the margin of its own choice.

    It reads the text in one pass; as long as it agrees, it would have written the same so far.

    Args:
        target: The target, on the processor.
        text: The text.
    """
    ids, tokens = encode_prompt(target, text.prompt), torch.tensor(text.generation.tokens)
    cache = target.decoder.new_cache(len(ids) + len(tokens))
    rows = NewRows(cache, torch.cat([ids, tokens[:-1]]), logits_from=len(ids) - 1)
    with torch.inference_mode():
        logits = target.decoder.forward([rows])[0].logits
    chosen = logits.argmax(-1)
    for at in (chosen != tokens).nonzero()[:1].flatten().tolist():
        mine, theirs = int(chosen[at]), int(tokens[at])
        margin = float(logits[at, mine] - logits[at, theirs])
        prompt = text.prompt
        return Difference(PROCESSOR, prompt.question_id, prompt.category, at, theirs, mine, margin)
    return None


def measure_rounds(args: AcceleratorArgs, until: float) -> Record:
    """What rounds of each policy read, upload and start."""
    target, drafters = args.load(args.dtype)
    decoders, left_out = _decoders(args, target, drafters)
    (prompt, ids), rows = _prompts(args, target, 1)[0], []
    for name in in_time(decoders, until):
        row: Record = {"who": name, **count_transfers(decoders[name], ids, args.max_new_tokens)}
        if target.device.type == "cuda":
            try:
                row |= profile_kernels(decoders[name], ids, args.max_new_tokens)
            except Exception as error:  # a profiler that this driver does not have
                row["profiler"] = repr(error)
        rows.append(row)
    return {"left_out": left_out, "question_id": prompt.question_id, "rows": rows}


def measure_graphs(args: AcceleratorArgs, until: float) -> Record:
    """Times passes, ordinary, fixed and captured."""
    if choose_device(args.device)[0].type != "cuda":
        return {"summary": "not cuda, so there are no graphs"}
    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    context = min(args.graph_context, target.context_limit - max(args.graph_rows))
    capacity = max(args.graph_capacity, context + max(args.graph_rows))
    timed = time_graphs(target, args.graph_rows, context, capacity, args.repeats)
    return {"context": context, "capacity": capacity, "rows": list(in_time(timed, until))}


def in_time(items: Iterable[One], until: float) -> Iterator[One]:
    """Items until a time on the monotonic clock, at least one."""
    for item in tqdm(items, leave=False, mininterval=1.0):
        yield item
        if time.monotonic() > until:
            return


def _decoders(
    args: AcceleratorArgs, target: Target, drafters: Mapping[str, Drafter]
) -> tuple[dict[str, SpeculativeDecoder], dict[str, str]]:
    """Plain decoding and the policies that are possible; why the others are not."""
    made: dict[str, SpeculativeDecoder] = {}
    left_out: dict[str, str] = {}
    for spec in dict.fromkeys([PLAIN, *args.policies]):
        try:
            (policy,) = chosen_policies([spec], drafters, target).values()
            made[spec] = SpeculativeDecoder(target, drafters, policy)
        except DraftgymError as error:
            left_out[spec] = error.problem
    return made, left_out


def _contenders(
    args: AcceleratorArgs, target: Target, drafters: Mapping[str, Drafter], ids: Tensor
) -> tuple[dict[str, Write], dict[str, str]]:
    """Those and transformers' `generate()`, warmed up on a prompt; who fails there is left out.

    Raises:
        Exception: Plain decoding fails: there is nothing to compare with.
    """
    decoders, left_out = _decoders(args, target, drafters)
    made = {name: _writer(decoder) for name, decoder in decoders.items()}
    try:
        conditions = Conditions(target, target.stop_tokens, target.context_limit)
        made[transformers.GENERATE] = transformers.load(conditions)[0].write
    except Exception as error:  # whatever transformers raises, ours go on
        left_out[transformers.GENERATE] = repr(error)
    for name in list(made):  # first calls pay for memory, and for kernels of every shape
        try:
            made[name](ids.tolist(), args.max_new_tokens)
        except Exception as error:
            if name == PLAIN:
                raise
            del made[name]
            left_out[name] = repr(error)
    return made, left_out


def _writer(decoder: SpeculativeDecoder) -> Write:
    return lambda ids, max_new_tokens: decoder.generate(ids, max_new_tokens).tokens


def _prompts(args: AcceleratorArgs, target: Target, count: int) -> list[tuple[Prompt, Tensor]]:
    """The first prompts, categories in turn, that fit; with their token ids."""
    prompts = interleave_categories(load_prompts(args.prompts))[:count]
    return fit_prompts(target, prompts, args.max_new_tokens, skip_long=True).pairs


def _write(
    contenders: Mapping[str, Write],
    pairs: Sequence[tuple[Prompt, Tensor]],
    tokens: int,
    target: Target,
    until: float,
) -> Written:
    """As many prompts as there is time for, by everybody in turn."""
    return [
        (prompt, _write_turn(contenders, ids.tolist(), turn, tokens, target.device))
        for turn, (prompt, ids) in enumerate(in_time(pairs, until))
    ]


def _write_turn(
    contenders: Mapping[str, Write], ids: list[int], turn: int, tokens: int, device: torch.device
) -> dict[str, Timed]:
    """One prompt by everybody, in an order that rotates."""
    texts = {}
    for name in turn_order(list(contenders), turn):
        start = clock(device)
        text = contenders[name](ids, tokens)
        texts[name] = Timed(text, clock(device) - start)
    return {name: texts[name] for name in contenders}


def _speed_row(name: str, written: Written) -> Record:
    """One contender's speed, and its ratio to plain decoding's with a 95 % interval."""
    mine, reference = (
        [Work(len(texts[one].tokens), texts[one].seconds) for _, texts in written]
        for one in (name, PLAIN)
    )
    each = [work.tokens / work.seconds for work in mine]
    ratio = speed_ratio(mine, reference)
    same = sum(texts[name].tokens == texts[PLAIN].tokens for _, texts in written)
    return {
        "who": name,
        "prompts": len(written),
        "median": median(each),
        "p10_p90": np.percentile(each, [10, 90]).tolist(),
        "ratio": [ratio.value, ratio.low, ratio.high],
        "same_as_plain": same,
    }


def _text_row(name: str, prompts: int, found: Sequence[Difference]) -> Record:
    """How many of one contender's texts are plain decoding's."""
    mine = [one for one in found if one.policy == name]
    ties = [one for one in mine if one.margin is not None and one.margin <= NEAR_TIE]
    row = {"who": name, "prompts": prompts, "same": prompts - len(mine)}
    return row | {"near_ties": len(ties), "different": len(mine) - len(ties)}
