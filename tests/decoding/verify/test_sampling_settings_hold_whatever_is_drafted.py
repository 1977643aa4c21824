"""Top-k, top-p, min-p and repetition penalty: transformers' scores, and one text whoever drafts."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.policies.registry import make_policy
from tests.decoding.verify.test_verification_is_lossless import (
    TEMPERATURE,
    VOCAB,
    Table,
    Tokens,
    assert_law_is_the_targets,
    committed,
    draft_chain,
    enumerate_coins,
    random_tree,
    tree,
)
from tests.tiny import ONE_THREAD, tiny_model

SETTINGS = [
    SamplingSettings(top_k=5),
    SamplingSettings(top_p=0.8),
    SamplingSettings(min_p=0.2),
    SamplingSettings(repetition_penalty=1.4),
    SamplingSettings(12, 0.9, 0.02, 1.2),
]
ARMS = "eagle3:3,eagle3:3x6,dflash:4,small:3x5,ngram:4,plain"
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def processors(model: Any, settings: SamplingSettings, temperature: float) -> Any:
    """The list that transformers' `generate` makes."""
    config = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p or None,
        repetition_penalty=settings.repetition_penalty,
    )
    return model._get_logits_processor(generation_config=config, input_ids_seq_length=1)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_scores_of_every_row_are_those_of_transformers(
    model: Any, settings: SamplingSettings, temperature: float
) -> None:
    """Bit by bit, each row behind the text and the path to its own node."""
    rng, shaping = random.Random(3), settings.shaping(temperature)
    vocab = model.config.vocab_size
    for size in (0, 1, 8, 8, 8):
        proposal = random_tree(rng, vocab) if size else Proposal.empty()
        text = torch.tensor([rng.randrange(vocab) for _ in range(6)])
        logits = 3 * torch.randn(len(proposal) + 1, vocab)
        found = logits if shaping is None else shaping.scores(text, proposal, logits)
        paths: list[list[int]] = [[]]
        for parent, token in zip(proposal.parents.tolist(), proposal.tokens.tolist(), strict=True):
            paths.append([*paths[parent + 1], token])
        wanted = [
            processors(model, settings, temperature)(
                torch.tensor([text.tolist() + path]), row[None].clone()
            )[0]
            for path, row in zip(paths, logits, strict=True)
        ]
        assert torch.equal(found / (temperature or 1.0), torch.stack(wanted))


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_greedy_text_with_a_repetition_penalty_is_that_of_generate(
    model: Any, penalty: float, drafters: dict[str, Drafter]
) -> None:
    target = wrap_model(model, None, "tiny", ONE_THREAD)
    with torch.inference_mode():
        output = model.generate(
            PROMPT[None], max_new_tokens=24, do_sample=False, repetition_penalty=penalty
        )
    sampling = SamplingSettings(repetition_penalty=penalty)
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    tokens = plain.generate(PROMPT, 24, sampling=sampling).tokens
    assert tokens == output[0, len(PROMPT) :].tolist()
    assert tokens != plain.generate(PROMPT, 24).tokens


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_text_is_the_same_whatever_the_policy(
    target: Target, drafters: dict[str, Drafter], settings: SamplingSettings, temperature: float
) -> None:
    texts = {}
    for spec in ("plain", "ngram:4", "eagle3:3x6", f"random@{ARMS}"):
        decoder = SpeculativeDecoder(target, drafters, make_policy(spec, drafters, target))
        result = decoder.generate(PROMPT, 24, temperature, seed=5, sampling=settings)
        texts[spec] = result.tokens
    assert all(text == texts["plain"] for text in texts.values())
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    unshaped = plain.generate(PROMPT, 24, temperature, seed=5).tokens
    assert (texts["plain"] == unshaped) == (settings.shaping(temperature) is None)


class Shaped(Table):
    """A table whose rows are another's, shaped behind the token 0 and the prefix."""

    def __init__(self, raw: Table, settings: SamplingSettings) -> None:
        super().__init__(raw.seed)
        self.raw, self.shaping = raw, settings.shaping(TEMPERATURE)

    def logits(self, prefix: Tokens) -> Tensor:
        """The scores after a prefix."""
        row, text = self.raw.logits(prefix)[None], torch.tensor([0, *prefix])
        assert self.shaping is not None
        return self.shaping.scores(text, Proposal.empty(), row)[0]


TABLE_SETTINGS = [
    SamplingSettings(top_k=2),
    SamplingSettings(top_p=0.7),
    SamplingSettings(min_p=0.5),
    SamplingSettings(repetition_penalty=2.0),
    SamplingSettings(3, 0.9, 0.1, 1.5),
]


@pytest.mark.parametrize("settings", TABLE_SETTINGS, ids=str)
@pytest.mark.parametrize("drafted", ["chain", "tree"])
def test_rejection_keeps_the_law_of_the_settings(settings: SamplingSettings, drafted: str) -> None:
    raw, drafter = Table(1), Table(101)
    target = Shaped(raw, settings)
    siblings = tree((-1, 2), (-1, 0), (0, 1), (0, 2), (1, 0))

    def run(coins: Any) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        rule.shaping = settings.shaping(TEMPERATURE)
        proposal = siblings if drafted == "tree" else draft_chain(rule, drafter, (), 2)
        scores = rule.shaping.scores(torch.tensor([0]), proposal, raw.rows((), proposal))
        return committed(proposal, rule.verify(proposal, scores, 0))

    assert_law_is_the_targets(enumerate_coins(run), target)


def test_rejection_never_writes_what_the_settings_exclude(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    """Through sessions: of two tokens a text of the likeliest two at each of its positions."""
    settings = SamplingSettings(top_k=2)
    decoder = SpeculativeDecoder(target, drafters, make_policy("eagle3:3", drafters, target))
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    for seed in range(3):
        how: dict[str, Any] = {"temperature": 2.0, "seed": seed, "verification": "rejection"}
        tokens = decoder.generate(PROMPT, 24, sampling=settings, **how).tokens
        for at, token in enumerate(tokens):
            text = torch.cat([PROMPT, torch.tensor(tokens[:at], dtype=torch.long)])
            greedy = plain.generate(text, 1).tokens[0]
            assert token in (greedy, _second(target, text))


def _second(target: Target, text: Tensor) -> int:
    from draftgym.decoding.session import Session
    from draftgym.decoding.verify.greedy import GreedyRule

    session = Session(target, text, GreedyRule(), 1, {})
    session.prefill()
    return int(session.last_logits.topk(2).indices[1])


def test_settings_that_change_nothing_cost_nothing() -> None:
    assert make_rule(None, 1.0, 0, VOCAB).shaping is None
    narrow = SamplingSettings(top_k=3, top_p=0.5, min_p=0.1)
    assert make_rule(None, 0.0, 0, VOCAB, narrow).shaping is None
    assert make_rule(None, 1.0, 0, VOCAB, narrow).shaping is not None
    assert make_rule(None, 0.0, 0, VOCAB, SamplingSettings(repetition_penalty=2.0)).shaping


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("top_p", math.nan),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(DraftgymError, match="--" + name.replace("_", "-")) as caught:
        SamplingSettings(**{name: value})  # type: ignore[arg-type]
    assert caught.value.remedy
