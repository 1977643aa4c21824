"""Long prompts are read in parts, beside texts that are being written."""

from __future__ import annotations

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.requests import NewTokens, TextRequest
from draftgym.serving.batching.watching import NoWatch, RoundFacts
from tests.serving.batches import alone, batcher, play, prompt_of, submit


class Facts(NoWatch):
    """Keeps what rounds were."""

    def __init__(self) -> None:
        self.rounds: list[RoundFacts] = []

    def round(self, facts: RoundFacts) -> None:
        """Keeps it."""
        self.rounds.append(facts)


def test_who_writes_gets_tokens_in_every_pass_that_reads_a_prompt(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    watch = Facts()
    batch = batcher(target, drafters, watch=watch, prompt_rows=16)
    first = TextRequest(prompt_of(target, 10, 0), 60)
    (writing,) = submit(batch, [first])
    batch.step()
    long = TextRequest(prompt_of(target, 150, 1), 4)
    (reading,) = submit(batch, [long])
    while not reading.tokens:
        before = len(writing.tokens)
        batch.step()
        assert len(writing.tokens) > before
    assert [facts.prompt_rows for facts in watch.rounds[1:]] == [16] * 9 + [6]
    play(batch)
    assert writing.tokens == alone(target, first) and reading.tokens == alone(target, long)


def test_alone_a_prompt_is_read_at_once(target: Target, drafters: dict[str, Drafter]) -> None:
    watch = Facts()
    batch = batcher(target, drafters, watch=watch, prompt_rows=4)
    (heard,) = submit(batch, [TextRequest(prompt_of(target, 150, 1), 4)])
    batch.step()
    assert watch.rounds[0].prompt_rows == 150 and len(heard.tokens) == 1


def test_short_prompts_share_a_pass(target: Target, drafters: dict[str, Drafter]) -> None:
    batch = batcher(target, drafters)
    heard = submit(batch, [TextRequest(prompt_of(target, 9, n), 4) for n in range(5)])
    batch.step()
    assert [len(one.tokens) for one in heard] == [1] * 5


def test_prompts_of_a_single_token_are_served(target: Target, drafters: dict[str, Drafter]) -> None:
    batch = batcher(target, drafters, "entropy")
    requests = [
        TextRequest(prompt_of(target, 1, n), 6, policy=p) for n, p in enumerate((None, "ngram:4"))
    ]
    heard = submit(batch, requests)
    play(batch)
    assert [one.tokens for one in heard] == [alone(target, one) for one in requests]


def test_the_first_token_is_told_in_the_pass_that_ends_the_prompt(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    batch = batcher(target, drafters)
    (heard,) = submit(batch, [TextRequest(prompt_of(target, 30, 3), 5)])
    batch.step()
    assert isinstance(heard.last, NewTokens) and heard.last.arm == "plain"
