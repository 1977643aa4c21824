"""`draftgym export transformers FOLDER` writes what `generate(custom_generate=FOLDER)` loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils as modules

from draftgym.cli import run
from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.checkpoint import save_checkpoint
from tests.generate.prompts import GREEDY, PROMPT, padded
from tests.generate.test_criteria_and_streamers_follow_every_token import Notes
from tests.tiny import tiny_eagle3, tiny_model, tiny_target
from tests.tiny_text import byte_tokenizer, text_model


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their code goes into a cache of transformers."""
    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def exported(tmp_path: Path, *options: str) -> str:
    folder = tmp_path / "speculation"
    run("export", ["transformers", str(folder), *options])
    return str(folder)


def test_it_writes_what_generate_writes(tmp_path: Path) -> None:
    model, folder = tiny_model(), exported(tmp_path)
    for prompts in ({"inputs": PROMPT}, padded(12, 5)):
        own = model.generate(**prompts, **GREEDY)
        asked = prompts | GREEDY | {"custom_generate": folder, "trust_remote_code": True}
        assert torch.equal(model.generate(**asked, backend="compact"), own)
    assert model._draftgym.target is not None


def test_a_call_may_name_its_policy(tmp_path: Path) -> None:
    model, folder = tiny_model(), exported(tmp_path, "--policy", "plain")
    asked = GREEDY | {"custom_generate": folder, "trust_remote_code": True, "backend": "compact"}
    for given in ({}, {"policy": "ngram:3"}, {}):
        assert torch.equal(
            model.generate(PROMPT, **asked, **given), model.generate(PROMPT, **GREEDY)
        )
    used = {decoder.policy.name for decoder in model._draftgym.decoders.values()}
    assert used == {"plain", "ngram:3"}
    with pytest.raises(DraftgymError, match="unknown policy 'eagle4'"):
        model.generate(PROMPT, **asked, policy="eagle4")


def test_it_may_name_drafters_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = tiny_model(), tiny_target()
    save_checkpoint(tiny_eagle3(target).network, tmp_path / "mine", target)
    monkeypatch.chdir(tmp_path)
    folder = exported(tmp_path, "--policy", "eagle3:3", "--drafters", "./mine")
    monkeypatch.chdir("/")
    asked = GREEDY | {"custom_generate": folder, "trust_remote_code": True, "backend": "compact"}
    assert torch.equal(model.generate(PROMPT, **asked), model.generate(PROMPT, **GREEDY))
    (decoder,) = model._draftgym.decoders.values()
    assert list(decoder.drafters) == ["eagle3"]


def test_it_streams_and_stops_at_strings(tmp_path: Path) -> None:
    model, tokenizer, folder = text_model(seed=1), byte_tokenizer(), exported(tmp_path)
    prompt = tokenizer("ab ab ab", return_tensors="pt").input_ids
    plain = model.generate(prompt, **GREEDY)
    asked = GREEDY | {"stop_strings": tokenizer.decode(plain[0, 20:22]), "tokenizer": tokenizer}
    own, ours = Notes(), Notes()
    ended = model.generate(prompt, **asked, streamer=own)
    asked |= {"custom_generate": folder, "trust_remote_code": True, "backend": "compact"}
    assert torch.equal(model.generate(prompt, **asked, streamer=ours), ended)
    assert ours.got == own.got and ended.shape[1] < plain.shape[1]


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    folder = Path(exported(tmp_path))
    needed = (folder / "custom_generate" / "requirements.txt").read_text()
    assert needed.startswith("draftgym>=")
    with pytest.raises(SystemExit) as stopped:
        run("export", ["transformers", str(folder)])
    assert stopped.value.code == 2
