"""Whatever suffix decoding copies, and from whatever store, the text is plain decoding's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.drafters.suffix.store import END, ResponseStore
from draftgym.policies.routers.rules import FixedPolicy, RandomPolicy
from draftgym.rollouts.decode.interleaved import DecodeSettings, write, write_together
from tests.decoding.verify.test_verification_is_lossless import (
    TEMPERATURE,
    VOCAB,
    Table,
    Tokens,
    assert_law_is_the_targets,
    committed,
    enumerate_coins,
)
from tests.drafters.test_suffix_drafts_what_followed_most_often import asked

ARMS = ("suffix:1", "suffix:8", "suffix:3x6", "suffix:8x16")
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])
LENGTH = 40


def drafters_with(target: Target, store: str) -> dict[str, Drafter]:
    """Suffix decoding without a store, with one of noise, or of the very texts that are written."""
    if store == "none":
        return {"suffix": SuffixDrafter()}
    tokens = torch.randint(61, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    if store == "the text":
        plain = SpeculativeDecoder(target, {}, PlainPolicy())
        texts = [plain.generate(PROMPT, LENGTH, float(seed), seed).tokens for seed in (0, 1)]
        tokens = [*texts[0], END, *texts[1]]
    return {"suffix": SuffixDrafter(store=ResponseStore(np.array([*tokens, END], np.int32), 16))}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("store", ["none", "noise", "the text"])
def test_suffix_writes_plain_decodings_text(target: Target, store: str, seed: int) -> None:
    """Greedy with seed 0, sampled with seed 1: alone, and with others in shared passes."""
    drafters, settings = drafters_with(target, store), DecodeSettings(LENGTH, float(seed), seed)
    expected = write(SpeculativeDecoder(target, {}, PlainPolicy()), PROMPT, settings).tokens
    longest = 0.0
    for arm in ARMS:
        decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
        text = write(decoder, PROMPT, settings)
        assert text.tokens == expected
        longest = max(longest, text.acceptance_length)
    if store == "the text" or not seed:  # of sampled tokens hardly one was there before
        assert longest > (4 if store == "the text" else 1), "what is copied is accepted"
    arms = tuple(map(parse_arm, (*ARMS, "plain")))
    policies = {str(die): RandomPolicy(arms, die) for die in range(3)}
    texts = write_together(target, drafters, policies, PROMPT, settings)
    assert texts == dict.fromkeys(policies, expected)


@pytest.mark.parametrize("shape", [DraftShape(4), DraftShape(2, 3), DraftShape(3, 6)])
def test_suffix_keeps_the_targets_law_under_rejection(shape: DraftShape) -> None:
    """Exactly: over every way in which the coins can fall."""
    target = Table(5)
    text = [0, 1, 2, 0, 1, 3, 2, 0, 1, 2, 1, 0, 1]
    proposal, _ = asked(SuffixDrafter(factor=4.0), text, shape)
    assert len(proposal) == shape.budget and proposal.is_chain != shape.is_tree

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        return committed(proposal, rule.verify(proposal, target.rows((), proposal), -1))

    assert_law_is_the_targets(enumerate_coins(run), target)
