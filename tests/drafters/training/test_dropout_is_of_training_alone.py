"""Dropout on the taps: drawn from the seed of an update, right on average, never in validation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.features import FeatureBatch, target_features
from tests.drafters.training.setups import corpus_of, plain, unroller_of


def batch_of(target: Target, layers: tuple[int, ...]) -> FeatureBatch:
    return target_features(target, corpus_of(target).train, layers)


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_what_is_left_out_depends_on_the_seed_and_is_nothing_in_validation(
    target: Target, kind: str
) -> None:
    unroller = unroller_of(kind, target)
    objective = plain(unroller)
    batch = batch_of(target, unroller.tap_layers)
    whole = [float(objective(batch, seed).loss) for seed in (None, 1)]
    unroller.dropout = 0.5
    assert float(objective(batch, None).loss) == whole[0]
    dropped = [float(objective(batch, seed).loss) for seed in (1, 1, 2)]
    assert dropped[0] == dropped[1] != whole[1]
    assert dropped[2] != dropped[0]


def test_taps_stay_what_they_are_on_average(target: Target) -> None:
    batch = batch_of(target, (1, 4))
    batch = replace(batch, taps=torch.ones_like(batch.taps))
    some = torch.stack([batch.with_gaps(0.25, seed).taps for seed in range(40)])
    assert some.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(some.mean()) == pytest.approx(1, abs=0.02)
