"""A checkpoint that cannot be right, or says what we cannot honour, is refused with a remedy."""

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

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import load_drafter, save_checkpoint
from draftgym.drafters.dflash.network import DFlashNetwork
from tests.published.checkpoints import (
    FORMATS,
    SIZES,
    config_of,
    tensors_of,
    write_checkpoint,
)
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_target

Tensors = dict[str, Tensor]


@pytest.fixture(params=["eagle3", "dflash"])
def folder(request: pytest.FixtureRequest, target: Target, tmp_path: Path) -> Path:
    """A saved checkpoint of each kind, which drafts forty tokens."""
    if request.param == "eagle3":
        save_checkpoint(tiny_eagle3(target).network, tmp_path / "drafter", target)
    else:
        config = replace(tiny_dflash(target).network.config, draft_vocab_size=40)
        save_checkpoint(DFlashNetwork(config), tmp_path / "drafter", target)
    return tmp_path / "drafter"


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors: Tensors = load_file(folder / "model.safetensors")
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
    assert "draftgym train-drafter" in refusal(tmp_path / "nowhere", target).remedy


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "\x00"])
def test_a_broken_config_is_refused(target: Target, folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder, target).problem


@pytest.mark.parametrize("named", [["Qwen3ForCausalLM"], [], None])
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
    save_checkpoint(tiny_dflash(target).network, tmp_path, target)
    reconfigure(tmp_path, lambda body: body["dflash_config"].update(mask_token_id=mask))
    assert "mask" in refusal(tmp_path, target).problem


def refused_with(target: Target, folder: Path, form: str, change: dict[str, Any]) -> str:
    """The error about a published checkpoint with some keys changed, layer keys among them."""
    body = config_of(form, SIZES["small"])
    layer = body.get("transformer_layer_config", body)
    for key, value in change.items():
        (layer if key in layer else body)[key] = value
    write_checkpoint(folder, body, tensors_of(form, SIZES["small"]))
    return refusal(folder, target).problem


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "nonsense"}},
        {"num_key_value_heads": 3},
        {"vocab_size": 64},
        {"hidden_size": 48},
    ],
    ids=str,
)
def test_settings_of_the_layer_that_we_do_not_build(
    target: Target, tmp_path: Path, form: str, change: dict[str, Any]
) -> None:
    refused_with(target, tmp_path, form, change)


EAGLE3_TAPS = "eagle_aux_hidden_state_layer_ids"


@pytest.mark.parametrize(
    ("form", "change", "word"),
    [
        ("native-eagle3", {"num_hidden_layers": 2}, "num_hidden_layers"),
        ("native-eagle3", {EAGLE3_TAPS: [2, 3, 5]}, "one layer apart"),
        ("native-eagle3", {EAGLE3_TAPS: [1, 3]}, "fc.weight"),
        ("native-eagle3", {EAGLE3_TAPS: [1, 3, 6]}, "layers"),
        ("native-eagle3", {"norm_output": True}, "norm_output"),
        ("native-eagle3", {"norm_output": False}, "norm_output"),
        ("native-eagle3", {"eagle_config": {"norm_before_fc": True}}, "input_norm.weight"),
        ("native-eagle3", {"fc_norm": True}, "fc_norm.0.weight"),
        ("speculators-eagle3", {"num_hidden_layers": 2}, "num_hidden_layers"),
        ("speculators-eagle3", {"norm_before_residual": None}, "norm_before_residual"),
        ("speculators-eagle3", {"fc_norm": True, "norm_before_fc": True}, "fc_norm"),
        ("speculators-eagle3", {EAGLE3_TAPS: [0, 3, 5]}, EAGLE3_TAPS),
        ("speculators-eagle3", {EAGLE3_TAPS: [2, 3, 7]}, "layers"),
        ("speculators-eagle3", {EAGLE3_TAPS: [2, 3, 4, 5]}, "fc.weight"),
        ("speculators-eagle3", {EAGLE3_TAPS: ["2"]}, EAGLE3_TAPS),
        ("speculators-eagle3", {"speculators_model_type": "peagle"}, "peagle"),
        ("native-dflash", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("native-dflash", {"is_causal": True}, "is_causal"),
        ("native-dflash", {"block_size": 1}, "block_size"),
        ("native-dflash", {"num_target_layers": 36}, "36 layers"),
        ("native-dflash", {"num_hidden_layers": 3}, "layers.2"),
        ("speculators-dflash", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("speculators-dflash", {"sample_from_anchor": True}, "sample_from_anchor"),
        ("speculators-dflash", {"projector_type": "domino"}, "projector_type"),
        ("speculators-dflash", {"mask_token_id": None}, "mask_token_id"),
        ("speculators-dflash", {"aux_hidden_state_layer_ids": [0, 2]}, "aux_hidden"),
        ("speculators-dflash", {"aux_hidden_state_layer_ids": [2, 7]}, "layers"),
        ("speculators-dflash", {"transformer_layer_config": []}, "transformer_layer_config"),
    ],
    ids=str,
)
def test_settings_of_a_format_that_cannot_be_honoured(
    target: Target, tmp_path: Path, form: str, change: dict[str, Any], word: str
) -> None:
    assert word in refused_with(target, tmp_path, form, change)


@pytest.mark.parametrize("said", [True, False])
def test_a_refused_word_can_be_said_in_ours(target: Target, tmp_path: Path, said: bool) -> None:
    """The remedies for keys with two meanings are real ones."""
    form, size = "native-eagle3", SIZES["small"]
    body = config_of(form, size) | {"norm_output": True, EAGLE3_TAPS: [2, 3, 5]}
    body["draftgym"] = {"norm_output": said, "tap_layers": [2, 3, 5]}
    drafter = load_drafter(write_checkpoint(tmp_path, body, tensors_of(form, size)), target)
    assert drafter.tap_layers == (2, 3, 5)


def test_quantised_weights_are_named(target: Target, folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"fc.weight": t["fc.weight"].to(torch.int8)}))
    assert "fc.weight" in refusal(folder, target).problem


def test_maps_that_contradict_each_other_are_refused(target: Target, folder: Path) -> None:
    rewrite(folder, lambda t: t["t2d"].logical_not_())
    assert "t2d" in refusal(folder, target).problem


class Intruder:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Writes a file where it is unpickled."""
        return (Path.touch, (Path("intruded"),))


@pytest.mark.parametrize("content", [b"", b"junk", {"fc": 1}, [1], {"fc.weight": Intruder()}])
def test_old_weights_hold_tensors_or_nothing(
    target: Target, folder: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert "pytorch_model.bin" in refusal(folder, target).problem
    assert not (folder / "intruded").exists()
