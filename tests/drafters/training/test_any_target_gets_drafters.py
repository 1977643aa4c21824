"""Drafters are trained for targets that transformers drives, and draft losslessly for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.build import DFlashSettings, Eagle3Settings
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import DFlashArgs, DrafterArgs, Eagle3Args, SmallLMArgs, train
from draftgym.drafters.training.objectives.small_lm import SmallLMSettings
from draftgym.policies.routers.rules import FixedPolicy
from tests.architectures import architecture
from tests.drafters.training.setups import write_texts
from tests.tiny import VOCAB, tiny_model

TWO_UPDATES = TrainerConfig(updates=2, batch_size=2, measure_minutes=0)
KINDS: dict[str, tuple[type[DrafterArgs], dict[str, Any]]] = {
    "eagle3": (Eagle3Args, {"drafter": Eagle3Settings(steps=2)}),
    "dflash": (DFlashArgs, {"drafter": DFlashSettings(draft_vocab=40, mask_token_id=3)}),
    "small": (SmallLMArgs, {"drafter": SmallLMSettings(layers=2, last=1)}),
}
PAIRS = [
    *(("gpt2", kind) for kind in KINDS),  # learned positions
    *(("phi", "eagle3"), ("phi", "dflash")),  # a head with biases
    ("mixtral", "small"),  # experts
    ("bloom", "dflash"),  # positions as biases
    *(("lfm2", "eagle3"), ("lfm2", "small"), ("mamba", "eagle3"), ("mamba", "dflash")),  # recurrent
]


def folder_of(name: str, at: Path, **changes: Any) -> str:
    """A tiny model as users have it: a folder."""
    model = tiny_model(name, **changes) if changes else architecture(name)
    model.save_pretrained(at / name)
    return str(at / name)


def settings_of(kind: str, target: str, at: Path, **others: Any) -> Any:
    args, chosen = KINDS[kind]
    corpus = write_texts(at / "corpus.parquet", VOCAB)
    given = {"target": target, "run": at / kind, "dtype": "float32", "threads": 1}
    return args(corpus=corpus, trainer=TWO_UPDATES, **given, **chosen, **others)


def text_of(target: Target, policy: Any, *drafters: Any) -> list[int]:
    loaded = {drafter.name: drafter for drafter in drafters}
    prompt = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31])
    return SpeculativeDecoder(target, loaded, policy).generate(prompt, 12).tokens


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_trained_drafter_changes_no_text(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(name, tmp_path)
    checkpoint = train(settings_of(kind, folder, tmp_path))
    target = load_target(folder, "float32", 1)
    drafter = load_folder(checkpoint, target)
    arms = [Arm(kind, 3)] + ([Arm(kind, 3, 5)] if target.decoder.draws_trees else [])
    for arm in arms:
        text = text_of(target, FixedPolicy(arm), drafter)
        assert text == text_of(target, PlainPolicy()), arm
    started = [line for line in capsys.readouterr().err.splitlines() if "starts with" in line]
    assert len(started) == 1 and folder in started[0]


def test_variational_training_needs_trees(tmp_path: Path) -> None:
    """Behind transformers' pass too; what verifies chains alone says so."""
    train(settings_of("eagle3", folder_of("gpt2", tmp_path), tmp_path, objective="vsd"))
    with pytest.raises(DraftgymError, match="chains only") as caught:
        train(settings_of("eagle3", folder_of("lfm2", tmp_path), tmp_path, objective="vsd"))
    assert "--objective" in caught.value.remedy


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_layers_of_another_width_than_the_head_are_refused(kind: str, tmp_path: Path) -> None:
    folder = folder_of("opt", tmp_path, ffn_dim=48, word_embed_proj_dim=16)
    with pytest.raises(DraftgymError, match=r"\[16, 32, 16\] wide") as caught:
        train(settings_of(kind, folder, tmp_path))
    assert "ngram" in caught.value.remedy
