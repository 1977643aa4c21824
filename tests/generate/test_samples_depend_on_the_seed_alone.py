"""Sampled texts: of torch's seed, of `generate()`'s distribution, and of no policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.transformers import speculate
from tests.generate.prompts import PROMPT, padded
from tests.tiny import tiny_eagle3, tiny_model, tiny_target

SHAPED: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
OTHER: dict[str, Any] = {"top_k": 0, "typical_p": 0.8, "repetition_penalty": 1.2}
MODEL = tiny_model()


def loop(policy: str) -> Any:
    target = tiny_target()
    drafters = {"eagle3": tiny_eagle3(target), "ngram": NgramDrafter(shortest=1)}
    return speculate(policy, drafters, "compact")


def sample(seed: int, custom: Any, **asked: Any) -> Tensor:
    torch.manual_seed(seed)
    asked = {"do_sample": True, "max_new_tokens": 12, "inputs": PROMPT} | asked
    ids: Tensor = MODEL.generate(**asked, custom_generate=custom)
    return ids


@pytest.mark.parametrize("asked", [SHAPED, OTHER, {}], ids=["shaped", "other", "plain"])
def test_a_text_is_the_seeds_and_not_the_policys(asked: dict[str, Any]) -> None:
    loops = [loop(policy) for policy in ("plain", "ngram:4", "eagle3:3", "eagle3:3x6")]
    texts = [[sample(seed, one, **asked) for one in loops] for seed in range(3)]
    for same in texts:
        assert all(torch.equal(same[0], one) for one in same)
    assert not torch.equal(texts[0][0], texts[1][0])


def test_a_second_call_writes_another_text() -> None:
    one = loop("ngram:4")
    first = sample(0, one)
    second = MODEL.generate(PROMPT, do_sample=True, max_new_tokens=12, custom_generate=one)
    assert not torch.equal(first, second)


def test_padding_changes_no_sample() -> None:
    one = loop("ngram:4")
    asked = padded(5)
    alone = sample(3, one, inputs=asked["input_ids"])
    ids = torch.cat([torch.full((1, 4), 2), asked["input_ids"]], 1)
    mask = (torch.arange(9) >= 4).long()[None]
    assert torch.equal(sample(3, one, inputs=ids, attention_mask=mask)[:, 4:], alone)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [SHAPED, OTHER], ids=["shaped", "other"])
def test_tokens_have_generates_distribution(asked: dict[str, Any]) -> None:
    count = 1500
    wanted = {"do_sample": True, "max_new_tokens": 1} | asked
    told = {"output_scores": True, "return_dict_in_generate": True}
    expected = MODEL.generate(PROMPT, **wanted, **told).scores[0][0].softmax(-1) * count
    one = speculate("ngram:4", backend="compact")
    torch.manual_seed(0)
    parts = [
        MODEL.generate(PROMPT, **wanted, num_return_sequences=50, custom_generate=one)[:, 12]
        for _ in range(count // 50)
    ]
    seen = torch.bincount(torch.cat(parts), minlength=len(expected)).float()
    assert not seen[expected == 0].any()
    often = expected >= 5
    surplus = ((seen - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum()) - 1
    assert surplus < freedom + 5 * (2 * freedom) ** 0.5  # five deviations of a chi-square
