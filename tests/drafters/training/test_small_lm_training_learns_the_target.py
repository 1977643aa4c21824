"""The small LM's loss compares it with the target at every response position."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.weights import extract_decoder
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.small_lm.network import load_small_lm, save_small_lm
from draftgym.drafters.training.data.corpus import Corpus
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.losses import LossSettings, make_loss, plain_loss
from draftgym.drafters.training.objectives.small_lm import (
    SmallLMObjective,
    SmallLMSettings,
    build_small_lm,
    cut_layers,
    load_model,
)
from tests.feature_context import random_batch, random_texts
from tests.tiny import tiny_model

SIZES = [(3, 9), (6, 4), (2, 7)]
KEPT = [0, 2, 5]
SOFT = partial(plain_loss, decay=1.0)
SOME = torch.arange(1, 60, 2)


@pytest.fixture
def network() -> Any:
    """Some layers of the `target` fixture's model."""
    return cut_layers(tiny_model(), KEPT)


@pytest.mark.parametrize("ids", [None, SOME], ids=["all tokens", "a draft vocabulary"])
@pytest.mark.parametrize("name", ["plain", "lk-alpha"])
def test_the_loss_is_that_of_single_passes(
    target: Target, network: Any, name: Any, ids: torch.Tensor | None
) -> None:
    """Student and target run over each text alone, without padding, over all that is drafted."""
    student = extract_decoder(network, torch.float32)
    drafted = torch.arange(target.vocab_size) if ids is None else ids
    losses, hits = [], []
    for text in random_texts(SIZES, target.vocab_size):
        rows, said = slice(text.prompt_length - 1, -1), text.tokens[text.prompt_length :]
        logits = [
            decoder.forward([NewRows(decoder.new_cache(30), text.tokens)], ())[0].logits[rows]
            for decoder in (student, target.decoder)
        ]
        log_q, p = logits[0][:, drafted].log_softmax(-1), logits[1][:, drafted].softmax(-1)
        each = -(p * log_q).sum(-1)
        if name == "lk-alpha":
            each = -torch.minimum(p, log_q.exp()).sum(-1).log()
        losses.append(each * torch.isin(said, drafted))
        hits.append(drafted[log_q.argmax(-1)] == said)
    loss = make_loss(name, LossSettings())
    objective = SmallLMObjective(network, target, loss, ids)
    output = objective(random_batch(target, (), SIZES), seed=1)
    torch.testing.assert_close(output.loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-4)
    assert float(output.agreement[0]) == pytest.approx(float(torch.cat(hits).float().mean()))


def test_padding_and_prompts_are_not_learned(target: Target, network: Any) -> None:
    batch = random_batch(target, (), SIZES)
    objective = SmallLMObjective(network, target, SOFT)
    before = float(objective(batch).loss.detach())
    hidden = batch.hidden.clone()
    hidden[0, :2] += 1  # positions inside the first prompt, and the last of each text
    hidden[torch.arange(3), batch.lengths - 1] += 1
    assert float(objective(replace(batch, hidden=hidden)).loss.detach()) == before
    hidden[0, 2] += 1  # this one says what the response begins with
    assert float(objective(replace(batch, hidden=hidden)).loss.detach()) != before


def test_validation_scores_all_tokens_and_training_a_sample(target: Target, network: Any) -> None:
    batch = random_batch(target, (), SIZES)
    whole = SmallLMObjective(network, target, SOFT)(batch)
    sampler = CandidateSampler(target.vocab_size, torch.arange(5), 30)
    sampled = SmallLMObjective(network, target, SOFT, None, sampler)
    assert float(sampled(batch).loss.detach()) == float(whole.loss.detach())
    losses = [float(sampled(batch, seed).loss.detach()) for seed in range(1, 61)]
    assert len(set(losses)) > 50
    assert float(sampled(batch, 7).loss.detach()) == losses[6]
    assert sum(losses) / len(losses) == pytest.approx(float(whole.loss.detach()), rel=0.1)


def test_embedding_and_head_stay_the_targets(target: Target, network: Any) -> None:
    objective = SmallLMObjective(network, target, SOFT)
    objective(random_batch(target, (), SIZES)).loss.backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert moved == {
        name for name, _ in network.named_parameters() if name.startswith("model.")
    } - {"model.embed_tokens.weight"}
    assert len(moved) == 9 * len(KEPT) + 1
    assert torch.equal(network.model.embed_tokens.weight, target.decoder.embedding)
    assert torch.equal(network.lm_head.weight, target.decoder.head)


@pytest.fixture
def saved(tmp_path: Path) -> Target:
    """A target in a folder, its weights exact in bfloat16 like those of most models."""
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "target")
    return load_target(str(tmp_path / "target"), "float32", 1)


def built(target: Target, init: Path | None, settings: SmallLMSettings) -> SmallLMObjective:
    corpus = Corpus(random_texts(SIZES, target.vocab_size), [])
    return build_small_lm(settings, init, target, corpus, SOFT)


def test_training_goes_on_from_a_small_lm(saved: Target, tmp_path: Path) -> None:
    """With all of its layers or some, and its draft vocabulary."""
    start = cut_layers(load_model(saved.name), [0, 1, 2, 5])
    with torch.no_grad():
        start.model.layers[3].mlp.down_proj.weight *= 2
    save_small_lm(start, tmp_path / "small", saved, SOME)
    for settings, kept in ((SmallLMSettings(), [0, 1, 2, 3]), (SmallLMSettings(2, 1), [0, 3])):
        objective = built(saved, tmp_path / "small", settings)
        assert torch.equal(objective.draft_ids, SOME)
        assert len(objective.network.model.layers) == len(kept)
        for layer, index in zip(objective.network.model.layers, kept, strict=True):
            assert torch.equal(
                layer.mlp.down_proj.weight, start.model.layers[index].mlp.down_proj.weight
            )
        objective.export(tmp_path / "again", saved)
        ids = load_small_lm(tmp_path / "again", saved).draft_ids
        assert ids is not None and torch.equal(ids, SOME)


def test_it_drafts_the_most_frequent_tokens_of_its_corpus(saved: Target) -> None:
    objective = built(saved, None, SmallLMSettings(2, 1, draft_vocab=9, frequent=4))
    texts = random_texts(SIZES, saved.vocab_size)
    counts = Corpus(texts, []).token_counts(saved.vocab_size)
    assert counts[objective.draft_ids].sum() == counts.topk(9).values.sum()
    everything = built(saved, None, SmallLMSettings(2, 1, draft_vocab=10_000))
    assert torch.equal(everything.draft_ids, torch.arange(saved.vocab_size))


def test_a_small_lm_of_another_head_is_no_start(saved: Target, tmp_path: Path) -> None:
    tiny_model(seed=3).save_pretrained(tmp_path / "other")
    with pytest.raises(DraftgymError, match="--init"):
        built(saved, tmp_path / "other", SmallLMSettings())
