"""Checkpoints that training writes are the native published formats and survive a round trip."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import load_drafter, read_checkpoint, save_checkpoint
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from tests.tiny import tiny_dflash, tiny_eagle3

KINDS = ["eagle3", "dflash"]
Network = Eagle3Network | DFlashNetwork
Tensors = dict[str, Tensor]

# The tables of the published formats, with H = 32, D = 4 heads * 8, KV = 2 heads * 8, I = 48.
EAGLE3_TABLE: dict[str, tuple[int, ...]] = {
    "fc.weight": (32, 3 * 32),
    "midlayer.hidden_norm.weight": (32,),
    "midlayer.input_layernorm.weight": (32,),
    "midlayer.self_attn.q_proj.weight": (32, 64),
    "midlayer.self_attn.k_proj.weight": (16, 64),
    "midlayer.self_attn.v_proj.weight": (16, 64),
    "midlayer.self_attn.o_proj.weight": (32, 32),
    "midlayer.post_attention_layernorm.weight": (32,),
    "midlayer.mlp.gate_proj.weight": (48, 32),
    "midlayer.mlp.up_proj.weight": (48, 32),
    "midlayer.mlp.down_proj.weight": (32, 48),
    "norm.weight": (32,),
    "lm_head.weight": (40, 32),
    "d2t": (40,),
    "t2d": (61,),
}
DFLASH_LAYER: dict[str, tuple[int, ...]] = {
    "input_layernorm.weight": (32,),
    "post_attention_layernorm.weight": (32,),
    "self_attn.q_proj.weight": (32, 32),
    "self_attn.k_proj.weight": (16, 32),
    "self_attn.v_proj.weight": (16, 32),
    "self_attn.o_proj.weight": (32, 32),
    "self_attn.q_norm.weight": (8,),
    "self_attn.k_norm.weight": (8,),
    "mlp.gate_proj.weight": (48, 32),
    "mlp.up_proj.weight": (48, 32),
    "mlp.down_proj.weight": (32, 48),
}
DFLASH_TABLE: dict[str, tuple[int, ...]] = {
    "fc.weight": (32, 3 * 32),
    "hidden_norm.weight": (32,),
    "norm.weight": (32,),
    **{f"layers.{i}.{name}": shape for i in range(2) for name, shape in DFLASH_LAYER.items()},
    "d2t": (40,),
    "t2d": (61,),
}


def draft_ids() -> Tensor:
    """Forty target ids with gaps, so that the maps are not trivial."""
    return torch.arange(61)[torch.arange(61) % 3 != 1][:40]


def network_of(kind: str, target: Target) -> Network:
    """A random network that drafts forty of the target's tokens."""
    ids = draft_ids()
    torch.manual_seed(7)
    if kind == "eagle3":
        return Eagle3Network(tiny_eagle3(target, draft_vocab=40).network.config, ids)
    config = tiny_dflash(target).network.config
    return DFlashNetwork(replace(config, draft_vocab_size=40), ids)


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, target: Target, tmp_path: Path) -> Path:
    """A saved checkpoint of each kind."""
    save_checkpoint(network_of(request.param, target), tmp_path / "drafter", target)
    return tmp_path / "drafter"


def tensors_of(folder: Path) -> Tensors:
    found: Tensors = load_file(folder / "model.safetensors")
    return found


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads((folder / "config.json").read_text())
    change(body)
    (folder / "config.json").write_text(json.dumps(body))


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bfloat16_bit(target: Target, tmp_path: Path, kind: str) -> None:
    network = network_of(kind, target)
    save_checkpoint(network, tmp_path, target)
    read = read_checkpoint(tmp_path, target)
    assert read.network.config == network.config
    assert read.origin.fingerprint == target.fingerprint
    after = read.network.state_dict()
    for name, before in network.state_dict().items():
        stored = before.to(torch.bfloat16) if before.is_floating_point() else before
        assert torch.equal(after[name].to(stored.dtype), stored)
    save_checkpoint(read.network, tmp_path / "again", target)
    again = tensors_of(tmp_path / "again")
    assert all(torch.equal(again[name], value) for name, value in tensors_of(tmp_path).items())


@pytest.mark.parametrize(("kind", "table"), [("eagle3", EAGLE3_TABLE), ("dflash", DFLASH_TABLE)])
def test_names_shapes_and_dtypes_are_the_published_ones(
    target: Target, tmp_path: Path, kind: str, table: dict[str, tuple[int, ...]]
) -> None:
    save_checkpoint(network_of(kind, target), tmp_path)
    tensors = tensors_of(tmp_path)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == table
    dtypes = {name: value.dtype for name, value in tensors.items()}
    assert dtypes.pop("d2t") == torch.int64
    assert dtypes.pop("t2d") == torch.bool
    assert set(dtypes.values()) == {torch.bfloat16}
    ids = draft_ids()
    assert torch.equal(tensors["d2t"] + torch.arange(40), ids)
    assert tensors["t2d"].nonzero()[:, 0].tolist() == ids.tolist()


def test_the_eagle3_config_has_what_other_loaders_read(target: Target, tmp_path: Path) -> None:
    save_checkpoint(network_of("eagle3", target), tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    assert body["architectures"] == ["LlamaForCausalLMEagle3"]
    assert body["model_type"] == "llama"
    assert (body["num_hidden_layers"], body["hidden_size"], body["intermediate_size"]) == (
        1,
        32,
        48,
    )
    assert (body["num_attention_heads"], body["num_key_value_heads"], body["head_dim"]) == (4, 2, 8)
    assert (body["vocab_size"], body["draft_vocab_size"]) == (61, 40)
    assert body["rope_theta"] == body["rope_parameters"]["rope_theta"] == 10000.0
    assert body["rope_scaling"] is None
    assert body["norm_before_residual"] is False
    assert (body["tie_word_embeddings"], body["attention_bias"]) == (False, False)
    # Loaders disagree on what this key counts, so it must be absent.
    assert "eagle_aux_hidden_state_layer_ids" not in body


def test_the_dflash_config_has_what_other_loaders_read(target: Target, tmp_path: Path) -> None:
    save_checkpoint(network_of("dflash", target), tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    assert body["architectures"] == ["DFlashDraftModel"]
    assert body["model_type"] == "qwen3"
    assert body["dflash_config"] == {"mask_token_id": 3, "target_layer_ids": [0, 3, 5]}
    assert body["block_size"] == 5
    assert body["layer_types"] == ["full_attention"] * 2
    assert (body["num_hidden_layers"], body["vocab_size"]) == (2, 61)
    assert body["rope_theta"] == 10000.0


def test_a_loaded_drafter_drafts_like_the_saved_one(target: Target, folder: Path) -> None:
    drafter = load_drafter(folder, target)
    assert drafter.needs_target == target.fingerprint
    drafter.name = "it"
    prompt = torch.tensor([5, 9, 7, 30, 2])
    policy = PlainPolicy()
    expected = SpeculativeDecoder(target, {}, policy).generate(prompt, 20).tokens
    policy.arms = (Arm("it", 3),)
    result = SpeculativeDecoder(target, {"it": drafter}, policy).generate(prompt, 20)
    assert result.tokens == expected
    drafted = {token for item in result.rounds for token in item.record.drafted}
    assert drafted <= set(draft_ids().tolist())


def published_eagle3(folder: Path, target: Target) -> Eagle3Network:
    """Rewrites a checkpoint as others ship it: no keys of ours, only the old rotary keys."""
    network = network_of("eagle3", target)
    assert isinstance(network, Eagle3Network)
    save_checkpoint(network, folder)
    for key in ("draftgym", "rope_parameters", "norm_before_residual", "head_dim"):
        reconfigure(folder, lambda body, key=key: body.pop(key))
    return network


def test_a_foreign_eagle3_checkpoint_loads_with_the_default_taps(
    target: Target, tmp_path: Path
) -> None:
    published_eagle3(tmp_path, target)
    drafter = load_drafter(tmp_path, target)
    assert drafter.tap_layers == (1, 2, 2)  # outputs of layers 1, n // 2 - 1 and n - 4 of n = 6
    assert drafter.needs_target is None


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_written_only_for_a_reduced_vocabulary(
    target: Target, tmp_path: Path, kind: str
) -> None:
    network = network_of(kind, target)
    full: Network
    if isinstance(network, Eagle3Network):
        full = Eagle3Network(replace(network.config, draft_vocab_size=61))
    else:
        full = DFlashNetwork(replace(network.config, draft_vocab_size=61))
    save_checkpoint(full, tmp_path, target)
    assert not {"d2t", "t2d"} & tensors_of(tmp_path).keys()
    assert torch.equal(read_checkpoint(tmp_path, target).network.d2t, torch.zeros(61).long())


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn"])
def test_rotary_scaling_survives_in_both_spellings(
    target: Target, tmp_path: Path, rope_type: str
) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 5000.0, "factor": 2.0}
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope_type != "linear":
        rope |= {"original_max_position_embeddings": 64}
    base = network_of("eagle3", target)
    assert isinstance(base, Eagle3Network)
    network = Eagle3Network(replace(base.config, rope_parameters=rope), draft_ids())
    save_checkpoint(network, tmp_path, target)
    assert read_checkpoint(tmp_path, target).network.config.rope_parameters == rope
    new = load_drafter(tmp_path, target)
    reconfigure(tmp_path, lambda body: body.pop("rope_parameters"))
    old = load_drafter(tmp_path, target)
    assert isinstance(new, Eagle3Drafter)
    assert isinstance(old, Eagle3Drafter)
    assert torch.equal(new.rotary.cos, old.rotary.cos)
    plain = tiny_eagle3(target).rotary.cos
    assert not torch.equal(new.rotary.cos, plain)


def test_a_drafter_of_short_texts_works_on_long_ones(target: Target, folder: Path) -> None:
    """Published EAGLE-3 configs say 2048 positions, whatever the target's limit is."""
    reconfigure(folder, lambda body: body.update(max_position_embeddings=16))
    drafter = load_drafter(folder, target)
    policy = PlainPolicy()
    policy.arms = (Arm(drafter.name, 4),)
    prompt = torch.arange(30)
    result = SpeculativeDecoder(target, {drafter.name: drafter}, policy).generate(prompt, 20)
    expected = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 20).tokens
    assert result.tokens == expected
