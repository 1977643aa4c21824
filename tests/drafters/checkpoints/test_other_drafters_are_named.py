"""Drafters that we do not build are refused by their name, never as damaged ones of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.loading import load_drafters
from tests.published.checkpoints import SIZES, config_of, decoder_keys, tensors_of, write_checkpoint

SIZE = SIZES["small"]
LLAMA = decoder_keys(SIZE, "llama", 1) | {"architectures": ["LlamaForCausalLM"]}
EAGLE3 = config_of("native-eagle3", SIZE)
DFLASH = config_of("native-dflash", SIZE)


def refusal(target: Target, folder: Path, body: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """What is said of a folder, which neither calls it damaged nor has it copied again."""
    write_checkpoint(folder, body, tensors)
    with pytest.raises(DraftgymError) as caught:
        load_drafters(target, [folder])
    said = f"{caught.value.problem} | {caught.value.remedy}"
    assert str(folder) in said
    assert "damaged" not in said and "again" not in said and "small LM /" not in said
    return said


def eagle1_tensors() -> dict[str, Tensor]:
    """Tensors of an EAGLE-1 or EAGLE-2 head: one layer without an input norm."""
    kept = tensors_of("speculators-eagle3", SIZE)
    names = ("self_attn", "mlp", "post_attention_layernorm")
    layer = {key: value for key, value in kept.items() if any(name in key for name in names)}
    return layer | {"embed_tokens.weight": torch.randn(61, 32), "fc.weight": torch.randn(32, 64)}


def named(architecture: str, **more: Any) -> dict[str, Any]:
    return LLAMA | {"architectures": [architecture]} | more


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (named("EagleLlamaForCausalLM"), "EAGLE-1 or EAGLE-2"),
        (named("LlamaForCausalLMEagle"), "EAGLE-1 or EAGLE-2"),
        (named("EAGLEModel", model_type="eagle"), "EAGLE-1 or EAGLE-2"),
        ({"speculators_model_type": "eagle"}, "EAGLE-1 or EAGLE-2"),
        (named("LlamaForCausalLMEagle3Deep"), "several layers"),
        (named("Qwen3MoEForCausalLMEagle3"), "not a dense Llama"),
        (named("Eagle3DeepseekV2ForCausalLM"), "not a dense Llama"),
        (named("Eagle3Qwen2_5vlForCausalLM"), "another network"),
        (named("PEagleDraftModel"), "P-EAGLE"),
        ({"speculators_model_type": "peagle"}, "P-EAGLE"),
        (named("DSparkDraftModel"), "DSpark"),
        (
            DFLASH | {"dflash_config": DFLASH["dflash_config"] | {"projector_type": "dspark"}},
            "DSpa",
        ),
        ({"speculators_model_type": "dspark"}, "DSpark"),
        (
            DFLASH | {"dflash_config": DFLASH["dflash_config"] | {"projector_type": "domino"}},
            "Domi",
        ),
        (DFLASH | {"architectures": ["DFlash2DraftModel"]}, "DFlash 2"),
        (named("Qwen3_5MTPDraftModel"), "MTP"),
        (named("DeepseekV3ForCausalLMNextN"), "MTP"),
        ({"speculators_model_type": "mtp"}, "MTP"),
        (named("MedusaModel", model_type="medusa"), "Medusa"),
        (named("Qwen2ForCausalLM", medusa_num_heads=4), "Medusa"),
        ({"medusa_num_heads": 4, "base_model_name_or_path": "some/model"}, "Medusa"),
        (named("MLPSpeculatorPreTrainedModel", model_type="mlp_speculator"), "MLP speculator"),
        (named("HydraModel"), "Hydra"),
        (named("EdsdDraftModel"), "EDSD"),
    ],
)
def test_a_drafter_of_another_kind_is_named(
    target: Target, tmp_path: Path, body: dict[str, Any], word: str
) -> None:
    assert word in refusal(target, tmp_path, body, eagle1_tensors())


@pytest.mark.parametrize("prefix", ["", "model."])
def test_heads_whose_config_is_a_language_models_are_known_by_their_tensors(
    target: Target, tmp_path: Path, prefix: str
) -> None:
    tensors = {f"{prefix}{name}": value for name, value in eagle1_tensors().items()}
    assert "EAGLE-1 or EAGLE-2" in refusal(target, tmp_path / "one", LLAMA, tensors)
    medusa = {f"{i}.0.linear.weight": torch.randn(32, 32) for i in range(3)}
    assert "Medusa" in refusal(target, tmp_path / "medusa", LLAMA, medusa)


@pytest.mark.parametrize("with_vocab", [True, False])
def test_a_head_of_many_layers_is_no_small_lm(
    target: Target, tmp_path: Path, with_vocab: bool
) -> None:
    body = LLAMA | {"num_hidden_layers": 40} | ({"draft_vocab_size": 40} if with_vocab else {})
    said = refusal(target, tmp_path, body, tensors_of("native-eagle3", SIZE))
    assert "num_hidden_layers is 40" in said and "EAGLE-3" in said


MROPE = {"mrope_section": [16, 24, 24]}


@pytest.mark.parametrize("form", ["native-eagle3", "speculators-eagle3", "native-dflash"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rope_scaling": {"type": "mrope"} | MROPE}, "mrope"),
        ({"rope_scaling": {"rope_type": "default", "mrope_interleaved": True} | MROPE}, "mrope"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 1.0}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_interleave": True}, "rope_interleave"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation"),
        ({"use_sliding_window": True, "sliding_window": 512}, "sliding_window"),
        ({"layer_types": ["sliding_attention"], "sliding_window": 512}, "sliding"),
        ({"layer_types": None, "use_sliding_window": None, "sliding_window": 512}, "sliding_wind"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"rms_norm_add_unit_offset": True}, "rms_norm_add_unit_offset"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"num_local_experts": 8}, "num_local_experts"),
    ],
    ids=str,
)
def test_what_our_network_would_ignore_is_refused(
    target: Target, tmp_path: Path, form: str, change: dict[str, Any], word: str
) -> None:
    body = config_of(form, SIZE)
    (body.get("transformer_layer_config") or body).update(change)
    write_checkpoint(tmp_path, body, tensors_of(form, SIZE))
    with pytest.raises(DraftgymError, match=word) as caught:
        load_drafters(target, [tmp_path])
    assert "damaged" not in caught.value.problem


def test_a_window_that_never_closes_is_none(target: Target, tmp_path: Path) -> None:
    for name, change in {
        "off": {"sliding_window": 512, "use_sliding_window": False},
        "long": {"sliding_window": 2048},
    }.items():
        folder = write_checkpoint(
            tmp_path / name, EAGLE3 | change, tensors_of("native-eagle3", SIZE)
        )
        assert "eagle3" in load_drafters(target, [folder])


@pytest.mark.parametrize("flag", ["norm_before_residual", "fc_norm", "norm_before_fc"])
def test_a_switch_is_true_or_false(target: Target, tmp_path: Path, flag: str) -> None:
    write_checkpoint(tmp_path, EAGLE3 | {flag: "false"}, tensors_of("native-eagle3", SIZE))
    with pytest.raises(DraftgymError, match=flag) as caught:
        load_drafters(target, [tmp_path])
    assert "true or false" in caught.value.remedy
