"""What an accelerator makes of draftgym, in one command and within ten minutes: a JSON and a card.

    $ make gpu
    $ python -m benchmarks.system.accelerator --device cuda:1 --out runs/gpu

Parts, in this order; where one fails, its error is told and the next begins:

- `tests`: `tests/device`, which run on every device that is there.
- `speed`: plain decoding, drafters, the shipped router and transformers' `generate()` write prompts
  in an order that rotates (greedy; warmed up; whole calls, prompt included).
- `texts`: are these texts plain decoding's, and `generate()`'s? In float32, where only near ties
  between tokens may fall differently.
- `rounds`: what a round reads back, uploads and starts; on CUDA also its kernels and the share of
  time in which one runs.
- `graphs`: a pass of so many rows, ordinary, in fixed shapes, and held by a CUDA graph.

Parts that have their time behind them stop at the next prompt. The file is written after each part.
"""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import show
from benchmarks.results import Record, Result, TargetOptions, check, environment, write_json
from benchmarks.system.accelerator_card import card, tables
from benchmarks.system.contenders import (
    GENERATE,
    Contender,
    Timed,
    our_contender,
    transformers_contenders,
)
from benchmarks.system.graphs import time_graphs
from benchmarks.system.losslessness import NEAR_TIE
from benchmarks.system.transfers import count_transfers, profile_kernels
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import write_text
from draftgym.decoding.model.device import choose_device
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import plain
from draftgym.rollouts.decode.evaluation import chosen_policies, plain_margins
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.decode.interleaved import (
    WARM_UP_TOKENS,
    DecodedText,
    DecodeSettings,
    turn_order,
)
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.report.rows import find_differences
from draftgym.rollouts.report.statistics import Work, speed_ratio

One = TypeVar("One")
ROOT = Path(__file__).resolve().parents[2]
SHARES = {"tests": 0.15, "speed": 0.35, "texts": 0.3, "rounds": 0.1, "graphs": 0.1}
"""Parts, and how much of the time each may take; what one leaves over is the others'."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorArgs(TargetOptions):
    """What to measure.

    Attributes:
        out: Folder of `accelerator.json` and `card.md`.
        dtype: Of speeds, rounds and graphs: auto (bfloat16 on accelerators that have it), float32,
            bfloat16 or float16.
        require_accelerator: Stop at once where torch finds no accelerator, instead of measuring the
            processor.
        minutes: All parts together, loading left out.
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
    parts: tuple[str, ...] = tuple(SHARES)
    policies: tuple[str, ...] = ("ngram:8", "eagle3:3x6", "eagle3:4", "dflash:4", "router")
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


class Bench:
    """The parts, each with the time that it may take.

    Args:
        args: Settings.
        target: The target, in the dtype of the speeds.
        drafters: Its drafters.
    """

    def __init__(
        self, args: AcceleratorArgs, target: Target, drafters: Mapping[str, Drafter]
    ) -> None:
        self.args, self.target, self.drafters = args, target, dict(drafters)
        self.prompts = interleave_categories(load_prompts(args.prompts))
        self.deadline = float("inf")
        self.left_out: dict[str, str] = {}

    def tests(self) -> Record:
        """Runs the device tests in a process of their own."""
        folder = ROOT / "tests" / "device"
        if not folder.is_dir():
            raise DraftgymError(f"no {folder}", "run from a clone of the repository")
        command = [sys.executable, "-m", "pytest", "-q", "-rs", str(folder)]
        left = max(10.0, self.deadline - time.monotonic())
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False
        )
        last = done.stdout.strip().splitlines()[-20:]
        if done.returncode:
            raise DraftgymError("; ".join(last), "run pytest tests/device to see all of it")
        return {"summary": last[-1], "output": last}

    def speed(self) -> Record:
        """Everybody writes the first prompts; see `_write`."""
        args = self.args
        written = self._write(self.target, self.drafters, args.speed_prompts, args.max_new_tokens)
        rows = [_speed_row(name, written) for name in written[0][1]]
        records = [
            {"question_id": prompt.question_id, "texts": {n: asdict(t) for n, t in texts.items()}}
            for prompt, texts in written
        ]
        return {"rows": rows, "records": records}

    def texts(self) -> Record:
        """Compares texts in float32."""
        args = self.args
        target, drafters = args.load("float32")
        written = self._write(target, drafters, args.text_prompts, args.max_new_tokens)
        texts = [
            DecodedText(prompt, name, Generation(text.tokens))
            for prompt, all_texts in written
            for name, text in all_texts.items()
        ]
        how = DecodeSettings(args.max_new_tokens)
        found = find_differences(texts, lambda text: plain_margins(target, text.prompt, how))
        rows = []
        for name in written[0][1]:
            mine = [one for one in found if one.policy == name]
            ties = [one for one in mine if one.margin is not None and one.margin <= NEAR_TIE]
            row = {"who": name, "prompts": len(written), "same": len(written) - len(mine)}
            rows.append(row | {"near_ties": len(ties), "different": len(mine) - len(ties)})
        return {
            "dtype": "float32",
            "matmul_precision": torch.get_float32_matmul_precision(),
            "rows": rows,
            "differences": [asdict(one) for one in found],
        }

    def rounds(self) -> Record:
        """What rounds of each policy read, upload and start."""
        args, rows = self.args, []
        fitted = fit_prompts(self.target, self.prompts[:1], args.max_new_tokens)
        (ids,) = fitted.ids.values()
        for name, decoder in self._decoders(self.target, self.drafters).items():
            row: Record = {"who": name, **count_transfers(decoder, ids, args.max_new_tokens)}
            if self.target.device.type == "cuda":
                try:
                    row |= profile_kernels(decoder, ids, args.max_new_tokens)
                except Exception as error:  # a profiler that this driver does not have
                    row["profiler"] = repr(error)
            rows.append(row)
        return {"question_id": self.prompts[0].question_id, "rows": rows}

    def graphs(self) -> Record:
        """Times passes, ordinary and fixed."""
        args, rows = self.args, []
        context = min(args.graph_context, self.target.context_limit - max(args.graph_rows))
        capacity = max(args.graph_capacity, context + max(args.graph_rows))
        sizes = {"context": context, "capacity": capacity}
        timed = time_graphs(self.target, args.graph_rows, context, capacity, args.repeats)
        rows = list(self._in_time(timed))
        return {**sizes, "rows": rows}

    def _decoders(
        self, target: Target, drafters: Mapping[str, Drafter]
    ) -> dict[str, SpeculativeDecoder]:
        """Plain decoding and the policies whose drafters are there."""
        made: dict[str, SpeculativeDecoder] = {}
        for spec in dict.fromkeys([PLAIN, *self.args.policies]):
            try:
                (policy,) = chosen_policies([spec], drafters, target).values()
                made[spec] = SpeculativeDecoder(target, drafters, policy)
            except DraftgymError as error:
                self.left_out[spec] = error.problem
        return made

    def _write(
        self, target: Target, drafters: Mapping[str, Drafter], count: int, tokens: int
    ) -> list[tuple[Prompt, dict[str, Timed]]]:
        """As many prompts as there is time for, at least one, by everybody in turn."""
        chosen = self.prompts[:count]
        fitted = fit_prompts(target, chosen, tokens, skip_long=True)
        decoders = self._decoders(target, drafters)
        contenders: dict[str, Contender] = {n: our_contender(one) for n, one in decoders.items()}
        try:
            theirs, _ = transformers_contenders(target, None, 10)
            contenders[GENERATE] = theirs[GENERATE]
        except Exception as error:  # whatever transformers raises, ours go on
            self.left_out[GENERATE] = repr(error)
        first = fitted.ids[fitted.prompts[0].question_id]
        for write in contenders.values():  # first calls pay for memory and kernels
            write(first, min(WARM_UP_TOKENS, tokens))
        return [
            (prompt, _write_turn(contenders, fitted.ids[prompt.question_id], turn, tokens))
            for turn, prompt in enumerate(self._in_time(fitted.prompts))
        ]

    def _in_time(self, items: Sequence[One] | Iterator[One]) -> Iterator[One]:
        """Items until the part has had its time, at least one."""
        for item in tqdm(items, leave=False, mininterval=1.0):
            yield item
            if time.monotonic() > self.deadline:
                return


def _write_turn(
    contenders: Mapping[str, Contender], ids: Tensor, turn: int, tokens: int
) -> dict[str, Timed]:
    """One prompt by everybody, in an order that rotates."""
    texts = {name: contenders[name](ids, tokens) for name in turn_order(list(contenders), turn)}
    return {name: texts[name] for name in contenders}


def _speed_row(name: str, written: Sequence[tuple[Prompt, Mapping[str, Timed]]]) -> Record:
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


def measure(args: AcceleratorArgs) -> Result:
    """Measures part by part; writes the file and the card after each.

    Raises:
        DraftgymError: Bad settings, or nothing can be loaded at all.
    """
    check(args, "speed_prompts", "text_prompts", "max_new_tokens", "repeats")
    if strange := [part for part in args.parts if part not in SHARES]:
        raise DraftgymError(f"no part {strange[0]!r}", f"choose from {', '.join(SHARES)}")
    _tell_device(args)
    target, drafters = args.load(args.dtype)
    bench, end = Bench(args, target, drafters), time.monotonic() + 60 * args.minutes
    facts = environment(args, target, drafters)
    result: Result = {"benchmark": "benchmarks.system.accelerator", "environment": facts}
    result["parts"] = {}
    parts = [part for part in SHARES if part in args.parts]
    for index, part in enumerate(parts):
        left = sum(SHARES[one] for one in parts[index:])
        now = time.monotonic()
        bench.deadline = now + max(0.0, end - now) * SHARES[part] / left
        print(f"{part} ({index + 1} of {len(parts)})", file=sys.stderr)
        result["parts"][part] = _survived(getattr(bench, part))
        result = plain({**result, "left_out": bench.left_out})
        write_json(args.json, result)
        write_text(args.out / "card.md", card(result))
    show(tables(result))
    print(f"{args.json} and {args.out / 'card.md'} tell all of it")
    return result


def _survived(part: Callable[[], Record]) -> Record:
    """A part's figures with its seconds, or what went wrong: the others are measured anyway."""
    start = time.monotonic()
    try:
        figures = part()
    except Exception as error:  # hardware that nobody has tried fails in any way
        told = error.problem if isinstance(error, DraftgymError) else f"{error!r}"
        figures = {"error": told, "traceback": traceback.format_exc()}
        print(f"note: {told}; the next part begins", file=sys.stderr)
    return {"seconds": time.monotonic() - start, **figures}


def _tell_device(args: AcceleratorArgs) -> None:
    """Says what is measured where no accelerator is.

    Raises:
        DraftgymError: Torch finds none, and one is required.
    """
    device, _ = choose_device(args.device)
    if device.type != "cpu":
        return
    none = f"torch {torch.__version__} finds no accelerator"
    if args.require_accelerator:
        raise DraftgymError(
            none,
            "install a torch that is built for yours (docs/devices.md says how), or measure the "
            "processor: python -m benchmarks.system.accelerator --device cpu",
        )
    print(f"note: {none}; this measures the processor", file=sys.stderr)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(AcceleratorArgs, description=__doc__))
