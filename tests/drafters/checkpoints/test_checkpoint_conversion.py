"""Converting a checkpoint to another format and back changes no bit and no meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters import convert as module
from draftgym.drafters.checkpoint import load_drafter, save_checkpoint
from draftgym.drafters.convert import ConvertArgs, convert
from tests.published.checkpoints import (
    SIZES,
    Size,
    config_of,
    shapes_of,
    tensors_of,
    write_checkpoint,
)
from tests.tiny import tiny_dflash, tiny_eagle3

BOTH_SIZES = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
KINDS = ("eagle3", "dflash")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.fixture(autouse=True)
def named_target(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--target tiny-llama` is the tiny target."""
    monkeypatch.setattr(module, "load_target", lambda *_, **__: target)


def run(source: Path, destination: Path, form: Any, target: str | None = None, **more: Any) -> Path:
    convert(ConvertArgs(source, destination, form, target, **more))
    return destination


def tensors_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def body_of(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return body


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def native(folder: Path, kind: str, size: Size, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A published native checkpoint, stored in a dtype."""
    form = f"native-{kind}"
    stored = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in tensors_of(form, size).items()
    }
    named = str(dtype).removeprefix("torch.")
    body = config_of(form, size) | {"torch_dtype" if kind == "eagle3" else "dtype": named}
    return write_checkpoint(folder, body, stored)


@pytest.mark.parametrize("kind", KINDS)
@BOTH_SIZES
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_to_speculators_and_back_is_exact(
    tmp_path: Path, kind: str, size: Size, dtype: str
) -> None:
    source = native(tmp_path / "a", kind, size, DTYPES[dtype])
    middle = run(source, tmp_path / "b", "speculators", "tiny-llama")
    assert {n: tuple(v.shape) for n, v in tensors_in(middle).items()} == shapes_of(
        f"speculators-{kind}", size
    )
    for target in (None, "tiny-llama"):
        back = run(middle, tmp_path / f"c{target}", kind, target)
        assert same(tensors_in(back), tensors_in(source))
        before, after = body_of(source), body_of(back)
        unsaid = {"transformers_version", "auto_map"}
        if size.draft_vocab < size.vocab and kind == "dflash":
            assert after["draft_vocab_size"] == size.draft_vocab
        assert {k: after[k] for k in before.keys() - unsaid} == {
            k: before[k] for k in before.keys() - unsaid
        }
    again = run(tmp_path / "cNone", tmp_path / "d", "speculators", "tiny-llama")
    assert same(tensors_in(again), tensors_in(middle))
    assert body_of(again) == body_of(middle)


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_train_makes_the_round_trip_too(target: Target, tmp_path: Path, kind: str) -> None:
    drafter = tiny_eagle3(target) if kind == "eagle3" else tiny_dflash(target)
    save_checkpoint(drafter.network, tmp_path / "a", target)
    run(tmp_path / "a", tmp_path / "b", "speculators", "tiny-llama")
    run(tmp_path / "b", tmp_path / "c", kind)
    assert same(tensors_in(tmp_path / "c"), tensors_in(tmp_path / "a"))
    assert body_of(tmp_path / "c") == body_of(tmp_path / "a")
    for folder in "abc":
        assert load_drafter(tmp_path / folder, target).tap_layers == drafter.tap_layers


@pytest.mark.parametrize("kind", KINDS)
def test_the_speculators_config_has_exactly_the_published_keys(tmp_path: Path, kind: str) -> None:
    size = SIZES["small"]
    source = native(tmp_path / "a", kind, size)
    body = body_of(run(source, tmp_path / "b", "speculators", "x", verifier="some/verifier"))
    published = config_of(f"speculators-{kind}", size) | {"torch_dtype": "bfloat16"}
    layer, wanted = body.pop("transformer_layer_config"), published.pop("transformer_layer_config")
    assert body.pop("draftgym")["target"] == "some/verifier"
    if kind == "eagle3":  # the default taps of the native source
        published["eagle_aux_hidden_state_layer_ids"] = [2, 3, 3]
    assert body == published
    extra = {"rope_parameters", "attention_dropout", "pad_token_id"}
    assert layer.keys() - extra == wanted.keys() - extra
    assert all(layer[key] == wanted[key] for key in wanted)
    config: Any = (LlamaConfig if kind == "eagle3" else Qwen3Config)(**layer)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.head_dim == size.head_dim


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_copied_from_the_target(target: Target, tmp_path: Path, kind: str) -> None:
    source = native(tmp_path / "a", kind, SIZES["small"])
    stored = tensors_in(run(source, tmp_path / "b", "speculators", "tiny-llama"))
    assert torch.equal(stored["embed_tokens.weight"], target.decoder.embedding.bfloat16())
    if kind == "dflash":
        rows = target.decoder.head[stored["d2t"] + torch.arange(40)]
        assert torch.equal(stored["lm_head.weight"], rows.bfloat16())
    with pytest.raises(DraftgymError, match="--target"):
        run(source, tmp_path / "c", "speculators")


def test_foreign_speculators_checkpoints_become_native(target: Target, tmp_path: Path) -> None:
    size = SIZES["small"]
    for kind in KINDS:
        form = f"speculators-{kind}"
        tensors = tensors_of(form, size, target.decoder.embedding, target.decoder.head)
        write_checkpoint(tmp_path / kind, config_of(form, size), tensors)
        out = run(tmp_path / kind, tmp_path / f"{kind}-native", kind, "tiny-llama")
        shapes = {name: tuple(value.shape) for name, value in tensors_in(out).items()}
        assert shapes == shapes_of(f"native-{kind}", size)
    with pytest.raises(DraftgymError, match="--target"):  # are its tables copies? nobody knows
        run(tmp_path / "dflash", tmp_path / "c", "dflash")


def test_tables_of_its_own_are_never_lost(target: Target, tmp_path: Path) -> None:
    size = SIZES["small"]
    for kind in KINDS:
        form = f"speculators-{kind}"
        write_checkpoint(tmp_path / kind, config_of(form, size), tensors_of(form, size))
    eagle3 = run(tmp_path / "eagle3", tmp_path / "a", "eagle3", "tiny-llama")
    own = tensors_in(tmp_path / "eagle3")["embed_tokens.weight"]
    assert torch.equal(tensors_in(eagle3)["embed_tokens.weight"], own)
    back = run(eagle3, tmp_path / "b", "speculators", "tiny-llama")
    assert same(tensors_in(back), tensors_in(tmp_path / "eagle3"))
    with pytest.raises(DraftgymError, match="no place"):
        run(tmp_path / "dflash", tmp_path / "c", "dflash", "tiny-llama")


def test_wiring_survives(target: Target, tmp_path: Path) -> None:
    size, form = SIZES["small"], "speculators-eagle3"
    flags = {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True}
    tensors = tensors_of(form, size, target.decoder.embedding)
    tensors["input_norm.weight"] = torch.rand(96)
    write_checkpoint(tmp_path / "a", config_of(form, size) | flags, tensors)
    run(tmp_path / "a", tmp_path / "b", "eagle3", "tiny-llama")
    run(tmp_path / "b", tmp_path / "c", "speculators", "tiny-llama")
    assert same(tensors_in(tmp_path / "c"), tensors)
    for folder in "bc":
        assert body_of(tmp_path / folder).items() >= flags.items()
    taps = "eagle_aux_hidden_state_layer_ids"
    assert body_of(tmp_path / "c")[taps] == body_of(tmp_path / "a")[taps]


def test_what_serving_would_get_wrong_is_noted(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positions that end before the target's, and taps that the native form cannot name."""
    drafter = tiny_eagle3(target)
    network = drafter.network
    network.config = replace(network.config, max_position_embeddings=64)
    save_checkpoint(network, tmp_path / "a", target)
    run(tmp_path / "a", tmp_path / "b", "eagle3", "tiny-llama")
    said = capsys.readouterr().err
    assert "--max-positions 256" in said and "tap layers" in said
    run(tmp_path / "a", tmp_path / "c", "speculators", "tiny-llama", max_positions=256)
    assert capsys.readouterr().err == ""
    layer = body_of(tmp_path / "c")["transformer_layer_config"]
    assert layer["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("kind", "form", "more", "word"),
    [
        ("eagle3", "dflash", {}, "eagle3 or speculators"),
        ("dflash", "eagle3", {}, "dflash or speculators"),
        ("eagle3", "eagle3", {"max_positions": 0}, "--max-positions"),
    ],
)
def test_conversions_that_cannot_work_are_refused(
    tmp_path: Path, kind: str, form: str, more: dict[str, Any], word: str
) -> None:
    source = native(tmp_path / "a", kind, SIZES["small"])
    with pytest.raises(DraftgymError, match=word):
        run(source, tmp_path / "b", form, "tiny-llama", **more)
    assert not (tmp_path / "b").exists()


def test_a_full_destination_is_left_alone(tmp_path: Path) -> None:
    source = native(tmp_path / "a", "eagle3", SIZES["small"])
    with pytest.raises(DraftgymError, match="exists"):
        run(source, source, "eagle3", "tiny-llama")
