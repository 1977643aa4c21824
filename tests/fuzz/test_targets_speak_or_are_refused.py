"""A damaged model folder is loaded and writes, or is refused with a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.gguf.header import check_tensors, read_header, rope_parameters
from draftgym.decoding.model.target import load_target
from draftgym.drafters.small_lm.network import load_small_lm
from tests.tiny import tiny_target
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_text import save_target

# Sizes stay small: a model of a billion layers is no damage that a test can load.
SMALL = st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SMALL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
SETTINGS = [
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "layer_types",
    "quantization_config",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "draftgym",
    "use_cache",
    "auto_map",
    "attn_implementation",
    "attention_dropout",
    "pretraining_tp",
]
GENERATION = [
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "min_new_tokens",
    "temperature",
    "top_p",
    "max_length",
    "sequence_bias",
    "do_sample",
    "watermarking_config",
    "num_beams",
    "cache_implementation",
    "transformers_version",
]
TOKENIZER = [
    "tokenizer_class",
    "chat_template",
    "eos_token",
    "bos_token",
    "pad_token",
    "model_max_length",
    "extra_special",
    "added_tokens_decoder",
    "added_tokens",
    "backend",
    "truncation",
    "padding",
    "clean_up_tokenization_spaces",
]
OBJECTS = {
    "config.json": SETTINGS,
    "generation_config.json": GENERATION,
    "tokenizer_config.json": TOKENIZER,
    "tokenizer.json": ["version", "truncation", "padding", "added_tokens", "normalizer", "model"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path.read_bytes()


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


def speaks_or_refuses(whole: Path, copy: Path, file: str, data: bytes, drafts: bool) -> None:
    """As a target, or as a small LM of another target."""
    folder = copy / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / file).write_bytes(data)
    try:
        if drafts:
            load_small_lm(folder, tiny_target(vocab_size=257))
            return
        target = load_target(str(folder), "float32", 1)
        written = SpeculativeDecoder(target, {}, PlainPolicy()).generate("hi", 3)
        assert 1 <= len(written.tokens) <= 3 and target.decode(written.tokens) is not None
    except DraftgymError as error:
        assert error.problem and error.remedy


@pytest.mark.slow
@given(st.sampled_from(sorted(OBJECTS)), st.booleans(), st.data())
def test_settings_of_any_value(
    whole: Path, copy: Path, file: str, drafts: bool, data: st.DataObject
) -> None:
    body: dict[str, Any] = json.loads((whole / file).read_text(encoding="utf-8"))
    keys = st.sampled_from([*OBJECTS[file], *body])
    changes = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=2))
    text = json.dumps(body | changes)
    speaks_or_refuses(whole, copy, file, text.encode(), drafts)


@given(
    st.sampled_from(sorted([*OBJECTS, "model.safetensors"])),
    st.integers(0, 3000),
    st.binary(max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_bytes_of_any_kind(
    whole: Path, copy: Path, file: str, place: int, data: bytes, cut: bool, drafts: bool
) -> None:
    """Some bytes are written over or behind the first ones, or the rest is cut off."""
    before = (whole / file).read_bytes()
    place %= len(before)
    after = before[:place] + data + (b"" if cut else before[place + len(data) :])
    speaks_or_refuses(whole, copy, file, after, drafts)


@given(st.integers(0, 1 << 16), st.binary(max_size=12), st.booleans())
def test_gguf_headers_are_read_or_refused(
    gguf_bytes: bytes, copy: Path, place: int, data: bytes, cut: bool
) -> None:
    path, before = copy / "tiny.gguf", gguf_bytes
    place %= len(before)
    path.write_bytes(before[:place] + data + (b"" if cut else before[place + len(data) :]))
    try:
        header = read_header(path)
        rope_parameters(header, 16)
        check_tensors(header, torch.nn.Linear(1, 1).state_dict())
    except DraftgymError as error:
        assert str(path) in error.problem and error.remedy
