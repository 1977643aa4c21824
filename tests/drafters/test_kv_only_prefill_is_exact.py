"""Catching up with keys and values alone loses nothing against running the drafter in full."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.model.compact.layers import rotate
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.training.data.features import FeatureBatch
from tests.feature_context import FeatureContext, HeardRule, random_batch
from tests.tiny import tiny_dflash, tiny_eagle3

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
LENGTHS = [2, 3, 8, 14]
TEXT = (3, 20)


def full_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Textbook attention of `[N, H, D]` queries over `[L, G, D]` keys, head by head."""
    share = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // share].T / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        heads.append(weights @ v[:, head // share])
    return torch.cat(heads, dim=-1)


def eagle3_reference(
    drafter: Eagle3Drafter, batch: FeatureBatch, length: int, drafted: Tensor
) -> list[Tensor]:
    """Draft logits when the full layer runs over every position anew at every step."""
    network, layer = drafter.network, drafter.network.midlayer
    attention, embedding = layer.self_attn, drafter.embedding
    tokens, feature = batch.tokens[0, 1:length], network.fc(batch.taps[0, : length - 1])
    logits = []
    for token in drafted:
        pair = layer.pair(F.embedding(tokens, embedding), feature)
        rows = len(pair)
        cos_sin = drafter.rotary.at(torch.arange(rows))
        k = rotate(attention.k_proj(pair).view(rows, 2, 8), cos_sin)
        v = attention.v_proj(pair).view(rows, 2, 8)
        q = rotate(attention.q_proj(pair).view(rows, 4, 8), cos_sin)
        causal = torch.ones(rows, rows).tril().bool()
        out = layer.finish(feature, full_attention(q, k, v, causal))
        logits.append(network.logits(out[-1]))
        tokens = torch.cat([tokens, token[None]])
        feature = torch.cat([feature, out[-1:]])
    return logits


def dflash_reference(
    network: DFlashNetwork, target: Target, batch: FeatureBatch, length: int
) -> Tensor:
    """Block logits `[block_size - 1, V]` with the whole context projected anew."""
    config = network.config
    context = network.hidden_norm(network.fc(batch.taps[0, : length - 1]))
    block = torch.full((config.block_size,), config.mask_token_id)
    block[0] = batch.tokens[0, length - 1]
    x = F.embedding(block, target.decoder.embedding)
    rows = len(context) + len(block)
    cos_sin = target.decoder.rotary.at(torch.arange(rows))
    block_cos_sin = target.decoder.rotary.at(torch.arange(length - 1, rows))
    for layer in network.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        source = torch.cat([context, normed])  # one projection for context and block
        k = rotate(attention.k_norm(attention.k_proj(source).view(rows, 2, 8)), cos_sin)
        v = attention.v_proj(source).view(rows, 2, 8)
        q = attention.q_norm(attention.q_proj(normed).view(len(block), 4, 8))
        everything = torch.ones(len(block), rows).bool()
        x = layer.finish(x, full_attention(rotate(q, block_cos_sin), k, v, everything))
    return F.linear(network.norm(x[1:]), target.decoder.head)


@pytest.mark.parametrize("first", [2, 5])
@pytest.mark.parametrize("length", LENGTHS)
def test_eagle3_equals_the_full_layer_over_all_positions(
    target: Target, length: int, first: int
) -> None:
    drafter = tiny_eagle3(target)
    batch = random_batch(target, drafter.tap_layers, [TEXT])
    rule = HeardRule(batch.tokens[0])
    state = drafter.new_state(64)
    if first < length:  # catch up in two goes, with a draft in between
        early = FeatureContext(batch, 0, first, rule)
        drafter.catch_up(state, early)
        drafter.propose(state, early, DraftShape(3))
    context = FeatureContext(batch, 0, length, rule)
    drafter.catch_up(state, context)
    rule.heard.clear()
    drafter.propose(state, context, DraftShape(4))
    expected = eagle3_reference(drafter, batch, length, batch.tokens[0, length : length + 4])
    torch.testing.assert_close(torch.stack(rule.heard), torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("first", [2, 5])
@pytest.mark.parametrize("length", LENGTHS)
def test_dflash_equals_recomputing_the_whole_context(
    target: Target, length: int, first: int
) -> None:
    drafter = tiny_dflash(target)
    batch = random_batch(target, drafter.tap_layers, [TEXT])
    rule = HeardRule(batch.tokens[0])
    state = drafter.new_state(64)
    if first < length:
        early = FeatureContext(batch, 0, first, rule)
        drafter.catch_up(state, early)
        drafter.propose(state, early, DraftShape(4))
    context = FeatureContext(batch, 0, length, rule)
    drafter.catch_up(state, context)
    rule.heard.clear()
    drafter.propose(state, context, DraftShape(4))
    expected = dflash_reference(drafter.network, target, batch, length)
    torch.testing.assert_close(torch.stack(rule.heard), expected, **CLOSE)


def test_catching_up_runs_no_attention_and_no_mlp(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point of KV-only Prefill: backlog tokens cost their projections and nothing else."""
    for drafter in (tiny_eagle3(target), tiny_dflash(target)):
        batch = random_batch(target, drafter.tap_layers, [TEXT])
        for name, module in drafter.network.named_modules():
            if name.split(".")[-1] in {"q_proj", "o_proj", "mlp", "lm_head", "norm"}:
                monkeypatch.setattr(module, "forward", None)  # calling it would fail
        state = drafter.new_state(64)
        context = FeatureContext(batch, 0, 12, HeardRule(batch.tokens[0]))
        assert drafter.catch_up(state, context) == 12 - (1 if drafter.name == "dflash" else 2)
        with pytest.raises(TypeError):
            drafter.propose(state, context, DraftShape(1))


def test_the_references_of_these_tests_read_the_context(target: Target) -> None:
    """Guards the tests above: the oldest position matters to what is drafted."""
    eagle3, dflash = tiny_eagle3(target), tiny_dflash(target)
    for drafter in (eagle3, dflash):
        batch = random_batch(target, drafter.tap_layers, [TEXT])
        other = FeatureBatch(**{**vars(batch), "taps": batch.taps.clone()})
        other.taps[0, 0] += 1.0
        if isinstance(drafter, Eagle3Drafter):
            one, two = (
                eagle3_reference(drafter, b, 9, b.tokens[0, 9:10])[0] for b in (batch, other)
            )
        else:
            one, two = (dflash_reference(drafter.network, target, b, 9) for b in (batch, other))
        assert not torch.allclose(one, two, atol=1e-3)
