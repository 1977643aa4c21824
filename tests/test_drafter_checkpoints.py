"""Drafter checkpoints are the published formats, survive a round trip, and fail with a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoding.arms import Arm
from decoding.decoder import PlainPolicy, SpeculativeDecoder
from decoding.errors import DraftgymError
from decoding.target import Target
from drafters.checkpoint import load_drafter, read_checkpoint, save_checkpoint
from drafters.dflash import DFlashNetwork
from drafters.eagle3 import Eagle3Config, Eagle3Drafter, Eagle3Network
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_target

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


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads((folder / "config.json").read_text())
    change(body)
    (folder / "config.json").write_text(json.dumps(body))


def refusal(folder: Path, target: Target) -> DraftgymError:
    """The error of loading, which must name the folder and tell a remedy."""
    with pytest.raises(DraftgymError) as caught:
        load_drafter(folder, target)
    assert str(folder) in caught.value.problem
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bfloat16_bit(target: Target, tmp_path: Path, kind: str) -> None:
    network = network_of(kind, target)
    save_checkpoint(network, tmp_path, target)
    read = read_checkpoint(tmp_path, target.decoder.shape.layers)
    assert read.network.config == network.config
    assert read.fingerprint == target.fingerprint
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


def test_a_copy_of_the_embedding_is_ignored(target: Target, tmp_path: Path) -> None:
    network = published_eagle3(tmp_path, target)
    rewrite(tmp_path, lambda t: t.update({"embed_tokens.weight": torch.randn(61, 32)}))
    drafter = load_drafter(tmp_path, target)
    assert isinstance(drafter, Eagle3Drafter)
    assert drafter.embedding is target.decoder.embedding
    assert torch.equal(drafter.network.norm.weight, network.norm.weight)


def test_maps_may_be_absent_when_all_tokens_are_drafted(target: Target, tmp_path: Path) -> None:
    full: Eagle3Config = replace(tiny_eagle3(target).network.config, draft_vocab_size=61)
    save_checkpoint(Eagle3Network(full), tmp_path, target)
    rewrite(tmp_path, lambda t: (t.pop("d2t"), t.pop("t2d")))
    reconfigure(tmp_path, lambda body: body.pop("draft_vocab_size"))
    drafter = load_drafter(tmp_path, target)
    assert isinstance(drafter, Eagle3Drafter)
    assert drafter.draft_ids.tolist() == list(range(61))


def test_a_published_dflash_checkpoint_has_no_maps_and_loads(
    target: Target, tmp_path: Path
) -> None:
    save_checkpoint(tiny_dflash(target).network, tmp_path)
    rewrite(tmp_path, lambda t: (t.pop("d2t"), t.pop("t2d")))
    reconfigure(tmp_path, lambda body: (body.pop("draftgym"), body.pop("draft_vocab_size")))
    drafter = load_drafter(tmp_path, target)
    assert drafter.max_draft_length == 4


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
    assert read_checkpoint(tmp_path, 6).network.config.rope_parameters == rope
    new = load_drafter(tmp_path, target)
    reconfigure(tmp_path, lambda body: body.pop("rope_parameters"))
    old = load_drafter(tmp_path, target)
    assert isinstance(new, Eagle3Drafter)
    assert isinstance(old, Eagle3Drafter)
    assert torch.equal(new.rotary.cos, old.rotary.cos)
    plain = tiny_eagle3(target).rotary.cos
    assert not torch.equal(new.rotary.cos, plain)


def test_a_drafter_of_another_target_is_refused(folder: Path) -> None:
    error = refusal(folder, tiny_target(seed=5))
    assert "another target" in error.problem


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_size": 48}, "hidden size"),
        ({"vocab_size": 64}, "vocabulary"),
        ({"num_hidden_layers": 4}, "4 layers"),
    ],
)
def test_a_drafter_that_does_not_fit_by_shape_is_refused(
    target: Target, folder: Path, changes: dict[str, int], word: str
) -> None:
    """Foreign checkpoints carry no fingerprint; their shapes still have to fit."""
    reconfigure(folder, lambda body: body["draftgym"].pop("target_fingerprint"))
    assert load_drafter(folder, target)
    assert word in refusal(folder, tiny_target(**changes)).problem


def test_a_missing_tensor_is_named(target: Target, folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("norm.weight"))
    assert "norm.weight" in refusal(folder, target).problem


def test_an_unknown_tensor_is_named(target: Target, folder: Path) -> None:
    """Ignoring it could mean ignoring a layer that the published drafter needs."""
    rewrite(folder, lambda t: t.update({"fc_norm.0.weight": torch.ones(32)}))
    assert "fc_norm.0.weight" in refusal(folder, target).problem


@pytest.mark.parametrize("name", ["fc.weight", "norm.weight", "t2d"])
def test_a_wrong_shape_is_named(target: Target, folder: Path, name: str) -> None:
    rewrite(folder, lambda t: t.update({name: t[name][:-1].clone()}))
    assert name in refusal(folder, target).problem


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(target: Target, folder: Path, bad: float) -> None:
    rewrite(folder, lambda t: t["fc.weight"].view(-1)[3].fill_(bad))
    assert "fc.weight" in refusal(folder, target).problem


@pytest.mark.parametrize(
    "change",
    [
        lambda d2t: d2t.add_(30),  # ids beyond the vocabulary
        lambda d2t: d2t.sub_(5),  # negative ids
        lambda d2t: d2t.copy_(-torch.arange(40)),  # all the same id
        lambda d2t: d2t.resize_(39),
    ],
)
def test_a_damaged_vocabulary_map_is_refused(
    target: Target, folder: Path, change: Callable[[Tensor], Tensor]
) -> None:
    rewrite(folder, lambda t: change(t["d2t"]))
    assert "d2t" in refusal(folder, target).problem


@pytest.mark.parametrize("keep", [0, 5, 400, -100])
def test_truncated_weights_are_refused(target: Target, folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors" in refusal(folder, target).problem


def test_missing_weights_are_refused(target: Target, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder, target).problem


def test_a_missing_folder_is_refused(target: Target, tmp_path: Path) -> None:
    assert "train_drafter.py" in refusal(tmp_path / "nowhere", target).remedy


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "\x00"])
def test_a_broken_config_is_refused(target: Target, folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder, target).problem


@pytest.mark.parametrize("named", [["LlamaForCausalLM"], [], None])
def test_a_model_that_is_no_drafter_is_refused(target: Target, folder: Path, named: Any) -> None:
    reconfigure(folder, lambda body: body.update(architectures=named))
    assert "architecture" in refusal(folder, target).problem


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("value", ["absent", "many", None, -4])
def test_a_config_with_a_bad_size_is_refused(
    target: Target, folder: Path, key: str, value: Any
) -> None:
    reconfigure(
        folder, lambda body: body.pop(key) if value == "absent" else body.update({key: value})
    )
    refusal(folder, target)


@pytest.mark.parametrize("taps", [[0, 3, 6], [-1, 3, 5]])
def test_taps_beyond_the_target_are_refused(target: Target, folder: Path, taps: list[int]) -> None:
    def change(body: dict[str, Any]) -> None:
        body["draftgym"]["tap_layers"] = taps
        if "dflash_config" in body:
            body["dflash_config"]["target_layer_ids"] = taps

    reconfigure(folder, change)
    assert "layer" in refusal(folder, target).problem


@pytest.mark.parametrize("mask", [61, -1])
def test_a_mask_token_outside_the_vocabulary_is_refused(
    target: Target, tmp_path: Path, mask: int
) -> None:
    save_checkpoint(network_of("dflash", target), tmp_path, target)
    reconfigure(tmp_path, lambda body: body["dflash_config"].update(mask_token_id=mask))
    assert "mask" in refusal(tmp_path, target).problem


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
