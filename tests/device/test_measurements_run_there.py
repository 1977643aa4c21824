"""Promise: what rounds cost and what drafters are worth is measured on the device itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.system.accelerator.fixed import FixedPass
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.batch_cost import measure_batches
from draftgym.decoding.costs.measuring import measure
from draftgym.decoding.costs.pieces import Piece, Pieces, needed
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.drafters.training.loop.watch import Watch
from tests.device.places import on_each_device, there
from tests.device.test_texts_are_those_of_the_processor import PROMPT, built
from tests.drafters.training.setups import KINDS, greedy_texts, objective_of
from tests.tiny import tiny_target

ARMS = [parse_arm(arm) for arm in ("eagle3:2x4", "dflash:4x8", "small:3", "ngram:4", "plain")]
TREE = (torch.tensor([0, 1, 1]), torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool())
"""Depths behind the first row, and who sees whom."""


@pytest.mark.slow
@on_each_device
def test_every_piece_of_a_round_is_timed(device: str) -> None:
    def pieces_of(where: str) -> dict[Piece, list[float]]:
        target, drafters = built(where)
        pieces = Pieces(target, drafters, needed(ARMS), [8])
        return measure(pieces.rounds(), pieces.coarse, 1, clock=partial(clock, target.device))

    here = pieces_of("cpu")
    with there(device):
        found = pieces_of(device)
    assert found.keys() == here.keys() and all(found.values())


@on_each_device
def test_batches_are_timed(device: str) -> None:
    with there(device):
        found = measure_batches(tiny_target(device=device), [2], [3], [8], repeats=1)
    assert (found.users, found.rows_each) == ((1, 2), (1, 3))


@on_each_device
@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_in_training_is_watched(kind: str, device: str, tmp_path: Path) -> None:
    """Features that were stored are read again on the device."""
    target = tiny_target()
    texts = greedy_texts(target, [4, 7], 12)
    objective_of(kind, target).export(tmp_path / "weights", target)

    def seen(where: str) -> list[dict[str, float]]:
        target = tiny_target(device=where)
        layers = objective_of(kind, target).tap_layers
        features = FeatureCache(tmp_path / where, target, layers, torch.float32)
        return [Watch(target, features, texts)(tmp_path / "weights") for _ in range(2)]

    here = seen("cpu")
    with there(device):
        assert seen(device) == here


@on_each_device
@pytest.mark.parametrize("drafted", [(), TREE], ids=["chain", "tree"])
def test_passes_of_fixed_shape_are_ordinary_passes(device: str, drafted: Sequence[Tensor]) -> None:

    def passed(where: str, fixed: bool) -> PassOutput:
        decoder = built(where)[0].compact
        cache = decoder.new_cache(32)
        decoder.forward([NewRows(cache, PROMPT.to(where))])
        cache.keep(len(PROMPT))
        tokens = torch.tensor([3, 8, 4]).to(where)
        given = [one.to(where) for one in drafted]
        if fixed:
            return FixedPass(decoder, cache, 3, (1, 4))(tokens, *given)
        if given:
            given[0] = given[0] + len(PROMPT)
        return decoder.forward([NewRows(cache, tokens, *given)], (1, 4))[0]

    here = passed("cpu", fixed=False)
    with there(device):
        found = passed(device, fixed=True)
        for name in ("logits", "hidden", "taps"):
            ours, theirs = getattr(found, name).cpu(), getattr(here, name)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
