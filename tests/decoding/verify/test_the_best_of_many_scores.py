"""The best few of a row are those of a selection among all, ties and all."""

from __future__ import annotations

import math

import pytest
import torch

from draftgym.decoding.verify.best import FEWEST, best_places, best_scores


@pytest.mark.parametrize("width", [7, 64, FEWEST, 8192, 49152, FEWEST + 1])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_groups_hide_no_score(width: int, count: int) -> None:
    scores = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    expected = scores.topk(count)
    assert torch.equal(best_scores(scores, count), expected.values)
    assert torch.equal(best_places(scores, count), expected.indices)


@pytest.mark.parametrize("width", [64, 8192])
def test_of_equal_scores_the_first_leads_and_none_is_told_twice(width: int) -> None:
    scores = torch.randint(3, (20, width), generator=torch.Generator().manual_seed(0)).float()
    places = best_places(scores, 8)
    assert torch.equal(places[:, 0], scores.argmax(-1))
    assert all(len(set(row)) == 8 for row in places.tolist())
    assert torch.equal(scores.gather(1, places), scores.topk(8).values)


def test_what_is_no_number_is_found() -> None:
    scores = torch.randn(2, 8192)
    scores[1, 5000] = math.nan
    assert best_scores(scores, 2)[1, 0].isnan()
    assert best_places(scores, 1)[1].tolist() == [5000]
