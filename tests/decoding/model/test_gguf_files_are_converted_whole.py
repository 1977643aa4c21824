"""A GGUF file becomes the model that it holds, with all that it says of it, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model import embedded
from draftgym.decoding.model.gguf import conversion
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from tests.tiny_gguf import HEADS, WIDTH, write_tiny_gguf

HEAD_DIM = WIDTH // HEADS
TOKENS = torch.arange(40) + 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loaded(path: Path, **settings: Any) -> Target:
    write_tiny_gguf(path, scale=0.4, **settings)
    return load_target(str(path), "float32", 1)


def refused(path: Path, cache: Path, **settings: Any) -> DraftgymError:
    write_tiny_gguf(path, **settings)
    with pytest.raises(DraftgymError) as caught:
        load_target(str(path), "float32", 1)
    assert path.name in caught.value.problem and caught.value.remedy
    assert not list(cache.rglob("*.safetensors")) and not list(cache.rglob("*.partial"))
    return caught.value


@pytest.mark.parametrize(
    ("left_out", "called"),
    [
        ("blk.0.ffn_down", "down_proj"),
        ("blk.0.ffn_norm", "post_attention_layernorm"),
        ("blk.0.attn_q", "q_proj"),
        ("output_norm", "model.norm"),
        ("token_embd", "2 tensors missing"),  # the head is tied to it
    ],
)
def test_a_missing_tensor_is_refused(
    tmp_path: Path, cache: Path, left_out: str, called: str
) -> None:
    """Transformers would fill it with random numbers, others at every conversion."""
    assert called in refused(tmp_path / "half.gguf", cache, without=left_out).problem


def test_a_tensor_that_would_be_dropped_is_refused(tmp_path: Path, cache: Path) -> None:
    name = "blk.0.attn_q.bias"
    assert name in refused(tmp_path / "more.gguf", cache, extra={name: [1.0] * WIDTH}).problem


def split_into_three(tmp_path: Path) -> tuple[Target, list[Path]]:
    """A model as one file, loaded, and the parts of the same one."""
    whole = loaded(tmp_path / "whole.gguf")
    write_tiny_gguf(tmp_path / "big.gguf", scale=0.4, tensors_per_part=4)
    parts = sorted(tmp_path.glob("big-*-of-00003.gguf"))
    assert len(parts) == 3
    return whole, parts


@pytest.mark.parametrize("named", [0, 2])
def test_a_split_file_is_read_as_a_whole(tmp_path: Path, named: int) -> None:
    whole, parts = split_into_three(tmp_path)
    target = load_target(str(parts[named]), "float32", 1)
    assert target.fingerprint == whole.fingerprint
    assert target.stop_tokens == whole.stop_tokens
    assert target.encode("abc").tolist() == whole.encode("abc").tolist()


def test_a_split_file_without_a_part_is_refused(tmp_path: Path) -> None:
    _, parts = split_into_three(tmp_path)
    parts[1].unlink()
    with pytest.raises(DraftgymError, match=r"big-00002-of-00003\.gguf") as caught:
        load_target(str(parts[0]), "float32", 1)
    assert "one folder" in caught.value.remedy


def test_parts_of_another_model_are_refused(tmp_path: Path, cache: Path) -> None:
    _, parts = split_into_three(tmp_path)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(DraftgymError, match=r"big-00001-of-00003\.gguf"):
        load_target(str(parts[0]), "float32", 1)
    assert not list(cache.glob("targets/big-*"))


def test_a_part_of_a_split_file_is_refused_by_what_it_says(tmp_path: Path, cache: Path) -> None:
    def split(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 3)

    error = refused(tmp_path / "renamed.gguf", cache, setting=split)
    assert "part 1 of 3" in error.problem and "-00001-of-00003.gguf" in error.remedy


def test_the_only_part_is_a_whole_file(tmp_path: Path) -> None:
    assert loaded(tmp_path / "big-00001-of-00001.gguf").context_limit == 64


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def older_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_float32("llama.rope.scale_linear", 4.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(50_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    writer.add_rope_scaling_orig_ctx_len(32)


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e4,
}


@pytest.mark.parametrize(
    ("setting", "rope"), [(linear, LINEAR), (older_linear, LINEAR), (yarn, YARN)]
)
def test_rotary_scaling_is_carried_over(
    tmp_path: Path, setting: Callable[[Any], None], rope: dict[str, Any]
) -> None:
    """The logits are those of the same weights in a folder with this scaling, and no others."""
    scaled = loaded(tmp_path / "scaled.gguf", setting=setting)
    write_tiny_gguf(tmp_path / "plain.gguf", scale=0.4)
    folder = shutil.copytree(embedded.gguf_target(tmp_path / "plain.gguf"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unscaled = load_target(str(folder), "float32", 1)
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    ours, expected, other = (
        one.decoder.forward([NewRows(one.decoder.new_cache(40), TOKENS)])[0].logits
        for one in (scaled, load_target(str(folder), "float32", 1), unscaled)
    )
    assert torch.equal(ours, expected)
    assert not torch.allclose(ours, other, atol=1e-2)


def llama3_divisors(factor: float) -> torch.Tensor:
    """As llama.cpp's converter writes them."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(head_dim=HEAD_DIM, rope_parameters=scaling)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, None)
    return 1e4 ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM) / scaled


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_read_from_its_tensor(tmp_path: Path, factor: float) -> None:
    target = loaded(tmp_path / "l3.gguf", extra={"rope_freqs.weight": llama3_divisors(factor)})
    assert target.rope_parameters["rope_type"] == "llama3"
    assert target.rope_parameters["factor"] == factor


def longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_factor(4.0)


def odd_yarn(writer: gguf.GGUFWriter) -> None:
    yarn(writer)
    writer.add_rope_scaling_attn_factors(0.5)


def softcap(writer: gguf.GGUFWriter) -> None:
    writer.add_final_logit_softcapping(30.0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [(longrope, "longrope"), (odd_yarn, "attn_factor"), (softcap, "softcapping")],
)
def test_what_the_configuration_cannot_carry_is_refused(
    tmp_path: Path, cache: Path, setting: Callable[[Any], None], named: str
) -> None:
    assert named in refused(tmp_path / "odd.gguf", cache, setting=setting).problem


def test_divisors_that_nobody_names_are_refused(tmp_path: Path, cache: Path) -> None:
    odd = {"rope_freqs.weight": torch.linspace(1, 8, HEAD_DIM // 2)}
    assert "rope_freqs" in refused(tmp_path / "odd.gguf", cache, extra=odd).problem


def test_another_architecture_is_refused_before_it_is_converted(
    tmp_path: Path, cache: Path
) -> None:
    error = refused(tmp_path / "gemma.gguf", cache, architecture="gemma2")
    assert "gemma2" in error.problem and "qwen3" in error.remedy


def test_a_window_limits_the_context(tmp_path: Path) -> None:
    assert (
        loaded(tmp_path / "w.gguf", setting=lambda w: w.add_sliding_window(24)).context_limit == 24
    )


def test_the_end_of_a_turn_ends_a_text(tmp_path: Path) -> None:
    assert loaded(tmp_path / "one.gguf").stop_tokens == {2}
    both = loaded(tmp_path / "two.gguf", setting=lambda writer: writer.add_eot_token_id(0))
    assert both.stop_tokens == {0, 2}


def test_a_conversion_of_an_older_format_is_made_again(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "own.gguf", setting=linear)
    folder = embedded.gguf_target(tmp_path / "own.gguf")
    marker = folder / conversion.PROVENANCE
    body = json.loads(marker.read_text(encoding="utf-8"))
    del body["format"]
    marker.write_text(json.dumps(body))
    (folder / "config.json").write_text("{}")
    assert not conversion.is_ready(folder, body["sha256"])
    assert conversion.is_ready(folder, body["sha256"], since=1)  # as the embedded target asks
    again = embedded.gguf_target(tmp_path / "own.gguf")
    assert again == folder and conversion.is_ready(folder, body["sha256"])
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["rope_parameters"]
