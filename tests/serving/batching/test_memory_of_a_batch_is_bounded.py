"""Caches come from a pool: what does not fit waits, and what has begun always ends."""

from __future__ import annotations

import pytest

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.batcher import QueueFull
from draftgym.serving.batching.requests import Failed, TextRequest
from tests.serving.batches import alone, batcher, play, prompt_of, submit, written

SMALL = 1 << 20


def test_texts_wait_until_there_is_memory(target: Target, drafters: dict[str, Drafter]) -> None:
    batch = batcher(target, drafters, cache_bytes=SMALL)
    requests = [TextRequest(prompt_of(target, 20 + 9 * n, n), 10 + 3 * n) for n in range(12)]
    heard = submit(batch, requests)
    most, waited = 0, False
    while batch.running or batch.waiting:
        batch.step()
        most, waited = max(most, batch.bytes_in_use), waited or batch.waiting > 0
    assert waited and 0 < most <= SMALL
    assert [one.tokens for one in heard] == [alone(target, one) for one in requests]


def test_finished_texts_make_room(target: Target, drafters: dict[str, Drafter]) -> None:
    batch = batcher(target, drafters, cache_bytes=SMALL)
    for number in range(20):
        written(batch, [TextRequest(prompt_of(target, 30 + number, number), 8)])
        assert batch.kept > 0 and batch.bytes_in_use <= SMALL


def test_a_text_that_never_fits_is_refused_at_once(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters, cache_bytes=SMALL // 8)
    with pytest.raises(DraftgymError, match="cache"):
        submit(batch, [TextRequest(prompt_of(target, 200, 0), 50)])
    with pytest.raises(DraftgymError, match="256 positions"):
        submit(batcher(target, drafters), [TextRequest(prompt_of(target, 200, 0), 57)])


def test_a_full_queue_refuses_and_says_when_to_come_back(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters, most_waiting=2)
    request = TextRequest(prompt_of(target, 5, 0), 4)
    heard = submit(batch, [request, request])
    with pytest.raises(QueueFull) as caught:
        submit(batch, [request])
    assert caught.value.retry_after >= 1
    play(batch)
    assert all(one.tokens == alone(target, request) for one in heard)
    assert len(written(batch, [request])) == 1


def test_a_text_that_leaves_frees_its_place_within_a_round(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters, most_running=1)
    requests = [TextRequest(prompt_of(target, 9, n), 30) for n in range(2)]
    heard = submit(batch, requests)
    batch.step()
    assert heard[0].tokens and not heard[1].tokens
    batch.cancel(0)
    batch.step()
    assert batch.running == 1 and heard[1].tokens and len(heard[0].tokens) == 1


def test_a_text_that_leaves_the_queue_is_never_begun(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters, most_running=1)
    request = TextRequest(prompt_of(target, 9, 0), 6)
    heard = submit(batch, [request] * 3)
    batch.cancel(1)
    play(batch)
    assert [len(one.events) > 0 for one in heard] == [True, False, True]


def test_a_round_that_fails_ends_its_texts_and_no_others(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batcher(target, drafters)
    request = TextRequest(prompt_of(target, 9, 0), 12)
    (failed,) = submit(batch, [request])
    batch.step()
    with monkeypatch.context() as broken:

        def break_down(*_: object) -> None:
            raise DraftgymError("the target produced NaN logits")

        broken.setattr(target.decoder, "forward", break_down)
        batch.step()
    assert failed.last == Failed("the target produced NaN logits", is_ours=True)
    assert batch.running == 0 and batch.bytes_in_use == 0
    (after,) = written(batch, [request])
    assert after.tokens == alone(target, request)


def test_a_listener_that_is_gone_hurts_nobody(target: Target, drafters: dict[str, Drafter]) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    batch = batcher(target, drafters)
    request = TextRequest(prompt_of(target, 9, 0), 12)
    batch.submit(request, gone)
    (heard,) = submit(batch, [request])
    play(batch)
    assert heard.tokens == alone(target, request)
