"""Prompts that begin alike share what is known of the beginning, and nothing else changes."""

from __future__ import annotations

import pytest

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.requests import TextRequest
from tests.serving.batches import alone, batcher, play, prompt_of, submit, written
from tests.serving.test_prompts_stall_nobody import Facts

POLICIES = ["eagle3:3", "eagle3:4x8", "dflash:3", "dflash:3x5", "ngram:4", "entropy"]


@pytest.mark.parametrize("policy", POLICIES)
def test_acceptance_with_a_reused_beginning_is_what_it_is_without(
    policy: str, target: Target, drafters: dict[str, Drafter]
) -> None:
    """Others' engines lose acceptance there: their drafters begin without the prefix."""
    first = TextRequest(prompt_of(target, 40, 0), 30)
    batch = batcher(target, drafters, policy)
    (before,) = written(batch, [first])
    turn = first.prompt.tolist() + before.tokens
    following = TextRequest(prompt_of(target, len(turn) + 9, 1, turn), 60)
    (reused,) = written(batch, [following])
    (anew,) = written(batcher(target, drafters, policy), [following])
    assert reused.statistics.reused_tokens == len(turn) - 1  # the newest token was never read
    assert anew.statistics.reused_tokens == 0
    assert reused.tokens == anew.tokens == alone(target, following)
    assert reused.statistics.drafted == anew.statistics.drafted
    assert reused.statistics.accepted == anew.statistics.accepted
    assert sum(anew.statistics.drafted) > 0


def test_a_beginning_is_taken_from_a_text_that_is_still_written(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    common = prompt_of(target, 50, 0).tolist()
    requests = [TextRequest(prompt_of(target, 60, n, common), 20) for n in (1, 2)]
    batch = batcher(target, drafters)
    (first,) = submit(batch, requests[:1])
    for _ in range(3):
        batch.step()
    (second,) = submit(batch, requests[1:])
    play(batch)
    assert second.statistics.reused_tokens == 50
    assert [first.tokens, second.tokens] == [alone(target, one) for one in requests]


def test_choices_of_one_prompt_read_it_once(target: Target, drafters: dict[str, Drafter]) -> None:
    watch = Facts()
    batch = batcher(target, drafters, watch=watch)
    prompt = prompt_of(target, 80, 0)
    requests = [TextRequest(prompt, 12, temperature=1.0, seed=n) for n in range(5)]
    heard = written(batch, requests)
    assert sum(facts.prompt_rows for facts in watch.rounds) == 80 + 4
    assert [one.statistics.reused_tokens for one in heard] == [0, *[79] * 4]
    assert [one.tokens for one in heard] == [alone(target, one) for one in requests]
    assert len({tuple(one.tokens) for one in heard}) == 5


def test_a_prompt_whose_tokens_are_scored_is_read_as_a_whole(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters)
    prompt = prompt_of(target, 80, 0)
    written(batch, [TextRequest(prompt, 4)])
    (heard,) = written(batch, [TextRequest(prompt, 4, prompt_logprobs=0)])
    assert heard.statistics.reused_tokens == 0 and len(heard.prompt.logprobs) == 79


def test_a_longer_text_takes_the_place_of_the_one_it_covers(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters)
    said: list[int] = []
    for turn in range(6):
        request = TextRequest(prompt_of(target, len(said) + 5, turn, said), 8)
        (heard,) = written(batch, [request])
        said = request.prompt.tolist() + heard.tokens
    assert batch.kept == 1


def test_a_batch_without_reuse_reads_everything(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    """Or a measurement that sends the same prompts again would flatter whoever comes second."""
    watch = Facts()
    batch = batcher(target, drafters, watch=watch, reuse=False)
    requests = [TextRequest(prompt_of(target, 80, 0), 12)] * 3
    for some in (requests[:2], requests[2:]):
        assert [one.tokens for one in written(batch, some)] == [alone(target, requests[0])] * len(
            some
        )
    assert sum(facts.prompt_rows for facts in watch.rounds) == 3 * 80
    assert batch.kept == 0 and batch.bytes_in_use == 0
