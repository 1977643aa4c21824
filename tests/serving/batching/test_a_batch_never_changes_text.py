"""A text is what plain decoding writes for its request alone, whoever else is in the batch."""

from __future__ import annotations

import random
import threading

import pytest

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.serving.batching.requests import Finished, NewTokens, TextRequest
from tests.serving.batches import alone, batcher, play, prompt_of, submit, written
from tests.tiny import ONE_THREAD, tiny_drafters, tiny_model, tiny_target

POLICIES = (
    *("plain", "eagle3:3", "eagle3:3x6", "dflash:3", "dflash:3x5", "ngram:4", "entropy"),
    *("ngram:4>eagle3:3x6", "by-batch@1=eagle3:3,3=ngram:4,6=plain", None),
)


def strange(target: Target, count: int, seed: int) -> list[TextRequest]:
    """Requests of every kind, many of which begin alike."""
    rng = random.Random(seed)
    common = prompt_of(target, 40, seed).tolist()
    requests = []
    for index in range(count):
        begin = common[: rng.choice([0, 3, 17, 40])]
        prompt = prompt_of(target, len(begin) + rng.randrange(1, 50), 100 * seed + index, begin)
        ends = rng.choice([(), (rng.randrange(5, target.vocab_size),)])
        requests.append(
            TextRequest(
                prompt,
                rng.randrange(0, 24),
                temperature=rng.choice([0.0, 0.0, 0.7, 1.0]),
                seed=rng.randrange(1 << 40),
                sampling=rng.choice([SamplingSettings(), SamplingSettings(5, 0.9, 0.0, 1.2)]),
                stops=Stops(ends, ignore_eos=rng.random() < 0.5),
                policy=rng.choice(POLICIES),
                max_draft=rng.choice([None, None, 0, 2]),
                prediction=tuple(common[:10]) if rng.random() < 0.2 else (),
                logprobs=rng.choice([None, 0, 2]),
                prompt_logprobs=rng.choice([None, None, 1]),
            )
        )
    return requests


@pytest.mark.parametrize(
    ("kind", "seed"), [("llama", 0), ("llama", 1), ("gemma2", 1), ("gemma2", 2), ("qwen3", 2)]
)
def test_every_text_is_plain_decodings(kind: str, seed: int) -> None:
    target = tiny_target(kind)
    requests = strange(target, 24, seed)
    batch = batcher(target, tiny_drafters(target), most_running=8, prompt_rows=8)
    for request, heard in zip(requests, written(batch, requests), strict=True):
        assert heard.tokens == alone(target, request)
        assert isinstance(heard.last, Finished)


def test_texts_of_a_model_that_transformers_drives_are_its_own() -> None:
    target = wrap_model(tiny_model("gpt2"), None, "tiny-gpt2", ONE_THREAD)
    requests = [
        TextRequest(prompt_of(target, 9 + n, n), 8, policy=policy)
        for n, policy in enumerate(["ngram:4", "plain", "ngram:2"])
    ]
    heard = written(
        batcher(target, {"ngram": tiny_drafters(tiny_target())["ngram"]}, "plain"), requests
    )
    assert [one.tokens for one in heard] == [alone(target, one) for one in requests]


def test_texts_that_leave_change_nothing_for_those_who_stay(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    requests = [one for one in strange(target, 24, 7) if one.max_new_tokens]
    batch = batcher(target, drafters, most_running=6, prompt_rows=8)
    heard = submit(batch, requests)
    rng = random.Random(0)
    gone = set(rng.sample(range(len(requests)), 8))
    for number in sorted(gone):
        for _ in range(3):
            batch.step()
        batch.cancel(number)
    play(batch)
    for number, (request, one) in enumerate(zip(requests, heard, strict=True)):
        expected = alone(target, request)
        if number in gone:
            assert one.tokens == expected[: len(one.tokens)]
        else:
            assert one.tokens == expected


def test_what_is_told_of_a_round_adds_up(target: Target, drafters: dict[str, Drafter]) -> None:
    requests = [TextRequest(prompt_of(target, 12, n), 20, logprobs=1) for n in range(4)]
    for heard in written(batcher(target, drafters, "eagle3:3x6"), requests):
        rounds = [event for event in heard.events if isinstance(event, NewTokens)][1:]
        counted = heard.statistics
        assert [event.accepted for event in rounds] == counted.accepted
        assert sum(counted.arms.values()) == len(rounds) == len(counted.drafted)
        assert all(len(event.logprobs) == len(event.tokens) for event in rounds)
        assert all(0 <= event.accepted <= len(event.tokens) for event in rounds)


def test_the_thread_writes_what_steps_write(target: Target, drafters: dict[str, Drafter]) -> None:
    requests = strange(target, 16, 9)
    batch = batcher(target, drafters, most_running=8)
    over = threading.Semaphore(0)
    heard: list[list[int]] = [[] for _ in requests]
    batch.start()
    for request, tokens in zip(requests, heard, strict=True):

        def hear(event: object, tokens: list[int] = tokens) -> None:
            if isinstance(event, NewTokens):
                tokens.extend(event.tokens)
            elif isinstance(event, Finished):
                over.release()

        batch.submit(request, hear)
    assert all(over.acquire(timeout=300) for _ in requests)
    batch.close()
    assert heard == [alone(target, one) for one in requests]
