"""Our pass computes what transformers computes, and refuses models for which it would not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.model.target import load_target, wrap_model
from tests.tiny import ONE_THREAD, tiny_model, tiny_target

TOKENS = torch.tensor([5, 17, 3, 44, 60, 9, 9, 31, 2, 28, 50, 1])
PIECES = (7, 1, 3, 1)  # a prefill, then rounds of different sizes
THETA = 10000.0
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": THETA},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": THETA,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": THETA,
    },
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    *(("llama", {"rope_parameters": rope}) for rope in ROPES.values()),
    ("qwen3", {"rope_parameters": ROPES["yarn"]}),
]


def randomised(kind: str, changes: dict[str, Any]) -> Any:
    """A model whose norms and biases are random too, so that ignoring one shows."""
    model = tiny_model(kind, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_logits_hidden_states_and_taps_equal_transformers(
    kind: str, changes: dict[str, Any]
) -> None:
    model = randomised(kind, changes)
    target = wrap_model(model, None, kind, ONE_THREAD)
    layers = list(range(6))
    cache = target.decoder.new_cache(20)
    outputs = []
    for piece in TOKENS.split(list(PIECES)):
        outputs.append(target.decoder.forward([NewRows(cache, piece)], layers)[0])
        cache.keep(len(piece))
    with torch.no_grad():
        theirs = model(TOKENS[None], output_hidden_states=True)
        # hidden_states holds the last layer's output behind the final norm; taps are before it.
        raw: list[torch.Tensor] = []
        hook = model.model.layers[-1].register_forward_hook(
            lambda module, args, out: raw.append(out[0] if isinstance(out, tuple) else out)
        )
        model(TOKENS[None])
        hook.remove()
    expected_taps = [*(state[0] for state in theirs.hidden_states[1:6]), raw[0].view(12, -1)]
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([o.logits for o in outputs]), theirs.logits[0], **close)
    torch.testing.assert_close(
        torch.cat([o.hidden for o in outputs]), theirs.hidden_states[-1][0], **close
    )
    taps = torch.cat([o.taps for o in outputs])
    torch.testing.assert_close(taps, torch.stack(expected_taps, dim=1), **close)


def test_the_models_of_these_tests_differ() -> None:
    """Guards the test above: biases, norms and rotary scaling change the logits they should."""
    logits = [randomised(kind, changes)(TOKENS[None]).logits[0, -1] for kind, changes in MODELS]
    plain = logits[0]
    scaled = logits[-4:-1]
    assert all(not torch.allclose(plain, other, atol=1e-3) for other in scaled)
    assert randomised("qwen2", {}).model.layers[0].self_attn.q_proj.bias.abs().min() > 0
    assert hasattr(randomised("qwen3", {}).model.layers[0].self_attn, "q_norm")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_decoding_writes_what_generate_writes(kind: str) -> None:
    model = tiny_model(kind)
    target = wrap_model(model, None, kind, ONE_THREAD)
    ours = SpeculativeDecoder(target, {}, PlainPolicy()).generate(TOKENS, 24).tokens
    theirs = model.generate(
        TOKENS[None], max_new_tokens=24, do_sample=False, attention_mask=torch.ones(1, 12)
    )
    assert ours == theirs[0, 12:].tolist()


def test_rows_can_be_left_out_of_the_head() -> None:
    target = tiny_target()
    rows = NewRows(target.decoder.new_cache(20), TOKENS)
    last = NewRows(rows.cache, TOKENS, logits_from=11)
    every, one = (target.decoder.forward([r], (2,))[0] for r in (rows, last))
    torch.testing.assert_close(one.logits[0], every.logits[-1])
    assert one.logits.shape == (1, 61)
    assert torch.equal(one.taps, every.taps)


def saved(folder: Path, kind: str = "llama", **changes: Any) -> Any:
    model = tiny_model(kind, **changes)
    model.save_pretrained(folder)
    return model


def test_a_saved_folder_loads_as_the_same_target(tmp_path: Path) -> None:
    model = saved(tmp_path, "qwen2", tie_word_embeddings=True, eos_token_id=[7, 9])
    target = load_target(str(tmp_path), "float32", threads=1)
    output = target.decoder.forward([NewRows(target.decoder.new_cache(20), TOKENS)])[0]
    torch.testing.assert_close(output.logits, model(TOKENS[None]).logits[0], rtol=1e-4, atol=1e-4)
    assert target.stop_tokens == {7, 9}
    assert target.context_limit == 256
    assert target.fingerprint == wrap_model(model, None, "x", ONE_THREAD).fingerprint


def test_the_fingerprint_is_of_the_weights_and_not_of_the_dtype(tmp_path: Path) -> None:
    saved(tmp_path)
    loaded = [load_target(str(tmp_path), dtype, 1) for dtype in ("float32", "bfloat16")]
    assert loaded[0].fingerprint == loaded[1].fingerprint == tiny_target().fingerprint
    assert tiny_target(seed=1).fingerprint != loaded[0].fingerprint


@pytest.mark.parametrize(
    ("kind", "changes", "limit"),
    [
        ("mistral", {"sliding_window": 64}, 256),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, 256),
        ("llama", {"max_position_embeddings": 128}, 128),
    ],
)
def test_positions_limit_the_context_and_a_window_does_not(
    kind: str, changes: dict[str, Any], limit: int
) -> None:
    target = tiny_target(kind, **changes)
    assert target.context_limit == limit
    with pytest.raises(DraftgymError, match="do not fit") as caught:
        SpeculativeDecoder(target, {}, PlainPolicy()).generate(TOKENS, limit)
    assert "--max-new-tokens" in caught.value.remedy


def refusal(name: Path | str, backend: Backend = "auto") -> DraftgymError:
    with pytest.raises(DraftgymError) as caught:
        load_target(str(name), "float32", threads=1, backend=backend)
    assert caught.value.remedy
    return caught.value


def test_the_compact_decoder_refuses_a_model_of_another_kind(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=61).save_pretrained(tmp_path)
    error = refusal(tmp_path, "compact")
    assert "gpt2" in error.problem
    assert "qwen3" in error.remedy


def test_the_compact_decoder_refuses_rotary_scaling_that_changes_with_the_length(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA}
    transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=1, rope_parameters=rope
    ).save_pretrained(tmp_path)
    assert "dynamic" in refusal(tmp_path, "compact").problem


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["model.norm.weight", "model.layers.3.mlp.up_proj.weight"])
def test_nan_weights_are_refused(tmp_path: Path, where: str, bad: float) -> None:
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[where].view(-1)[5] = bad
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "NaN" in refusal(tmp_path).problem


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """Transformers would fill them with random numbers and go on."""
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.self_attn.o_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "o_proj" in refusal(tmp_path).problem


def test_truncated_safetensors_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])
    assert str(tmp_path) in refusal(tmp_path).problem


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert str(tmp_path) in refusal(tmp_path).problem


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", ')
    assert str(tmp_path) in refusal(tmp_path).problem


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path).problem


def test_an_unknown_name_gets_a_suggestion() -> None:
    assert "smollm2-135m" in refusal("smolm2-135m").remedy
    assert "Hub id" in refusal("surely/not/here").remedy


@pytest.mark.parametrize(("dtype", "threads"), [("float8", 1), ("float32", 0)])
def test_impossible_precision_is_refused(tmp_path: Path, dtype: str, threads: int) -> None:
    saved(tmp_path)
    with pytest.raises(DraftgymError) as caught:
        load_target(str(tmp_path), dtype, threads)
    assert caught.value.remedy


def test_openmps_own_variable_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert load_target(str(tmp_path), "float32").precision.threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert usable_cores() <= (os.cpu_count() or 1)


def test_a_bare_model_asks_for_a_tokenizer_only_when_text_comes(tmp_path: Path) -> None:
    saved(tmp_path)
    target = load_target(str(tmp_path), "float32", threads=1)
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    assert len(decoder.generate(TOKENS, 4).tokens) == 4
    with pytest.raises(DraftgymError, match="no tokenizer") as caught:
        decoder.generate("Why is the sky blue?")
    assert "tokenizer.json" in caught.value.remedy
