"""Behind a target in 16 bits, objectives that draft as they train give every weight a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftgym.decoding.model.target import wrap_model
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.trainer import Trainer
from tests.drafters.training.setups import corpus_of, objective_of, weights_of
from tests.tiny import ONE_THREAD, tiny_model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["replay", "vsd"])
def test_every_weight_learns(kind: str, dtype: str, tmp_path: Path) -> None:
    model = tiny_model().to(getattr(torch, dtype))
    target = wrap_model(model, None, "tiny", replace(ONE_THREAD, dtype=dtype))
    assert target.decoder.dtype == getattr(torch, dtype)
    objective = objective_of(kind, target)
    before = weights_of(objective)
    config = TrainerConfig(updates=2, batch_size=2, measure_minutes=0)
    Trainer(objective, target, corpus_of(target), tmp_path, config).run()
    after = weights_of(objective)
    learned = dict(objective.network.named_parameters())
    assert not [name for name in learned if torch.equal(before[name], after[name])]
    assert all(value.isfinite().all() for value in after.values())
