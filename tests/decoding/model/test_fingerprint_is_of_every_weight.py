"""A fingerprint tells models apart by every weight and setting, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import draftgym.decoding.model.fingerprint as fingerprints
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.fingerprint import plain_rope, sampled_fingerprint
from draftgym.decoding.model.target import Target, load_target, wrap_model
from draftgym.decoding.provenance import write_run_config
from draftgym.drafters.checkpoint import load_drafter, save_checkpoint
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.training.data.corpus import load_corpus, response_schema
from draftgym.policies.folder import BODY, ROUTER, read_policy, write_policy
from draftgym.rollouts.traces.file import read_traces
from tests.handmade.traces import handmade_traces
from tests.tiny import ONE_THREAD, tiny_dflash, tiny_eagle3, tiny_model, tiny_small_lm, tiny_target
from tests.traces import save_traces

KINDS = {"llama": {}, "qwen2": {"tie_word_embeddings": True}, "qwen3": {}}
OLD = "0123456789abcdef"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_target_counts(kind: str) -> None:
    model = tiny_model(kind, **KINDS[kind])
    seen = {wrap_model(model, None, kind, ONE_THREAD).fingerprint}
    parameters = list(model.parameters())
    for weight in parameters:
        before = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 2] += 0.5
        seen.add(wrap_model(model, None, kind, ONE_THREAD).fingerprint)
        with torch.no_grad():
            weight.copy_(before)
    assert len(seen) == 1 + len(parameters)


def test_a_merged_lora_on_queries_and_values_is_another_target(target: Target) -> None:
    model = tiny_model()
    before = wrap_model(model, None, "base", ONE_THREAD)
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.v_proj):
            rows, columns = projection.weight.shape
            low = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns)
            projection.weight.data += 0.01 * low
    after = wrap_model(model, None, "merged", ONE_THREAD)
    assert before.fingerprint == target.fingerprint != after.fingerprint
    assert sampled_fingerprint(before.decoder) == sampled_fingerprint(after.decoder), "as of old"


def test_what_else_decides_the_logits_counts() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ]
    assert len({tiny_target(**change).fingerprint for change in changes}) == len(changes)


def test_rotary_settings_count_however_they_are_written() -> None:
    wanted = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert plain_rope({"type": "linear", "rope_theta": 10000, "factor": 2, "beta_fast": None}) == (
        wanted
    )
    assert plain_rope({"rope_theta": 1e4}) == plain_rope(
        {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 1.0}
    )


def test_an_untied_head_that_equals_the_embedding_is_the_same_target() -> None:
    tied = tiny_target(tie_word_embeddings=True)
    decoder = tied.decoder
    decoder.head = decoder.embedding.clone()
    again = fingerprints.fingerprint(decoder, tied.rope_parameters)
    assert again == tied.fingerprint


def test_bits_are_those_of_bfloat16_in_every_dtype() -> None:
    exact = {"a": torch.tensor([1.0, -0.5, 3e-39, 0.0]), "b": torch.ones(2, 3)}
    rounded = {name: value.to(torch.bfloat16) for name, value in exact.items()}
    assert fingerprints.hash_tensors(exact) == fingerprints.hash_tensors(rounded)
    assert fingerprints.hash_tensors(exact) == fingerprints.hash_tensors(
        {name: value.double() for name, value in exact.items()}
    )
    other = exact | {"b": torch.ones(3, 2)}
    renamed = {"c": exact["a"], "b": exact["b"]}
    integers = exact | {"a": torch.tensor([1, 2, 3, 4])}
    masks = exact | {"a": torch.tensor([True, False, True, True])}
    assert (
        len({fingerprints.hash_tensors(x) for x in (exact, other, renamed, integers, masks)}) == 5
    )


@pytest.mark.parametrize("make", [tiny_eagle3, tiny_dflash, tiny_small_lm])
def test_every_tensor_and_setting_of_a_drafter_counts(
    target: Target, make: Callable[[Target], Any]
) -> None:
    drafter = make(target)
    seen = {drafter.fingerprint}
    changed = 0
    if isinstance(drafter, Eagle3Drafter | DFlashDrafter):
        tensors = [value for value in drafter.network.state_dict().values() if value.numel()]
        config = drafter.network.config
        for field in fields(config):
            if field.name == "max_position_embeddings":
                continue
            before = getattr(config, field.name)
            other = {"rope_theta": 7.0} if isinstance(before, dict) else (before or 0) * 2 or 5
            drafter.network.config = replace(config, **{field.name: other})
            seen.add(drafter.fingerprint)
            drafter.network.config = config
            changed += 1
    else:
        whole = vars(drafter.decoder.layers[0])
        tensors = [value for value in whole.values() if value is not None]
    for tensor in tensors:
        before = tensor.clone()
        tensor.view(-1)[0] = ~tensor.view(-1)[0] if tensor.dtype == torch.bool else 9
        seen.add(drafter.fingerprint)
        tensor.copy_(before)
        changed += 1
    assert len(seen) == 1 + changed


def test_an_older_target_is_refused_and_told_what_to_write(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "drafter"
    save_checkpoint(tiny_eagle3(target).network, folder, target)
    config = json.loads((folder / "config.json").read_text())
    config["draftgym"]["target_fingerprint"] = OLD
    (folder / "config.json").write_text(json.dumps(config))
    write_policy(tmp_path, ROUTER, torch.nn.Linear(1, 1), [], target.name, OLD, {})
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"fingerprint": OLD}))
    settings = tiny_eagle3(target).network.config
    refusals: dict[str, Callable[[], object]] = {
        "draftgym.target_fingerprint in its config.json": lambda: load_drafter(folder, target),
        f"target_fingerprint in its {BODY}": lambda: read_policy(tmp_path, ROUTER, target, set()),
        "fingerprint in its config.json": lambda: write_run_config(run, settings, target),
    }
    for key, refused in refusals.items():
        with pytest.raises(DraftgymError, match="older version") as caught:
            refused()
        assert f"{target.fingerprint} as {key}" in caught.value.remedy
    config["draftgym"]["target_fingerprint"] = target.fingerprint
    (folder / "config.json").write_text(json.dumps(config))
    assert load_drafter(folder, target).needs_target == target.fingerprint


def test_a_run_of_another_target_is_not_gone_on_with(target: Target, tmp_path: Path) -> None:
    settings = tiny_eagle3(target).network.config
    write_run_config(tmp_path, settings, target)
    write_run_config(tmp_path, settings, target)
    with pytest.raises(DraftgymError, match="another target") as caught:
        write_run_config(tmp_path, settings, tiny_target(seed=1))
    assert "--run" in caught.value.remedy


def test_older_traces_are_refused(tmp_path: Path) -> None:
    traces = handmade_traces({"eagle3:2": lambda *_: 2})
    save_traces(traces, tmp_path / "new")
    assert read_traces(tmp_path / "new").origin == traces.origin
    older = replace(traces, origin=replace(traces.origin, target_fingerprint=OLD))
    save_traces(older, tmp_path / "old")
    with pytest.raises(DraftgymError, match="older version") as caught:
        read_traces(tmp_path / "old")
    assert "draftgym collect" in caught.value.remedy


@pytest.mark.parametrize("older", [False, True])
def test_responses_of_older_versions_are_still_read(
    target: Target, tmp_path: Path, older: bool
) -> None:
    """Their sample of the weights has to be this target's."""
    import pyarrow
    import pyarrow.parquet

    told = sampled_fingerprint(target.decoder) if older else target.fingerprint
    schema = response_schema({"fingerprint": told, "target": "t"})
    rows = [
        {"id": str(i), "category": "", "temperature": 0.0, "seed": 0}
        | {"prompt": [1, 2], "response": [3, 4, 5, 6]}
        for i in range(5)
    ]
    path = tmp_path / "texts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    assert len(load_corpus(path, 61, validation=1, target=target).train) == 4
    with pytest.raises(DraftgymError, match="another target"):
        load_corpus(path, 61, validation=1, target=tiny_target(seed=1))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved target, with an empty cache that remembers small files as well."""
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "WORTH_REMEMBERING", 1)
    tiny_model().save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def test_files_are_hashed_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    original = fingerprints.hash_tensors

    def count(tensors: Any) -> str:
        hashed.append(tensors)
        return original(tensors)

    monkeypatch.setattr(fingerprints, "hash_tensors", count)
    first = load_target(str(saved), "float32", 1).fingerprint
    assert load_target(str(saved), "bfloat16", 1).fingerprint == first and len(hashed) == 1
    tiny_model(seed=1).save_pretrained(saved)  # files of the same names and sizes
    other = load_target(str(saved), "float32", 1).fingerprint
    assert len(hashed) == 2
    assert other == tiny_target(seed=1).fingerprint != first


def test_a_damaged_memory_is_not_believed(saved: Path, tmp_path: Path) -> None:
    first = load_target(str(saved), "float32", 1).fingerprint
    [kept] = (tmp_path / "cache" / "fingerprints").iterdir()
    kept.write_text("")
    assert load_target(str(saved), "float32", 1).fingerprint == first
    assert len(kept.read_text()) == 64


def test_files_that_change_while_they_are_read_are_not_remembered(saved: Path) -> None:
    files = fingerprints.WeightFiles(saved)
    with (saved / "config.json").open("a") as config:
        config.write("\n")
    files.keep("0" * 64)
    assert files.known() is None and fingerprints.WeightFiles(saved).known() is None


def test_a_cache_that_cannot_be_written_is_done_without(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert load_target(str(saved), "float32", 1).fingerprint == tiny_target().fingerprint
    [line] = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert "cannot write" in line and "DRAFTGYM_CACHE" in line
