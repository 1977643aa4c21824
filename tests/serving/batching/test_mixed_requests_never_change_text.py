"""Whatever clients ask of a server at once, each gets what plain decoding writes for it alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from benchmarks.serving.malformed import MALFORMED, Malformed, oversize, send
from benchmarks.serving.mixed import Delivery, Outcome, Wish, deliver, draw_delivery, make_wishes
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.serving.batching.batcher import Batcher, BatchSettings
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.http.app import make_app
from draftgym.serving.http.encoding import Encoding
from draftgym.serving.http.service import Limits, Model, Service
from tests.serving.clients.served import Served, make_tiny, serve
from tests.serving.scripted import running

PATIENCE = 600.0  # seconds; one that waits so long has been forgotten
PROMPTS = ("Why is the sky blue?", "Count to ten: one, two, three, one, two, three,", "Hé, čau! 🙂")
POLICIES = (
    *("plain", "eagle3:3", "eagle3:4x8", "ngram:4", "ngram:3>eagle3:2x5"),
    *("random@eagle3:2,ngram:4,plain", "by-batch@1=eagle3:3x6,5=ngram:4,17=plain"),
)


async def _all(url: str, deliveries: Sequence[Delivery], clients: int) -> list[Outcome]:
    """All deliveries, so many at the same time."""
    places = asyncio.Semaphore(clients)

    async def one(http: httpx2.AsyncClient, delivery: Delivery) -> Outcome:
        async with places:
            return await deliver(http, delivery)

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:
        return await asyncio.gather(*(one(http, delivery) for delivery in deliveries))


def _check(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Nothing is wrong and nothing is lost; how they ended."""
    bad = [one for one in outcomes if one.verdict in ("wrong", "lost", "busy")]
    assert not bad, "\n".join(str((one.verdict, one, one.delivery.wish.expected)) for one in bad)
    return Counter(one.verdict for one in outcomes)


def _wait_until_idle(batcher: Batcher) -> None:
    """Those who left leave their places within a round."""
    deadline = time.monotonic() + PATIENCE
    while batcher.running or batcher.waiting:
        assert time.monotonic() < deadline, "a text still has its place"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A server whose cache holds few texts more than those that run."""
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    with serve(tiny, most_running=32, cache_bytes=24 << 20) as one:
        yield one


@pytest.fixture(scope="module")
def wishes(served: Served) -> list[Wish]:
    """Forty texts of all kinds."""
    return list(make_wishes(served.tiny.target(), PROMPTS, 40, 40))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_32_clients_get_what_plain_decoding_writes_for_each_alone(
    seed: int, served: Served, wishes: list[Wish]
) -> None:
    rng = random.Random(seed)
    drawn = [draw_delivery(rng, rng.choice(wishes), POLICIES, leaving=0.1) for _ in range(160)]
    counts = _check(asyncio.run(_all(served.address, drawn, 32)))
    assert counts["right"] > 120 and counts["left"] > 3
    _wait_until_idle(served.batcher)


@pytest.mark.slow
def test_a_guard_changes_no_text(served: Served, wishes: list[Wish]) -> None:
    rng = random.Random(7)
    drawn = [draw_delivery(rng, rng.choice(wishes), POLICIES, leaving=0.1) for _ in range(120)]
    with serve(served.tiny, guard=True) as guarded:
        _check(asyncio.run(_all(guarded.address, drawn, 32)))
        _wait_until_idle(guarded.batcher)


@pytest.mark.parametrize("bad", [*MALFORMED, oversize()], ids=lambda bad: bad.name)
def test_what_cannot_be_served_gets_a_proper_error(bad: Malformed, served: Served) -> None:
    async def answer() -> str:
        async with httpx2.AsyncClient(base_url=served.address, timeout=PATIENCE) as http:
            return await send(http, bad)

    assert asyncio.run(answer()) == ""
    _wait_until_idle(served.batcher)


@pytest.mark.slow
@pytest.mark.real_model
def test_mixed_requests_to_the_real_model(
    real: tuple[Target, dict[str, Drafter]], tmp_path: Path
) -> None:
    target, drafters = real
    prompts = [prompt.turns[0] for prompt in load_prompts("train", limit_per_category=2)]
    rng, policies = random.Random(0), PolicySet(target, drafters, {"router": "router"})
    wishes = list(make_wishes(target, prompts, 9, 9))
    names = ("plain", "ngram:8>eagle3:3x6", "eagle3:3x6", "dflash:2", "ngram:8", "router")
    drawn = [draw_delivery(rng, wish, names, leaving=0.1) for wish in [*wishes, *wishes]]
    batcher = Batcher(target, drafters, policies, BatchSettings())
    service = Service(target.name, Limits())
    service.serve(Model(target, batcher, policies, Encoding(target)))
    batcher.start()
    try:
        with running(make_app(service)) as address:
            assert _check(asyncio.run(_all(address, drawn, 10)))["right"] > 10
            _wait_until_idle(batcher)
    finally:
        batcher.close()
