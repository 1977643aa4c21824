"""A sampled text tells exactly how rejection verification would have fared with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter, DraftShape, PrefixView
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.positions.recorded import (
    ForcedRule,
    RecordedText,
    chances_at_each,
    expected_rounds,
    rounds_at_each,
)
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import run_target
from draftgym.policies.routers.rules import FixedPolicy
from tests.decoding.verify.test_verification_is_lossless import (
    TEMPERATURE,
    Table,
    Tokens,
    committed,
    draft_chain,
    enumerate_coins,
)
from tests.feature_context import random_texts

PROMPT = torch.tensor([5, 9, 5, 9, 7])


def recorded(
    target: Target, drafter: Drafter, text: Text, rule: VerificationRule, limit: int | None = None
) -> tuple[RecordedText, Tensor]:
    """A text with its taps, and the target's logits behind each of its tokens `[n, vocab]`."""
    (found,) = run_target(target, [text], drafter.tap_layers)
    made = RecordedText(
        text.tokens, text.prompt_length, found.taps, drafter.tap_layers, rule, limit
    )
    return made, target.compact.row_work.score(found.hidden).float()


def logprobs_of(text: Text, logits: Tensor, temperature: float) -> Tensor:
    """The target's log-probabilities of the response tokens but the first."""
    first = text.prompt_length
    rows = (logits[first:-1] / temperature).log_softmax(-1)
    return rows.gather(-1, text.tokens[first + 1 :, None])[:, 0]


@pytest.mark.parametrize("name", ["eagle3", "dflash", "small"])
def test_chances_are_products_of_min_one_q_over_p(
    target: Target, drafters: dict[str, Drafter], name: str
) -> None:
    """Drafted behind one prefix after the other, each drafted token fed from the text."""
    drafter, temperature, depth = drafters[name], 0.7, 3
    (text,) = random_texts([(6, 12)], target.vocab_size, seed=4)
    made, logits = recorded(target, drafter, text, ForcedRule(text.tokens, temperature))
    wanted = logprobs_of(text, logits, temperature)
    chances = chances_at_each(drafter, made, wanted, depth)
    assert chances.shape == (depth, 11)
    state, impossible = drafter.new_state(64), 0
    for position in range(11):
        view = PrefixView(made, text.prompt_length + 1 + position)
        drafter.catch_up(state, view)
        chance, left = 1.0, 11 - position  # tokens to come; the last of them is the target's own
        for step in range(depth):
            if step >= left - 1:
                assert chances[step, position] == 0
                continue
            q = float(drafter.propose(state, view, DraftShape(step + 1)).logprobs[step].exp())
            token = int(text.tokens[text.prompt_length + 1 + position + step])
            impossible += q == 0
            assert (q == 0) == (name == "eagle3" and token >= 40), "its vocabulary has 40 tokens"
            chance *= min(1.0, q / float(wanted[position + step].exp()))
            assert chances[step, position] == pytest.approx(chance, rel=1e-3, abs=1e-9)
    assert impossible or name != "eagle3"


LENGTH = 4
"""Tokens of an enumerated text; the first comes with the prompt."""


def decode(drafter: Table, target: Table, depth: int, coins: Coins) -> Tokens:
    """A text behind its first token 0 by live rejection; its last entry counts the rounds."""
    rule = RejectionRule(TEMPERATURE, 0, target.vocab, coins)
    text, rounds = (0,), 0
    while len(text) < LENGTH:
        room = LENGTH - len(text) - 1
        proposal = draft_chain(rule, drafter, text, min(depth, room)) if room else None
        if proposal is None:
            text = (*text, coins.pick(torch.tensor(target.probs(text))))
        else:
            rows = target.rows(text, proposal)
            text += committed(proposal, rule.verify(proposal, rows, len(text) - 1))
        rounds += 1
    return (*text, rounds)


def ratios(drafter: Table, target: Table, text: Tokens, start: int, depth: int) -> Iterator[float]:
    """min(1, q / p) along a text behind its first `start` tokens, as far as a draft counts."""
    for at in range(start, min(start + depth, LENGTH - 1)):
        q, p = drafter.probs(text[:at])[text[at]], target.probs(text[:at])[text[at]]
        yield min(1.0, q / p)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_expected_rounds_are_exact_for_every_text(depth: int, seed: int) -> None:
    """Every way that the coins of a whole decoding can fall, text by text."""
    drafter, target = Table(2 * seed, vocab=2), Table(2 * seed + 1, vocab=2)
    law = enumerate_coins(lambda coins: decode(drafter, target, depth, coins))
    mass: dict[Tokens, float] = defaultdict(float)
    rounds: dict[Tokens, float] = defaultdict(float)
    for (*text, count), probability in law.items():
        mass[tuple(text)] += probability
        rounds[tuple(text)] += probability * count
    assert len(mass) == 2 ** (LENGTH - 1)
    for text, probability in mass.items():
        assert probability == pytest.approx(target.law(LENGTH, (0,))[text])
        chances = np.zeros((depth, LENGTH - 1))
        for position in range(LENGTH - 1):
            along = np.cumprod(list(ratios(drafter, target, text, position + 1, depth)))
            chances[: len(along), position] = along
        assert expected_rounds(chances) == pytest.approx(rounds[text] / probability)


SEEDS = range(80)
LIMIT = 8


@pytest.fixture(scope="module")
def sampled(target: Target) -> list[Text]:
    """Texts of plain decoding with coupled noise, other than that of `SEEDS`."""
    plain = SpeculativeDecoder(target, {}, FixedPolicy(parse_arm("plain")))
    tokens = [plain.generate(PROMPT, LIMIT, 0.6, seed + 1000).tokens for seed in SEEDS]
    return [Text(torch.cat([PROMPT, torch.tensor(one)]), len(PROMPT)) for one in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["eagle3:3x9", "dflash:3"])
def test_live_rejection_takes_the_expected_rounds_on_average(
    target: Target, drafters: dict[str, Drafter], sampled: list[Text], arm: str
) -> None:
    """Coupled texts have the same law as texts of rejection, and so have their rounds."""
    parsed = parse_arm(arm)
    drafter = drafters[parsed.drafter]
    live, expected = [], []
    decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parsed))
    for seed, text in zip(SEEDS, sampled, strict=True):
        live.append(len(decoder.generate(PROMPT, LIMIT, 0.6, seed, "rejection").rounds))
        made, logits = recorded(target, drafter, text, ForcedRule(text.tokens, 0.6), LIMIT)
        if parsed.shape.is_tree:
            walked = rounds_at_each(drafter, made, [parsed.shape])[0].walked()
            expected.append(float(len(walked.committed)))
        else:
            wanted = logprobs_of(text, logits, 0.6)
            expected.append(expected_rounds(chances_at_each(drafter, made, wanted, 3)))
    error = (np.var(live) / len(live) + np.var(expected) / len(expected)) ** 0.5
    assert abs(np.mean(live) - np.mean(expected)) < 4 * error
    assert np.mean(expected) < LIMIT - 1 - 4 * error, "or nothing was ever accepted"


@pytest.mark.parametrize("arm", ["eagle3:3", "eagle3:4x9", "dflash:4x9"])
def test_a_text_that_stops_early_is_drafted_as_far_as_it_could_have_gone(
    target: Target, drafters: dict[str, Drafter], arm: str
) -> None:
    """A tree's width depends on the room below it, so the room must be that of decoding."""
    parsed, limit = parse_arm(arm), 40
    drafter = drafters[parsed.drafter]
    for seed in range(4):
        free = SpeculativeDecoder(target, drafters, FixedPolicy(parsed))
        stop = free.generate(PROMPT, limit, 1.0, seed).tokens[14]
        stopping = Target(**{**vars(target), "stop_tokens": frozenset([stop])})
        decoder = SpeculativeDecoder(stopping, drafters, FixedPolicy(parsed))
        live = decoder.generate(PROMPT, limit, 1.0, seed)
        assert len(live.tokens) <= 15
        text = Text(torch.cat([PROMPT, torch.tensor(live.tokens)]), len(PROMPT))
        rule = make_rule(None, 1.0, seed, target.vocab_size)
        made, _ = recorded(target, drafter, text, rule, limit)
        walked = rounds_at_each(drafter, made, [parsed.shape])[0].walked()
        records = [item.record for item in live.rounds]
        assert walked.committed.tolist() == [len(one.committed) for one in records]
        assert walked.drafted.tolist() == [len(one.drafted) for one in records]
        assert walked.depth.tolist() == [one.depth for one in records]


def test_a_forced_rule_verifies_nothing(target: Target, drafters: dict[str, Drafter]) -> None:
    rule = ForcedRule(PROMPT)
    session = Session(target, PROMPT, rule, 4, {})
    with pytest.raises(TypeError, match="only drafts"):
        session.prefill()
