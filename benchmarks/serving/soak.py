"""Minutes of mixed requests: no wrong text, no request lost, no memory leaked.

    $ python -m benchmarks.serving.soak --minutes 10 --json runs/soak.json

Chats and completions, streamed or not, some with several choices, temperatures, stop strings,
log-probabilities, predictions, drafted by different policies, often with prompts that begin alike.
Some clients leave in the middle, some send what no server can read, one sends far too much. Every
text that arrives is compared with what plain decoding writes for that request alone, in float32:
most requests are wishes that were written beforehand, others are new each time, so that what the
server keeps of finished texts must make room, and are written afterwards.

The memory of the server is flat if its median in the last minutes is within 5 % of that in the
second and third. Afterwards nothing may run or wait. The command ends with status 1 otherwise.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import numpy as np
import psutil
import tyro
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from benchmarks.report import Json, Table, titled
from benchmarks.results import Result, TargetOptions, check, finish
from benchmarks.serving.load import PATIENCE
from benchmarks.serving.malformed import MALFORMED, OVERSIZE_NAME, oversize, send
from benchmarks.serving.mixed import (
    COMPLETIONS,
    Outcome,
    Wish,
    deliver,
    draw_delivery,
    expected_of,
    make_wishes,
)
from benchmarks.serving.servers import Running, draftgym_server, running
from draftgym.decoding.errors import exit_on_user_error
from draftgym.rollouts.prompts.sets import load_prompts

FLAT = 0.05
"""How much the memory's median may grow."""
NEW_TOKENS = 8
"""Of texts that are new each time."""
SAMPLE = 1.0
"""Seconds between two looks at the memory."""
IDLE = ("vllm:num_requests_running", "vllm:num_requests_waiting")
"""Metrics that are 0 where nobody is served."""
SETTLING = 30.0
"""Seconds that the server may take to be idle once everybody has gone."""


@dataclass(frozen=True, kw_only=True)
class SoakArgs(TargetOptions):
    """What to send, and for how long.

    Attributes:
        minutes: How long.
        clients: How many at the same time.
        wishes: Texts that are written beforehand.
        longest: Tokens of a text at most.
        leaving: Share of clients who leave in the middle.
        malformed: Share of requests that cannot be served.
        new: Share of requests whose prompt is new.
        policies: Who drafts.
        cache_gb: Memory of the server's caches, in GiB: small enough to be full soon.
        seed: Of all draws.
        json: Write the figures to this file.
    """

    minutes: float = 10.0
    clients: int = 16
    wishes: int = 60
    longest: int = 48
    leaving: float = 0.1
    malformed: float = 0.05
    new: float = 0.1
    policies: tuple[str, ...] = (
        "plain",
        "ngram:8",
        "eagle3:3x6",
        "ngram:8>eagle3:3x6",
        "router",
        "random",
    )
    cache_gb: float = 0.5
    seed: int = 0
    json: Path = Path("runs/soak.json")


@dataclass
class Log:
    """What happened.

    Attributes:
        outcomes: Of wishes.
        refusals: Of malformed requests: which, and what is wrong with the answer, if anything.
        memory: Seconds since the start, and the server's memory in bytes.
        unfinished: Texts that still run or wait when everybody has gone.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    unfinished: float = 0.0

    @property
    def sent_oversize(self) -> bool:
        """Whether the one far too large body has been sent."""
        return any(name == OVERSIZE_NAME for name, _ in self.refusals)


def measure(args: SoakArgs) -> Result:
    """Soaks a server, shows and writes what came of it.

    Raises:
        DraftgymError: Bad settings, or the server does not start.
    """
    check(args, "clients", "wishes", "longest")
    target, drafters = args.load()
    prompts = [prompt.turns[0] for prompt in load_prompts("train")]
    made = make_wishes(target, prompts, args.wishes, args.longest, args.seed)
    wishes = list(tqdm(made, total=args.wishes, desc="by plain decoding", mininterval=5.0))
    server = draftgym_server(args, target, "--cache-gb", str(args.cache_gb))
    with running(server, args.json.with_suffix(".log")) as one:
        log = asyncio.run(soak(args, one, wishes, prompts))
    check_new(log, lambda wish: expected_of(target, wish))
    figures = summarise(args, log)
    return finish(tables, args, figures, target, drafters)


async def soak(args: SoakArgs, one: Running, wishes: Sequence[Wish], prompts: Sequence[str]) -> Log:
    """Keeps all clients busy until the time is over, then waits until the server is idle."""
    log, start = Log(), time.monotonic()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=one.url, timeout=PATIENCE, limits=limits) as http:

        async def client(number: int) -> None:
            rng = random.Random(f"{args.seed} client {number}")
            passed = 0.0
            while passed < 60 * args.minutes:
                passed = time.monotonic() - start
                big = number == 0 and passed > 20 * args.minutes and not log.sent_oversize
                if big or rng.random() < args.malformed:
                    bad = oversize() if big else rng.choice(MALFORMED)
                    log.refusals.append((bad.name, await send(http, bad)))
                    continue
                wish = _new(rng, prompts) if rng.random() < args.new else rng.choice(wishes)
                drawn = draw_delivery(rng, wish, args.policies, args.leaving)
                log.outcomes.append(await deliver(http, drawn))

        async def look() -> None:
            process = psutil.Process(one.process.pid)
            while True:
                log.memory.append((time.monotonic() - start, process.memory_info().rss))
                await asyncio.sleep(SAMPLE)

        looking = asyncio.create_task(look())
        await asyncio.gather(*map(client, range(args.clients)))
        looking.cancel()
        log.unfinished = await _until_idle(http)
    return log


def _new(rng: random.Random, prompts: Sequence[str]) -> Wish:
    """A wish that nobody had before; what is expected is not known yet."""
    prompt = f"Request {rng.randrange(10**9)}. {rng.choice(prompts)}"
    body = {"prompt": prompt, "temperature": 0, "seed": 0, "max_tokens": NEW_TOKENS}
    return Wish(COMPLETIONS, body)


async def _until_idle(http: httpx2.AsyncClient) -> float:
    """Waits until nothing runs or waits; how many texts still do when patience ends."""
    deadline, texts = time.monotonic() + SETTLING, math.inf
    while texts and time.monotonic() < deadline:
        answer = await http.get("/metrics")
        if answer.status_code == 200:
            families = text_string_to_metric_families(answer.text)
            samples = [sample for family in families for sample in family.samples]
            found = [one.value for one in samples if one.name in IDLE]
            texts = sum(found) if len(found) == len(IDLE) else math.inf
        await asyncio.sleep(SAMPLE)
    return texts


def check_new(log: Log, expected: Callable[[Wish], Wish]) -> None:
    """Lets plain decoding write what was new each time.

    Args:
        log: What happened; its deliveries learn what their texts should have been.
        expected: Writes a wish alone.
    """
    new = [one for one in log.outcomes if not one.delivery.wish.expected]
    for one in tqdm(new, desc="new ones, by plain decoding", mininterval=5.0):
        wish = expected(one.delivery.wish)
        one.delivery = replace(one.delivery, wish=wish)


def summarise(args: SoakArgs, log: Log) -> Result:
    """Counts, memory, and everything that is wrong."""
    verdicts = Counter(one.verdict for one in log.outcomes)
    bad = [one for one in log.outcomes if one.verdict in ("wrong", "lost")]
    badly = [{"request": name, "answer": answer} for name, answer in log.refusals if answer]
    early, late = _memory(args, log)
    return {
        "requests": len(log.outcomes) + len(log.refusals),
        "texts": sum(len(one.texts) for one in log.outcomes if one.verdict == "right"),
        "verdicts": {name: verdicts[name] for name in ("right", "left", "busy", "wrong", "lost")},
        "malformed": len(log.refusals),
        "oversize": log.sent_oversize,
        "badly_refused": badly,
        "unfinished": log.unfinished,
        "memory": {"early": early, "late": late, "growth": late / early - 1},
        "memory_by_second": [[round(at, 1), size] for at, size in log.memory[::10]],
        "faults": [_fault(one) for one in bad],
    }


def _memory(args: SoakArgs, log: Log) -> tuple[float, float]:
    """Medians of the second and third minute, and of the last two; of a short run, of its share."""
    minute = 6 * min(args.minutes, 10)
    ends = 60 * args.minutes
    windows = (minute, 3 * minute), (ends - 2 * minute, ends)
    early, late = (_median(log.memory, *window) for window in windows)
    return early, late


def _median(memory: Sequence[tuple[float, int]], low: float, high: float) -> float:
    """Of a window; where nobody looked in it (a busy machine), what was seen nearest to it."""
    seen = [size for at, size in memory if low <= at <= high]
    return float(np.median(seen or min(memory, key=lambda one: abs(one[0] - low))[1]))


def _fault(one: Outcome) -> Json:
    """What is to be known of a wrong or lost text."""
    delivery = one.delivery
    told = {"path": delivery.wish.path, "body": delivery.body, "expected": delivery.wish.expected}
    got = {"status": one.status, "texts": one.texts, "reasons": one.reasons, "error": one.error}
    return {"verdict": one.verdict, **told, **got}


def faults_of(result: Json) -> list[str]:
    """What of the promises does not hold."""
    verdicts, growth = result["verdicts"], result["memory"]["growth"]
    checks = {
        f"{verdicts['wrong']} texts are not plain decoding's": verdicts["wrong"],
        f"{verdicts['lost']} requests have neither text nor error": verdicts["lost"],
        f"{len(result['badly_refused'])} malformed requests got no proper error": result[
            "badly_refused"
        ],
        f"{result['unfinished']:g} texts still ran when all had gone": result["unfinished"],
        f"memory grew by {100 * growth:.1f} %": growth > FLAT,
        "the oversize body was not sent": not result["oversize"],
    }
    return [problem for problem, holds in checks.items() if holds]


def tables(result: Json) -> list[Table]:
    """Counts, memory and faults."""
    facts, memory, verdicts = titled(result), result["memory"], result["verdicts"]
    title = (
        "{settings[minutes]:g} minutes of {settings[clients]} clients: {target}, {dtype}, threads "
        "{threads}; {machine}"
    ).format(**facts)
    rows = [
        ["requests", f"{result['requests']:,}"],
        ["answered rightly", f"{verdicts['right']:,} ({result['texts']:,} texts)"],
        ["left by their clients", f"{verdicts['left']:,}"],
        ["told to come again", f"{verdicts['busy']:,}"],
        ["malformed, refused properly", f"{result['malformed'] - len(result['badly_refused']):,}"],
        ["wrong texts", f"{verdicts['wrong']}"],
        ["lost", f"{verdicts['lost'] + len(result['badly_refused'])}"],
        ["memory, minutes 2 and 3", f"{memory['early'] / 2**20:,.0f} MiB"],
        ["memory, last 2 minutes", f"{memory['late'] / 2**20:,.0f} MiB"],
        ["growth", f"{100 * memory['growth']:+.1f} %"],
    ]
    notes = faults_of(result) or ["no wrong text, no leak, no request lost"]
    return [Table(title, ["what", "figure"], rows, notes=notes)]


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(1 if faults_of(measure(tyro.cli(SoakArgs, description=__doc__))) else 0)
