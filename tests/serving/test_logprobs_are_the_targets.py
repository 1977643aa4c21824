"""Log-probabilities are those of the target's own distribution at temperature 1."""

from __future__ import annotations

import pytest
import torch

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.requests import NewTokens, TextRequest, TokenLogprob
from tests.serving.batches import batcher, prompt_of, written


def expected(target: Target, tokens: list[int]) -> torch.Tensor:
    """Of every next token `[n, vocab]`, by one pass."""
    rows = NewRows(target.decoder.new_cache(len(tokens)), torch.tensor(tokens))
    return target.decoder.forward([rows])[0].logits.log_softmax(-1)


def check(told: list[TokenLogprob], tokens: list[int], logprobs: torch.Tensor, top: int) -> None:
    assert [one.token for one in told] == tokens
    for one, row in zip(told, logprobs, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        best = row.topk(top)
        assert [token for token, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("policy", ["plain", "eagle3:3x6", "ngram:4"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt_rows", [7, 64])
def test_of_new_tokens_and_of_the_prompt(
    policy: str,
    temperature: float,
    prompt_rows: int,
    target: Target,
    drafters: dict[str, Drafter],
) -> None:
    batch = batcher(target, drafters, policy, prompt_rows=prompt_rows)
    requests = [
        TextRequest(prompt_of(target, 30 + n, n), 16, temperature, logprobs=3, prompt_logprobs=2)
        for n in range(3)
    ]
    for request, heard in zip(requests, written(batch, requests), strict=True):
        prompt = request.prompt.tolist()
        rows = expected(target, [*prompt, *heard.tokens])
        check(list(heard.prompt.logprobs), prompt[1:], rows[: len(prompt) - 1], 2)
        new = [one for e in heard.events if isinstance(e, NewTokens) for one in e.logprobs]
        check(new, heard.tokens, rows[len(prompt) - 1 : -1], 3)


def test_a_prompt_can_be_scored_without_writing(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    prompt = prompt_of(target, 20, 0)
    (heard,) = written(batcher(target, drafters), [TextRequest(prompt, 0, prompt_logprobs=0)])
    assert not heard.tokens and len(heard.prompt.logprobs) == 19
    rows = expected(target, prompt.tolist())[:-1]
    check(list(heard.prompt.logprobs), prompt.tolist()[1:], rows, 0)
