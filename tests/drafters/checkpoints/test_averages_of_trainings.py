"""`draftgym.drafters.average` writes the mean of trainings of one drafter, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.average import AverageArgs, average
from draftgym.drafters.checkpoint import read_checkpoint, save_checkpoint
from draftgym.drafters.loading import load_folder
from tests.tiny import tiny_dflash, tiny_eagle3

TINY = {"eagle3": tiny_eagle3, "dflash": tiny_dflash}


@pytest.mark.parametrize("kind", TINY)
def test_every_weight_is_the_mean(target: Target, tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / str(seed) for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, start=1):
        save_checkpoint(TINY[kind](target, seed).network, folder, target)
    average(AverageArgs(tuple(folders), tmp_path / "mean"))
    parts = [read_checkpoint(folder, target).network.state_dict() for folder in folders]
    mean = read_checkpoint(tmp_path / "mean", target).network.state_dict()
    assert set(mean) == set(parts[0])
    for name, value in mean.items():
        if value.is_floating_point():
            wanted = torch.stack([part[name] for part in parts]).mean(0)
            torch.testing.assert_close(value, wanted, rtol=2**-7, atol=1e-6)  # bfloat16
        else:
            assert torch.equal(value, parts[0][name])
    drafter = load_folder(tmp_path / "mean", target)
    assert (drafter.name, drafter.needs_target) == (kind, target.fingerprint)


def test_drafters_that_do_not_belong_together_are_refused(target: Target, tmp_path: Path) -> None:
    save_checkpoint(tiny_eagle3(target).network, tmp_path / "a", target)
    save_checkpoint(tiny_dflash(target).network, tmp_path / "b", target)
    save_checkpoint(tiny_eagle3(target, draft_vocab=32).network, tmp_path / "c", target)
    for other in ("b", "c"):
        with pytest.raises(DraftgymError, match="not trainings of one drafter"):
            average(AverageArgs((tmp_path / "a", tmp_path / other), tmp_path / "mean"))
    assert not (tmp_path / "mean").exists()


def test_one_checkpoint_and_folders_in_use_are_refused(target: Target, tmp_path: Path) -> None:
    save_checkpoint(tiny_eagle3(target).network, tmp_path / "a", target)
    with pytest.raises(DraftgymError, match="nothing to average"):
        average(AverageArgs((tmp_path / "a",), tmp_path / "mean"))
    with pytest.raises(DraftgymError, match="exists already"):
        average(AverageArgs((tmp_path / "a", tmp_path / "a"), tmp_path / "a"))
