"""Promise: drafters train on the device as on the processor, and a run may change places."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.build import (
    DFlashSettings,
    Eagle3Settings,
    build_dflash,
    build_eagle3,
)
from draftgym.drafters.training.loop import trainer as trainer_module
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.trainer import Trainer
from tests.device.places import on_each_device, there
from tests.drafters.training.setups import KINDS, corpus_of, objective_of
from tests.tiny import tiny_target

CONFIG = TrainerConfig(updates=4, batch_size=2, save_minutes=99, measure_minutes=99)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update takes a second, whatever the machine does."""
    ticks = itertools.count()
    monkeypatch.setattr(trainer_module, "clock", lambda _: float(next(ticks)))


def trained(kind: str, device: str, folder: Path, updates: int) -> dict[str, Tensor]:
    """Weights, on the processor, of a run that goes on until some update."""
    target = tiny_target(device=device)
    objective = objective_of(kind, target)
    trainer = Trainer(objective, target, corpus_of(target), folder, CONFIG)
    left = updates - trainer.progress.updates
    batches = trainer.corpus.batches(CONFIG.batch_size, CONFIG.seed, skip=trainer.progress.updates)
    for texts in itertools.islice(batches, left):
        trainer._update(texts)
    trainer.save()
    name = "dflash" if kind in ("replay", "vsd") else kind
    assert load_folder(trainer.checkpoint, target).name == name
    return weights(objective.network)


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    """A copy on the processor."""
    named = network.state_dict().items()
    return {name: value.detach().cpu().clone().float() for name, value in named}


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Up to the rounding of other kernels."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@on_each_device
@pytest.mark.parametrize("kind", [*KINDS, "replay"])
def test_a_run_there_ends_where_the_processors_ends(kind: str, device: str, tmp_path: Path) -> None:
    start = trained(kind, "cpu", tmp_path / "start", 0)
    here = trained(kind, "cpu", tmp_path / "here", 3)
    assert any((here[name] - start[name]).abs().max() > 1e-3 for name in start)
    with there(device):
        far = trained(kind, device, tmp_path / "there", 3)
    assert_alike(far, here)


@on_each_device
@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_a_fresh_drafter_starts_with_the_same_weights(kind: str, device: str) -> None:
    def fresh(where: str) -> dict[str, Tensor]:
        target = tiny_target(device=where)
        corpus = corpus_of(target)
        network: torch.nn.Module
        if kind == "eagle3":
            network = build_eagle3(Eagle3Settings(40), None, target, corpus).network
        else:
            network = build_dflash(
                DFlashSettings(40, mask_token_id=3), None, target, corpus
            ).network
        return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    torch.manual_seed(1)
    here = fresh("cpu")
    torch.manual_seed(1)
    with there(device):
        assert_alike(fresh(device), here)


@pytest.mark.slow
@on_each_device
def test_a_run_begun_there_goes_on_here_and_back(device: str, tmp_path: Path) -> None:
    here = trained("eagle3", "cpu", tmp_path / "here", 4)
    with there(device):
        trained("eagle3", device, tmp_path / "moved", 2)
    trained("eagle3", "cpu", tmp_path / "moved", 3)
    with there(device):
        far = trained("eagle3", device, tmp_path / "moved", 4)
    assert_alike(far, here)
