"""Lossless is sacred: whatever arms a policy picks, the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.decode.interleaved import DecodeSettings, write, write_together

CHAINS = ["eagle3:1", "eagle3:4", "dflash:2", "dflash:4", "ngram:6", "plain"]
TREES = ["eagle3:2x2", "eagle3:4x8", "eagle3:6x40", "dflash:2x5", "dflash:4x12", "dflash:4x64"]
JOINT = [
    "ngram:6>eagle3:4x8",
    "ngram:6@4>dflash:2",
    "eagle3:4+ngram:6",
    "dflash:4x12~0.02+ngram:6@3",
]
ARMS = CHAINS + TREES + JOINT


class Dice:
    """Picks arms at random; reads observations so that their code runs too."""

    observes = True

    def __init__(self, arms: Sequence[Arm], seed: int) -> None:
        self.arms = arms
        self.rng = np.random.default_rng(seed)

    def predict(self, observation: Any, *rest: Any, **named: Any) -> tuple[int, None]:
        """A random arm."""
        return int(self.rng.integers(len(self.arms))), None


@pytest.mark.parametrize(
    ("seed", "temperature"), [(0, 0.0), (0, 1.0), (1, 0.7), (2, 0.0), (3, 0.7), (3, 1.0)]
)
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


class Plain:
    """Plain decoding's texts, each written once."""

    def __init__(self, target: Target) -> None:
        self.decoder, self.texts = SpeculativeDecoder(target, {}, PlainPolicy()), {}

    def text(self, prompt: torch.Tensor, length: int, temperature: float = 0.0) -> list[int]:
        """The text behind a prompt."""
        key = (*prompt.tolist(), length, temperature)
        if key not in self.texts:
            self.texts[key] = self.decoder.generate(prompt, length, temperature).tokens
        return self.texts[key]


@pytest.fixture(scope="module")
def plain(target: Target) -> Plain:
    return Plain(target)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("arm", ARMS)
def test_no_single_arm_changes_text(
    target: Target, drafters: dict[str, Drafter], plain: Plain, arm: str, temperature: float
) -> None:
    prompt = torch.tensor([5, 9, 5, 9, 5, 9, 7])
    routed = SpeculativeDecoder(target, drafters, Dice([parse_arm(arm)], 0))
    expected = plain.text(prompt, 40, temperature)
    assert routed.generate(prompt, 40, temperature).tokens == expected


LONGEST = [
    *("eagle3:16", "eagle3:16x64", "eagle3:1x64", "dflash:4", "dflash:4x64"),
    *("small:16", "small:16x64", "ngram:16"),
]


@pytest.mark.parametrize("arm", LONGEST)
def test_what_fits_plain_decoding_fits_every_arm(
    target: Target, drafters: dict[str, Drafter], plain: Plain, arm: str
) -> None:
    """Texts that fill the context to its last position: drafts shrink at the end."""
    prompt = torch.randint(4, 60, (199,), generator=torch.Generator().manual_seed(3))
    new_tokens = target.context_limit - len(prompt)
    routed = SpeculativeDecoder(target, drafters, Dice([parse_arm(arm)], 0))
    expected = plain.text(prompt, new_tokens)
    assert len(expected) == new_tokens
    result = routed.generate(prompt, new_tokens)
    assert result.tokens == expected
    assert any(item.record.drafted for item in result.rounds[-3:])
    for decoder in (plain.decoder, routed):
        with pytest.raises(DraftgymError, match="do not fit"):
            decoder.generate(prompt, new_tokens + 1)


def test_a_shared_pass_fills_the_context_too(target: Target, drafters: dict[str, Drafter]) -> None:
    prompt = torch.randint(4, 60, (199,), generator=torch.Generator().manual_seed(3))
    settings = DecodeSettings(target.context_limit - len(prompt))
    policies = {arm: Dice([parse_arm(arm)], 0) for arm in ("ngram:16", "eagle3:16x64", "dflash:4")}
    expected = write(SpeculativeDecoder(target, {}, PlainPolicy()), prompt, settings).tokens
    texts = write_together(target, drafters, policies, prompt, settings)
    assert texts == dict.fromkeys(policies, expected)


@pytest.mark.parametrize("arm", ["eagle3:6x40", "dflash:4x12"])
def test_trees_are_accepted_and_refused_in_these_tests(
    target: Target, drafters: dict[str, Drafter], arm: str
) -> None:
    """Guards the tests above: trees are accepted, refused, and accepted off their first path."""
    prompt = torch.tensor([5, 9, 5, 9, 5, 9, 7])
    decoder = SpeculativeDecoder(target, drafters, Dice([parse_arm(arm)], 0))
    records = [
        item.record
        for seed in range(4)
        for item in decoder.generate(prompt, 60, temperature=1.0, seed=seed).rounds
    ]
    assert any(len(record.drafted) > record.depth for record in records)
    kept = [record for record in records if record.accepted]
    assert kept and any(record.committed[0] != record.drafted[0] for record in kept)
    assert any(record.accepted == 0 for record in records if record.drafted)


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
