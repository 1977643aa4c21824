"""Tiny drafters in training, their objectives and texts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.dflash.unroll import DFlashUnroller
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.eagle3.unroll import Eagle3Unroller
from draftgym.drafters.training.data.corpus import Corpus, Text
from draftgym.drafters.training.data.features import FeatureBatch, FeatureCache
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.losses import Labels, plain_loss
from draftgym.drafters.training.objectives.objective import (
    Objective,
    ObjectiveOutput,
    RecordedObjective,
)
from draftgym.drafters.training.objectives.replay import ReplayObjective, ReplaySettings
from draftgym.drafters.training.objectives.small_lm import SmallLMObjective, cut_layers
from draftgym.drafters.training.objectives.unroll import Unroller
from draftgym.drafters.training.objectives.vsd import VSDObjective, VSDSettings
from tests.feature_context import random_texts
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_model

KINDS = ["eagle3", "dflash", "vsd", "small"]
"""What `objective_of` makes, beside `replay`."""


def eagle3_drafter(target: Target, **wiring: bool) -> Eagle3Drafter:
    """An EAGLE-3 head, its norms not all ones, wired as published heads may be."""
    drafter = tiny_eagle3(target, draft_vocab=40)
    if not wiring:
        return drafter
    torch.manual_seed(4)
    network = Eagle3Network(replace(drafter.network.config, **wiring))
    network.load_state_dict(drafter.network.state_dict(), strict=False)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape))
    return Eagle3Drafter(network.requires_grad_(False), target.decoder.embedding)


def dflash_drafter(target: Target) -> DFlashDrafter:
    """A DFlash drafter that covers every token id up to 40 and a few above."""
    config = tiny_dflash(target).network.config
    ids = torch.cat([torch.arange(40), torch.tensor([44, 50, 60])])
    torch.manual_seed(3)
    network = DFlashNetwork(replace(config, draft_vocab_size=len(ids)), ids)
    return DFlashDrafter(
        network.requires_grad_(False), target.decoder.embedding, target.decoder.head
    )


def unroller_of(
    drafter: str | Eagle3Drafter | DFlashDrafter, target: Target, steps: int = 4
) -> Unroller[Any]:
    """A drafter, or the usual one of a kind, as it is trained."""
    if isinstance(drafter, str):
        drafter = eagle3_drafter(target) if drafter == "eagle3" else dflash_drafter(target)
    if isinstance(drafter, Eagle3Drafter):
        return Eagle3Unroller(drafter.network, target, steps)
    return DFlashUnroller(drafter.network, target)


def plain(
    unroller: Unroller[Any],
    decay: float = 0.8,
    labels: Labels = "soft",
    anchors: int | None = None,
) -> RecordedObjective:
    """The plain objective of a drafter."""
    return RecordedObjective(unroller, partial(plain_loss, decay=decay, labels=labels), anchors)


def block_outputs(unroller: Unroller[Any], batch: FeatureBatch, anchors: Tensor) -> Tensor:
    """Outputs behind some anchors, whatever stands there."""
    return unroller.outputs(batch, anchors, anchors.new_zeros(*anchors.shape, unroller.depth))


def objective_of(kind: str, target: Target) -> Objective:
    """A fresh objective of a kind, always the same."""
    if kind == "eagle3":
        eagle3 = tiny_eagle3(target).network.requires_grad_(True)
        return plain(Eagle3Unroller(eagle3, target, steps=3))
    if kind == "small":  # the fixture's target is this model
        ids, sampler = torch.arange(0, 60, 2), CandidateSampler(30, torch.arange(12), 9)
        network, soft = cut_layers(tiny_model(), [0, 1, 5]), partial(plain_loss, decay=1.0)
        return SmallLMObjective(network, target, soft, ids, sampler)
    unroller = DFlashUnroller(tiny_dflash(target).network.requires_grad_(True), target)
    if kind == "replay":
        found, features = ReplaySettings(rollouts=3, every=2), FeatureCache(None, target, ())
        soft, texts = partial(plain_loss, decay=0.8), corpus_of(target).train
        return ReplayObjective(unroller, soft, found, texts, features, 4)
    if kind == "vsd":
        hard = partial(plain_loss, decay=0.8, labels="hard")
        return VSDObjective(unroller, target, hard, VSDSettings(paths=2, anchors=3), 4)
    return plain(unroller, labels="hard", anchors=4)  # fewer than there are: draws matter


def corpus_of(target: Target, seed: int = 0) -> Corpus:
    """Seven random texts to train on and two set aside."""
    texts = random_texts([(3, 6 + i) for i in range(9)], target.vocab_size, seed)
    return Corpus(texts[2:], texts[:2])


def greedy_texts(target: Target, prompts: list[int], responses: int) -> list[Text]:
    """What the target says behind random prompts of some lengths."""
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    texts = []
    for prompt in random_texts([(n, 0) for n in prompts], target.vocab_size, seed=5):
        response = torch.tensor(decoder.generate(prompt.tokens, responses).tokens)
        texts.append(Text(torch.cat([prompt.tokens, response]), len(prompt.tokens)))
    return texts


def write_texts(path: Path, vocab: int, **columns: Any) -> Path:
    """Writes a corpus of 60 random texts, with further columns."""
    texts = random_texts([(3, 8)] * 60, vocab)
    rows = {
        "prompt": [text.tokens[:3].tolist() for text in texts],
        "response": [text.tokens[3:].tolist() for text in texts],
    }
    pyarrow.parquet.write_table(pyarrow.table({**rows, **columns}), path)
    return path


def weights_of(objective: Objective) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: value.clone() for name, value in objective.network.state_dict().items()}


def same_weights(one: Objective | dict[str, Tensor], other: Objective) -> bool:
    """Whether all weights are the same to the last bit."""
    before = one if isinstance(one, dict) else weights_of(one)
    after = weights_of(other)
    return all(torch.equal(value, after[name]) for name, value in before.items())


def stopping_after(objective: Objective, calls: int, error: BaseException) -> Objective:
    """The objective, raising `error` when called once too often."""
    done, original = itertools.count(), type(objective).__call__

    class Stopping(type(objective)):  # type: ignore[misc]
        def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
            if next(done) == calls:
                raise error
            return original(self, batch, seed)

    objective.__class__ = Stopping
    return objective
