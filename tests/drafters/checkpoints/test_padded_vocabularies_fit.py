"""A drafter fits a target of the same tokenizer, however many rows pad the tables of either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.loading import load_folder
from tests.tiny import ONE_THREAD, tiny_dflash, tiny_eagle3, tiny_model
from tests.tiny_text import VOCAB, byte_tokenizer

ROWS = 264
"""Of the target; its tokenizer has 257 tokens."""
PROMPT = torch.tensor([5, 9, ROWS - 1, 5, 9, ROWS - 2, 5, 9])
"""With ids that not all drafters have."""
LENGTH = 30
KINDS = ["small", "eagle3", "eagle3-some", "dflash", "dflash-some"]


def padded_target(rows: int, tied: bool = False, device: str = "cpu") -> Target:
    """The target with so many rows, the rest of its weights the same whatever their number."""
    model = tiny_model(vocab_size=300, tie_word_embeddings=tied)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return wrap_model(model, byte_tokenizer(), "tiny-text", replace(ONE_THREAD, device=device))


@pytest.fixture(scope="module")
def target() -> Target:
    """It writes ids that its tokenizer has not: its weights are random."""
    return padded_target(ROWS)


def save(kind: str, rows: int, folder: Path) -> Path:
    """A checkpoint of a drafter that was made for as many rows; foreign, it tells no target."""
    if kind == "small":
        model = tiny_model(vocab_size=300, num_hidden_layers=4, tie_word_embeddings=True)
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder
    made_for = padded_target(rows)
    some = 100 if kind.endswith("some") else rows
    if kind.startswith("eagle3"):
        save_checkpoint(tiny_eagle3(made_for, draft_vocab=some).network, folder)
    else:
        config = replace(tiny_dflash(made_for).network.config, draft_vocab_size=some)
        save_checkpoint(DFlashNetwork(config, torch.arange(rows)[rows - some :]), folder)
    return folder


@pytest.fixture(scope="module")
def expected(target: Target) -> dict[float, list[int]]:
    """Plain decoding's texts by temperature."""
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    return {heat: decoder.generate(PROMPT, LENGTH, heat).tokens for heat in (0.0, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [257, 260, 272])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_drafted_and_texts_stay(
    target: Target, expected: dict[float, list[int]], tmp_path: Path, kind: str, rows: int
) -> None:
    drafter = load_folder(save(kind, rows, tmp_path), target)
    policy = PlainPolicy()
    for temperature, text in expected.items():
        drafted: list[int] = []
        for arm in (Arm(drafter.name, 4), Arm(drafter.name, 3, 9)):
            policy.arms = (arm,)
            decoder = SpeculativeDecoder(target, {drafter.name: drafter}, policy)
            result = decoder.generate(PROMPT, LENGTH, temperature)
            assert result.tokens == text
            drafted += [token for item in result.rounds for token in item.record.drafted]
        assert drafted and max(drafted) < min(rows, ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_rows_than_tokens_are_no_padding(target: Target, tmp_path: Path, kind: str) -> None:
    with pytest.raises(DraftgymError, match="250"):
        load_folder(save(kind, VOCAB - 7, tmp_path), target)


def test_without_a_tokenizer_nobody_knows_what_is_padding(target: Target, tmp_path: Path) -> None:
    folder = save("small", 260, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DraftgymError, match="260"):
        load_folder(folder, target)
