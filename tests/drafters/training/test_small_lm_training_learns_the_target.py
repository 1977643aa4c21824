"""The small LM's loss is the cross-entropy with the target at every response position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from draftgym.decoding.model.compact.weights import extract_decoder
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.small_lm import SmallLMObjective, cut_layers
from tests.feature_context import random_batch, random_texts
from tests.tiny import tiny_model

SIZES = [(3, 9), (6, 4), (2, 7)]
KEPT = [0, 2, 5]


@pytest.fixture
def network() -> Any:
    """Some layers of the `target` fixture's model."""
    return cut_layers(tiny_model(), KEPT)


def test_the_loss_is_that_of_single_passes(target: Target, network: Any) -> None:
    """Student and target run over each text alone, without padding, over the whole vocabulary."""
    student = extract_decoder(network, torch.float32)
    losses, hits = [], []
    for text in random_texts(SIZES, target.vocab_size):
        rows = slice(text.prompt_length - 1, -1)
        logits = [
            decoder.forward([NewRows(decoder.new_cache(30), text.tokens)], ())[0].logits[rows]
            for decoder in (student, target.decoder)
        ]
        losses.append(-(logits[1].softmax(-1) * logits[0].log_softmax(-1)).sum(-1))
        hits.append(logits[0].argmax(-1) == text.tokens[text.prompt_length :])
    output = SmallLMObjective(network, target)(random_batch(target, (), SIZES), seed=1)
    torch.testing.assert_close(output.loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-4)
    assert float(output.agreement[0]) == pytest.approx(float(torch.cat(hits).float().mean()))


def test_padding_and_prompts_are_not_learned(target: Target, network: Any) -> None:
    batch = random_batch(target, (), SIZES)
    objective = SmallLMObjective(network, target)
    before = float(objective(batch).loss.detach())
    hidden = batch.hidden.clone()
    hidden[0, :2] += 1  # positions inside the first prompt, and the last of each text
    hidden[torch.arange(3), batch.lengths - 1] += 1
    assert float(objective(replace(batch, hidden=hidden)).loss.detach()) == before
    hidden[0, 2] += 1  # this one says what the response begins with
    assert float(objective(replace(batch, hidden=hidden)).loss.detach()) != before


def test_validation_scores_all_tokens_and_training_a_sample(target: Target, network: Any) -> None:
    batch = random_batch(target, (), SIZES)
    whole = SmallLMObjective(network, target)(batch)
    sampler = CandidateSampler(target.vocab_size, torch.arange(5), 30)
    sampled = SmallLMObjective(network, target, sampler)
    assert float(sampled(batch).loss.detach()) == float(whole.loss.detach())
    losses = [float(sampled(batch, seed).loss.detach()) for seed in range(1, 61)]
    assert len(set(losses)) > 50
    assert float(sampled(batch, 7).loss.detach()) == losses[6]
    assert sum(losses) / len(losses) == pytest.approx(float(whole.loss.detach()), rel=0.1)


def test_embedding_and_head_stay_the_targets(target: Target, network: Any) -> None:
    objective = SmallLMObjective(network, target)
    objective(random_batch(target, (), SIZES)).loss.backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert moved == {
        name for name, _ in network.named_parameters() if name.startswith("model.")
    } - {"model.embed_tokens.weight"}
    assert len(moved) == 9 * len(KEPT) + 1
    assert torch.equal(network.model.embed_tokens.weight, target.decoder.embedding)
    assert torch.equal(network.lm_head.weight, target.decoder.head)
