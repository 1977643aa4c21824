"""Published costs by name are the published formula, wherever they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftgym.decoding.arms import Asking, parse_arm
from draftgym.decoding.costs.cost_model import write_cost_model
from draftgym.decoding.costs.published import named_cost_model, published_cost_model
from draftgym.decoding.errors import DraftgymError

NAME, DRAFTERS = "llama3.1-8b-h100", ("eagle3", "dflash", "ngram")


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("context", [1, 700, 30_000])
def test_a_pass_costs_what_the_fit_says(rows: int, context: int) -> None:
    model = published_cost_model(NAME, DRAFTERS)
    wanted = 5.88590713e-3 + 2.10103129e-5 * rows + 3.92645679e-8 * context + 1.20683946e-3
    assert model.target_seconds(rows, context) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("arm", "depth"), [("eagle3:1", 1), ("eagle3:5", 5), ("eagle3:4x8", 4), ("dflash:4x8", 2)]
)
def test_a_draft_takes_its_start_once(arm: str, depth: int) -> None:
    parsed = parse_arm(arm)
    rows = parsed.shape.budget
    found = published_cost_model(NAME, DRAFTERS).draft_seconds(Asking(parsed, rows, depth))
    assert found == pytest.approx(2.13526175e-3 + 8.41429603e-7 * rows, rel=1e-9)


def test_lookup_takes_its_share_of_a_pass() -> None:
    arm = parse_arm("ngram:8")
    found = published_cost_model(NAME, DRAFTERS).draft_seconds(Asking(arm, 8, 8))
    assert found == pytest.approx(0.005875 * (5.88590713e-3 + 2.10103129e-5))


def test_a_file_or_a_name_is_taken_and_nothing_else(tmp_path: Path) -> None:
    model = published_cost_model(NAME, DRAFTERS)
    write_cost_model(model, tmp_path / "costs.json")
    assert named_cost_model(tmp_path / "costs.json", ()).target_pass == model.target_pass
    with pytest.raises(DraftgymError, match="no published costs") as caught:
        named_cost_model("llama3-8b-h100", DRAFTERS)
    assert NAME in caught.value.remedy


@pytest.mark.parametrize(
    ("requests", "rows", "context"), [(1, 4, 300), (32, 4, 300), (64, 9, 2_000)]
)
def test_a_round_that_requests_share_costs_a_pass_over_all_their_rows(
    requests: int, rows: int, context: int
) -> None:
    model = named_cost_model(f"{NAME}@{requests}", DRAFTERS)
    read = 2.10103129e-5 * requests * rows + 3.92645679e-8 * requests * context
    assert model.target_seconds(rows, context) == pytest.approx(
        5.88590713e-3 + 1.20683946e-3 + read
    )
    chain = parse_arm("eagle3:3")
    wanted = 2.13526175e-3 + requests * 3 * 8.41429603e-7
    assert model.draft_seconds(Asking(chain, 3, 3)) == pytest.approx(wanted)
    lookup = model.draft_seconds(Asking(parse_arm("ngram:8"), 8, 8))
    assert lookup == pytest.approx(0.005875 * (5.88590713e-3 + requests * 2.10103129e-5))
    for wrong in (f"{NAME}@", f"{NAME}@0", f"{NAME}@many"):
        with pytest.raises(DraftgymError, match="requests"):
            named_cost_model(wrong, DRAFTERS)
