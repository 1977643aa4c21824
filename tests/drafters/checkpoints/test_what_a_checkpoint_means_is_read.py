"""What published checkpoints leave out, or write in other words, is read as it is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import load_drafter, read_checkpoint
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.modules import rotary_table
from tests.drafters.checkpoints.test_published_checkpoints_load import check_lossless
from tests.published.checkpoints import FORMATS, SIZES, config_of, draft_ids, tensors_of
from tests.published.checkpoints import write_checkpoint as write

Tensors = dict[str, Tensor]
EAGLE3 = pytest.mark.parametrize("form", ["native-eagle3", "speculators-eagle3"])
BOTH_SIZES = pytest.mark.parametrize("name", ["small", "odd"])
LAYER_IDS = {
    "native-eagle3": "eagle_aux_hidden_state_layer_ids",
    "speculators-eagle3": "eagle_aux_hidden_state_layer_ids",
    "native-dflash": "target_layer_ids",
    "speculators-dflash": "aux_hidden_state_layer_ids",
}


def loaded(folder: Path, target: Target) -> Eagle3Drafter | DFlashDrafter:
    """The drafter of a folder, which must leave texts as they are and draft something."""
    drafter = read(folder, target)
    assert check_lossless(target, drafter)
    return drafter


def read(folder: Path, target: Target) -> Eagle3Drafter | DFlashDrafter:
    drafter = load_drafter(folder, target)
    assert isinstance(drafter, Eagle3Drafter | DFlashDrafter)
    return drafter


def same_network(one: Eagle3Drafter | DFlashDrafter, other: Eagle3Drafter | DFlashDrafter) -> bool:
    states = one.network.state_dict(), other.network.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@EAGLE3
@BOTH_SIZES
def test_a_missing_lm_head_is_the_targets(
    target: Target, tmp_path: Path, form: str, name: str
) -> None:
    size = SIZES[name]
    tensors = tensors_of(form, size, target.decoder.embedding)
    tensors.pop("lm_head.weight")
    folder = write(tmp_path, config_of(form, size), tensors)
    network = loaded(folder, target).network
    assert torch.equal(network.state_dict()["lm_head.weight"], target.decoder.head[draft_ids(size)])
    with pytest.raises(DraftgymError, match=r"lm_head\.weight|target is unknown"):
        read_checkpoint(folder)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("empty", [[], None])
def test_empty_lists_of_layers_mean_the_default(
    target: Target, tmp_path: Path, form: str, empty: Any
) -> None:
    body = config_of(form, SIZES["small"])
    (body["dflash_config"] if form == "native-dflash" else body)[LAYER_IDS[form]] = empty
    folder = write(tmp_path, body, tensors_of(form, SIZES["small"], target.decoder.embedding))
    # Of six layers: 1, n // 2 - 1 and n - 4; and two, from the second to the third-last.
    expected = (1, 2, 2) if form.endswith("eagle3") else (1, 3)
    assert loaded(folder, target).tap_layers == expected


@pytest.mark.parametrize("form", FORMATS)
def test_weights_in_several_files_are_one_checkpoint(
    target: Target, tmp_path: Path, form: str
) -> None:
    size = SIZES["small"]
    body, tensors = config_of(form, size), tensors_of(form, size, target.decoder.embedding)
    whole = load_drafter(write(tmp_path / "whole", body, tensors), target)
    folder = write(tmp_path / "parts", body, tensors)
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for index in range(2):
        part = f"model-{index + 1:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names[index::2]}, folder / part)
        where |= dict.fromkeys(names[index::2], part)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    drafter = loaded(folder, target)
    assert isinstance(whole, Eagle3Drafter | DFlashDrafter) and same_network(drafter, whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DraftgymError, match="model-00002-of-00002"):
        load_drafter(folder, target)
    index_file.write_text('{"weight_map": []}')
    with pytest.raises(DraftgymError, match=r"index\.json"):
        load_drafter(folder, target)


def renamed(tensors: Tensors, form: str, how: str) -> Tensors:
    """The same tensors as other loaders name them."""
    if how == "vllm" and form == "native-eagle3":
        tensors = {key.replace("midlayer.", "layers.0."): v for key, v in tensors.items()}
    return {key if key == "lm_head.weight" else f"model.{key}": v for key, v in tensors.items()}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("how", ["prefix", "vllm"])
def test_other_names_of_the_same_tensors_are_read(
    target: Target, tmp_path: Path, form: str, how: str
) -> None:
    size = SIZES["small"]
    body, tensors = config_of(form, size), tensors_of(form, size, target.decoder.embedding)
    usual = read(write(tmp_path / "usual", body, tensors), target)
    other = loaded(write(tmp_path / "other", body, renamed(tensors, form, how)), target)
    assert same_network(usual, other)
    twice = tensors | {key: v.clone() for key, v in renamed(tensors, form, how).items()}
    with pytest.raises(DraftgymError, match="twice"):
        load_drafter(write(tmp_path / "twice", body, twice), target)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_in_any_order_are_sorted_with_their_head(
    target: Target, tmp_path: Path, form: str
) -> None:
    size = SIZES["small"]
    body, tensors = config_of(form, size), tensors_of(form, size, target.decoder.embedding)
    usual = read(write(tmp_path / "usual", body, tensors), target)
    order = torch.randperm(size.draft_vocab, generator=torch.Generator().manual_seed(4))
    shuffled = dict(tensors)
    shuffled["d2t"] = torch.tensor(draft_ids(size))[order] - torch.arange(size.draft_vocab)
    if "lm_head.weight" in tensors:
        shuffled["lm_head.weight"] = tensors["lm_head.weight"][order]
    assert same_network(loaded(write(tmp_path / "other", body, shuffled), target), usual)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("maps", ["zero", "zero t2d", "identity", "t2d alone"])
def test_maps_of_the_whole_vocabulary_say_nothing(
    target: Target, tmp_path: Path, form: str, maps: str
) -> None:
    size = SIZES["odd"]
    body, tensors = config_of(form, size), tensors_of(form, size, target.decoder.embedding)
    usual = read(write(tmp_path / "usual", body, tensors), target)
    tensors["t2d"] = torch.full((61,), maps == "identity")
    if maps != "t2d alone":
        tensors["d2t"] = torch.arange(61) if maps == "identity" else torch.zeros(61).long()
    if maps == "zero t2d":
        tensors["t2d"] = tensors["t2d"].long()
    assert same_network(loaded(write(tmp_path / "other", body, tensors), target), usual)


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_trainer_keeps_of_the_verifier_is_no_part_of_the_drafter(
    target: Target, tmp_path: Path, form: str
) -> None:
    size = SIZES["small"]
    body, tensors = config_of(form, size), tensors_of(form, size, target.decoder.embedding)
    usual = read(write(tmp_path / "usual", body, tensors), target)
    tensors |= {
        "verifier_lm_head.weight": torch.randn(40, 32),
        "verifier_norm.weight": torch.randn(32),
        "rotary_emb.inv_freq": torch.randn(4),
    }
    assert same_network(loaded(write(tmp_path / "other", body, tensors), target), usual)


@pytest.mark.parametrize("form", FORMATS)
def test_swish_is_silu(target: Target, tmp_path: Path, form: str) -> None:
    body, tensors = config_of(form, SIZES["small"]), tensors_of(form, SIZES["small"])
    body.get("transformer_layer_config", body)["hidden_act"] = "swish"
    assert loaded(write(tmp_path, body, tensors), target)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_rotary_scaling_starts_from_the_heads_own_length(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """Unsaid, the trained length is the config's, not how far we rotate for the target."""
    scaling = {"rope_type": kind, "factor": 4.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    body = config_of("native-eagle3", SIZES["small"]) | {"max_position_embeddings": 64}
    body["rope_scaling"] = scaling
    drafter = loaded(write(tmp_path, body, tensors_of("native-eagle3", SIZES["small"])), target)
    said = scaling | {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
    expected = rotary_table(said, 8, target.context_limit)
    assert torch.equal(drafter.rotary.cos[:256], expected.cos)
