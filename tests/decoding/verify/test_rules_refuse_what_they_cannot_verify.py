"""Rules are chosen by temperature, and refuse what they cannot verify with a message."""

from __future__ import annotations

import math

import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.coupled import CoupledRule
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.decoding.verify.rules import LEAST_TEMPERATURE, make_rule

VOCAB = 4
RULES: list[tuple[str, float]] = [("greedy", 0.0), ("coupled", 1.0), ("rejection", 1.0)]
ONE_TOKEN = Proposal.chain(torch.tensor([1]), torch.zeros(1))


@pytest.mark.parametrize(("name", "temperature"), RULES)
def test_nan_logits_are_an_error_only_where_they_matter(name: str, temperature: float) -> None:
    rule = make_rule(name, temperature, 0, VOCAB)
    proposal = ONE_TOKEN
    rows = torch.tensor([[0.0, -math.inf, 3.0, 0.0], [math.nan] * VOCAB])
    assert rule.verify(proposal, rows, 0).path == []
    with pytest.raises(DraftgymError, match="NaN logits"):
        rule.verify(proposal, rows.flip(0), 0)
    rows[0, 1] = math.nan
    with pytest.raises(DraftgymError, match="NaN logits"):
        rule.verify(proposal, rows, 0)


@pytest.mark.parametrize(("name", "temperature"), RULES)
def test_rows_must_match_the_proposal(name: str, temperature: float) -> None:
    rule = make_rule(name, temperature, 0, VOCAB)
    with pytest.raises(ValueError, match="target logits must have shape"):
        rule.verify(ONE_TOKEN, torch.zeros(1, VOCAB), 0)


@pytest.mark.parametrize(("name", "temperature"), RULES[1:])
def test_a_drafter_with_too_many_tokens_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(DraftgymError, match="the target only 4"):
        make_rule(name, temperature, 0, VOCAB).draft(torch.zeros(1, VOCAB + 1), [0])


def test_the_temperature_chooses_the_rule() -> None:
    assert isinstance(make_rule(None, 0.0, 0, VOCAB), GreedyRule)
    assert isinstance(make_rule(None, 0.5, 0, VOCAB), CoupledRule)
    rule = make_rule("rejection", 0.5, 0, VOCAB)
    assert isinstance(rule, RejectionRule)
    assert rule.temperature == 0.5


@pytest.mark.parametrize(
    ("name", "temperature", "advice"),
    [
        ("greedy", 0.5, "temperature to 0"),
        ("coupled", 0.0, "temperature above 0"),
        ("rejection", 0.0, "temperature above 0"),
        ("rejectoin", 0.5, "did you mean 'rejection'"),
        ("zzz", 0.5, "choose from greedy, coupled, rejection"),
        (None, -1.0, "0 \\(greedy\\) or a positive number"),
        (None, math.nan, "0 \\(greedy\\) or a positive number"),
        (None, math.inf, "0 \\(greedy\\) or a positive number"),
        *((rule, 1e-40, "--temperature 0") for rule in (None, "coupled", "rejection")),
        (None, 5e-324, "--temperature 0"),
        (None, 0.9e-3, "temperature 0.0009 is too small"),
    ],
)
def test_an_impossible_rule_tells_the_remedy(
    name: str | None, temperature: float, advice: str
) -> None:
    with pytest.raises(DraftgymError, match=advice):
        make_rule(name, temperature, 0, VOCAB)


@pytest.mark.parametrize("name", ["coupled", "rejection"])
def test_the_least_temperature_still_samples(name: str) -> None:
    """Of two tokens whose logits differ by T, the better one is drawn e times as often."""
    logits = torch.tensor([[64.0, 64.0 - LEAST_TEMPERATURE, -64.0, 0.0]])
    drawn = [
        make_rule(name, LEAST_TEMPERATURE, seed, VOCAB).verify(Proposal.empty(), logits, 0)
        for seed in range(4000)
    ]
    share = sum(verdict.next_token == 0 for verdict in drawn) / 4000
    assert {verdict.next_token for verdict in drawn} == {0, 1}
    gap = float(logits[0, 0] - logits[0, 1]) / LEAST_TEMPERATURE  # as float32 stores it
    assert abs(share - 1 / (1 + math.exp(-gap))) < 0.03
