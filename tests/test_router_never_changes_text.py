"""Lossless is sacred: whatever arms a policy picks, the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from decoding.arms import Arm, parse_arm
from decoding.decoder import PlainPolicy, SpeculativeDecoder
from decoding.drafting import Drafter
from decoding.target import Target
from rollouts.decode import DecodeSettings, write, write_together

ARMS = ["eagle3:1", "eagle3:4", "dflash:2", "dflash:4", "ngram:6", "plain"]


class Dice:
    """Picks arms at random; reads observations so that their code runs too."""

    observes = True

    def __init__(self, arms: Sequence[Arm], seed: int) -> None:
        self.arms = arms
        self.rng = np.random.default_rng(seed)

    def predict(self, observation: Any, *rest: Any, **named: Any) -> tuple[int, None]:
        """A random arm."""
        return int(self.rng.integers(len(self.arms))), None


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_router_never_changes_text(
    target: Target, drafters: dict[str, Drafter], temperature: float, seed: int
) -> None:
    prompt = torch.randint(4, 60, (7 + seed,), generator=torch.Generator().manual_seed(seed))
    arms = tuple(parse_arm(text) for text in ARMS)
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    routed = SpeculativeDecoder(target, drafters, Dice(arms, seed))
    expected = plain.generate(prompt, 48, temperature, seed).tokens
    result = routed.generate(prompt, 48, temperature, seed)
    assert result.tokens == expected
    assert sum(len(item.record.committed) for item in result.rounds) == len(expected) - 1


@pytest.mark.parametrize("arm", ARMS)
def test_no_single_arm_changes_text(target: Target, drafters: dict[str, Drafter], arm: str) -> None:
    prompt = torch.tensor([5, 9, 5, 9, 5, 9, 7])
    expected = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 40).tokens
    policy = Dice([parse_arm(arm)], 0)
    assert SpeculativeDecoder(target, drafters, policy).generate(prompt, 40).tokens == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_policies_in_shared_passes_keep_their_texts(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    prompt = torch.tensor([5, 9, 5, 9, 5, 9, 7])
    arms = tuple(parse_arm(text) for text in ARMS)
    policies = {f"dice-{seed}": Dice(arms, seed) for seed in range(3)}
    settings = DecodeSettings(40, temperature)
    expected = write(SpeculativeDecoder(target, {}, PlainPolicy()), prompt, settings).tokens
    texts = write_together(target, drafters, policies, prompt, settings)
    assert texts == dict.fromkeys(policies, expected)


def test_drafts_are_accepted_and_refused_in_these_tests(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    """Guards the tests above: they mean something only if both outcomes occur."""
    arms = tuple(parse_arm(text) for text in ARMS)
    prompt = torch.tensor([5, 9, 5, 9, 5, 9, 7])
    decoder = SpeculativeDecoder(target, drafters, Dice(arms, 0))
    rounds = decoder.generate(prompt, 96, temperature=1.0).rounds
    assert any(item.record.accepted for item in rounds)
    assert any(item.record.accepted < len(item.record.drafted) for item in rounds)
