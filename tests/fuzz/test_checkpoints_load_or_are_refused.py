"""A drafter's folder, whatever was done to it, loads or is refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.checkpoint import read_checkpoint
from draftgym.drafters.loading import load_folder
from tests.drafters.checkpoints.test_published_checkpoints_load import check_lossless
from tests.fuzz.conftest import Fresh
from tests.published.checkpoints import FORMATS, SIZES, config_of, tensors_of, write_checkpoint
from tests.tiny import tiny_target

TARGET = tiny_target()
SIZE = SIZES["small"]
BODIES = {form: config_of(form, SIZE) for form in FORMATS}
TENSORS = {
    form: tensors_of(form, SIZE, TARGET.decoder.embedding, TARGET.decoder.head) for form in FORMATS
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-4, 300)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["gelu", "yarn", "llama3", "linear", "LlamaForCausalLM", "DFlashDraftModel"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), inner, max_size=3)
    ),
    max_leaves=6,
)
DTYPES = [torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64]
DTYPES += [torch.float8_e4m3fn]


def check(folder: Path) -> None:
    """Loads a folder, or is refused; what loads drafts without changing a text."""
    try:
        drafter = load_folder(folder, TARGET)
    except DraftgymError as error:
        assert error.remedy and error.problem
    else:
        check_lossless(TARGET, drafter)
    try:
        read_checkpoint(folder)
    except DraftgymError as error:
        assert error.remedy and error.problem


def keys_of(body: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all keys of a config."""
    found = []
    for key, value in body.items():
        found.append((*path, key))
        found += keys_of(value, (*path, key)) if isinstance(value, dict) else []
    return found


@pytest.mark.slow
@given(st.data(), st.sampled_from(FORMATS))
def test_any_config_loads_or_is_refused(fresh: Fresh, data: st.DataObject, form: str) -> None:
    body = json.loads(json.dumps(BODIES[form]))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(keys_of(body)))
        place = body
        for step in path:
            place = place[step]
        if data.draw(st.booleans()):
            place[key] = data.draw(JSON)
        else:
            place.pop(key)
    check(write_checkpoint(fresh(), body, TENSORS[form]))


@given(st.data(), st.sampled_from(FORMATS))
def test_any_tensors_load_or_are_refused(fresh: Fresh, data: st.DataObject, form: str) -> None:
    tensors = dict(TENSORS[form])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        value = tensors.pop(name)
        tensors |= changed(name, value, data)
    check(write_checkpoint(fresh(), BODIES[form], tensors))


def changed(name: str, value: Tensor, data: st.DataObject) -> dict[str, Tensor]:
    """A tensor lost, renamed, cut, cast, or with other numbers in it."""
    how = data.draw(st.sampled_from(["lost", "renamed", "cut", "cast", "filled", "shuffled"]))
    if how == "renamed":
        prefixes = st.sampled_from(["model.", "midlayer.", "layers.0.", "verifier_", "x"])
        return {f"{data.draw(prefixes)}{name}": value}
    if how == "cut":
        shape = data.draw(st.lists(st.integers(0, 70), max_size=3))
        return {name: torch.zeros(shape, dtype=value.dtype)}
    if how == "cast":
        return {name: value.to(data.draw(st.sampled_from(DTYPES)))}
    if how == "filled":
        number = data.draw(st.sampled_from([0, 1, -1, 60, 61, 2**40]))
        return {name: torch.full(value.shape, float(number)).to(value.dtype)}
    if how == "shuffled" and value.dim():
        order = torch.randperm(len(value), generator=torch.Generator().manual_seed(5))
        return {name: value[order]}
    return {}


@given(st.data(), st.sampled_from(["native-eagle3", "native-dflash"]))
def test_any_bytes_load_or_are_refused(fresh: Fresh, data: st.DataObject, form: str) -> None:
    folder = write_checkpoint(fresh(), BODIES[form], TENSORS[form])
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole = bytearray((folder / name).read_bytes())
    cut = data.draw(st.integers(0, len(whole)) | st.integers(0, min(200, len(whole))))
    for _ in range(data.draw(st.integers(0, 3))):
        # Most of a file are weights; what its head says is more fun to change.
        at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 400))
        whole[min(at, len(whole) - 1)] = data.draw(st.integers(0, 255))
    kept = whole[:cut] if data.draw(st.booleans()) else whole
    (folder / name).write_bytes(bytes(kept))
    check(folder)


@given(st.data())
def test_any_index_loads_or_is_refused(fresh: Fresh, data: st.DataObject) -> None:
    folder = write_checkpoint(fresh(), BODIES["native-eagle3"], TENSORS["native-eagle3"])
    part = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(part)
    names = st.sampled_from([part.name, "../model.safetensors", "", ".", "/etc/hosts", "a\0b"])
    where = st.dictionaries(st.text(max_size=5), names | JSON, max_size=3)
    body = data.draw(st.fixed_dictionaries({"weight_map": where}) | JSON)
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    check(folder)


def test_the_folders_that_are_changed_here_load(tmp_path: Path) -> None:
    for form in FORMATS:
        folder = write_checkpoint(tmp_path / form, BODIES[form], TENSORS[form])
        assert check_lossless(TARGET, load_folder(folder, TARGET))
