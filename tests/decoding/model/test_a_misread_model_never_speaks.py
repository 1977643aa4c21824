"""A model that our pass would read otherwise than transformers is computed rightly or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.compact import agreement
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.precision import Precision
from draftgym.decoding.model.target import load_target, wrap_model
from draftgym.drafters.small_lm.network import load_small_lm
from tests.tiny import ONE_THREAD, tiny_model, tiny_target

BOTH = pytest.mark.parametrize("backend", ["compact", "auto"])
TOKENS = torch.arange(3, 43)
KINDS = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_is_the_models_own(kind: str, act: str) -> None:
    model = tiny_model(kind, hidden_act=act)
    target = wrap_model(model, None, kind, ONE_THREAD)
    decoder = target.decoder
    ours = decoder.forward([NewRows(decoder.new_cache(40), TOKENS)])[0].logits
    with torch.no_grad():
        theirs = model(TOKENS[None]).logits[0]
        another = tiny_model(kind)(TOKENS[None]).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - another).abs().max() > 0.1
    assert target.fingerprint != tiny_target(kind).fingerprint  # the same weights, another model


def scaled_logits(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, out: 30 * torch.tanh(out / 30))


def scaled_attention(model: Any) -> None:
    model.model.layers[2].self_attn.scaling *= 1.1


def other_angles_far_away(model: Any) -> None:
    """Angles that are right up to position 128: a short test text would not show it."""
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: (
        original(x, position_ids + (position_ids > 128))
        if position_ids.shape[1] == agreement.ROWS
        else original(x, position_ids)
    )


def other_epsilon(model: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 1e-3


def added_adapter(model: Any) -> None:
    """What an unmerged LoRA does: the projection's `weight` is still that of the base model."""
    projection = model.model.layers[3].self_attn.v_proj
    down, up = 0.1 * torch.randn(2, 32), 0.1 * torch.randn(16, 2)
    projection.register_forward_hook(
        lambda module, args, out: out + args[0] @ down.T.to(out) @ up.T.to(out)
    )


def no_layer_norm(model: Any) -> None:
    model.model.layers[4].post_attention_layernorm = torch.nn.RMSNorm(32, eps=1.0)


MISREADINGS = [
    scaled_logits,
    scaled_attention,
    other_angles_far_away,
    other_epsilon,
    added_adapter,
    no_layer_norm,
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", MISREADINGS)
def test_a_model_that_computes_something_else_is_refused_or_driven_by_transformers(
    change: Callable[[Any], None], dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    precision = Precision(dtype, 1, "tests")
    model = tiny_model().to(precision.torch_dtype)
    plain = wrap_model(model, None, "plain", precision)
    assert plain.compact and not capsys.readouterr().err
    change(model)
    with pytest.raises(DraftgymError, match="'odd' cannot be trusted") as caught:
        wrap_model(model, None, "odd", precision, backend="compact")
    assert "qwen3" in caught.value.remedy
    driven = wrap_model(model, None, "odd", precision)
    assert "transformers drives target 'odd'" in capsys.readouterr().err
    cache = driven.decoder.new_cache(len(TOKENS))
    ours = driven.decoder.forward([NewRows(cache, TOKENS)])[0].logits
    with torch.no_grad():
        theirs = model(TOKENS[None]).logits[0].float()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_leaves_the_model_as_it_was(dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", tie_word_embeddings=True).to(dtype)
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with torch.no_grad():
        logits = model(TOKENS[None]).logits
    agreement.check_agrees(model, "target 'x'")
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before
    assert all(weight.dtype == dtype for weight in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None]).logits, logits)


def saved(folder: Path, **changes: Any) -> Path:
    tiny_model(**changes).save_pretrained(folder)
    return folder


def refusal(folder: Path, backend: Backend = "compact") -> DraftgymError:
    """What target and small LM say; both are read by the same rules."""
    with pytest.raises(DraftgymError) as caught:
        load_target(str(folder), "float32", threads=1, backend=backend)
    with pytest.raises(DraftgymError) as small:
        load_small_lm(folder, tiny_target())
    assert caught.value.remedy == small.value.remedy
    assert f"small LM {folder}" in small.value.problem
    return caught.value


def with_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
    return folder


def with_tensors(folder: Path, **tensors: torch.Tensor) -> Path:
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
def test_quantised_weights_are_refused_before_they_are_read(tmp_path: Path, method: str) -> None:
    folder = with_config(saved(tmp_path), quantization_config={"quant_method": method})
    (folder / "model.safetensors").unlink()
    error = refusal(folder)
    assert "quantised" in error.problem and method in error.problem
    assert ".gguf" in error.remedy


@pytest.mark.parametrize("method", ["awq", "fancy"])
def test_quantised_weights_that_transformers_cannot_read_say_what_to_do(
    tmp_path: Path, method: str
) -> None:
    """A package that is not here, and a method that no package knows."""
    folder = with_config(saved(tmp_path), quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(DraftgymError) as caught:
        load_target(str(folder), "float32", threads=1)
    assert ".gguf" in caught.value.remedy


NAME = "model.layers.1.mlp.down_proj"


@BOTH
@pytest.mark.parametrize("extra", ["weight_scale", "weight.SCB", "lora_A.weight", "bias"])
def test_tensors_that_the_model_has_no_place_for_are_refused(
    tmp_path: Path, extra: str, backend: Backend
) -> None:
    """Scales without a quantization_config, adapters, biases: dropped, the rest would speak."""
    folder = with_tensors(saved(tmp_path), **{f"{NAME}.{extra}": torch.ones(32)})
    assert f"{NAME}.{extra}" in refusal(folder, backend).problem


@BOTH
def test_integers_are_not_read_as_if_they_were_real_numbers(
    tmp_path: Path, backend: Backend
) -> None:
    whole = torch.randint(-127, 127, (32, 48), dtype=torch.int8)
    folder = with_tensors(saved(tmp_path), **{f"{NAME}.weight": whole})
    assert NAME in refusal(folder, backend).problem


@BOTH
def test_weights_of_another_size_are_refused(tmp_path: Path, backend: Backend) -> None:
    folder = with_tensors(saved(tmp_path), **{f"{NAME}.weight": torch.ones(32, 47)})
    assert "mlp.down_proj" in refusal(folder, backend).problem


@BOTH
def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, backend: Backend) -> None:
    (saved(tmp_path) / "adapter_config.json").write_text("{}")
    error = refusal(tmp_path, backend)
    assert "adapter" in error.problem and "merge" in error.remedy


@pytest.mark.parametrize("rope", ["proportional", "su", "mrope", "ours"])
def test_unknown_rotary_embeddings_are_refused(tmp_path: Path, rope: str) -> None:
    rotary = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    folder = with_config(saved(tmp_path), rope_parameters=rotary)
    assert rope in refusal(folder).problem


def test_partial_rotation_is_computed_or_refused(tmp_path: Path) -> None:
    rotary = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}
    rotary["original_max_position_embeddings"] = 64
    folder = with_config(saved(tmp_path), rope_parameters=rotary)
    assert str(tmp_path) in refusal(folder).problem
