"""What a client predicts is drafted where the text follows it."""

from __future__ import annotations

import pytest

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.requests import TextRequest
from tests.serving.batches import alone, batcher, prompt_of, written


@pytest.mark.parametrize("policy", ["plain", "eagle3:3", "ngram:8>eagle3:3"])
def test_a_right_prediction_is_accepted(
    policy: str, target: Target, drafters: dict[str, Drafter]
) -> None:
    request = TextRequest(prompt_of(target, 20, 3), 40, temperature=1.0, seed=5)
    text = tuple(alone(target, request))
    predicted = TextRequest(request.prompt, 40, 1.0, 5, prediction=text)
    (heard,) = written(batcher(target, drafters, policy), [predicted])
    assert heard.tokens == list(text)
    # But for the first two tokens, which must match before anything is copied.
    assert sum(heard.statistics.accepted) >= len(text) - 8


def test_a_wrong_prediction_changes_nothing(target: Target, drafters: dict[str, Drafter]) -> None:
    request = TextRequest(
        prompt_of(target, 20, 3), 40, prediction=tuple(prompt_of(target, 60, 9).tolist())
    )
    (heard,) = written(batcher(target, drafters), [request])
    assert heard.tokens == alone(target, request)


def test_a_named_policy_is_kept(target: Target, drafters: dict[str, Drafter]) -> None:
    text = tuple(prompt_of(target, 60, 9).tolist())
    request = TextRequest(prompt_of(target, 20, 3), 20, prediction=text, policy="plain")
    (heard,) = written(batcher(target, drafters), [request])
    assert sum(heard.statistics.drafted) == 0
