"""`benchmarks.drafters.runs` trains every objective from one checkpoint, equally long."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.drafters.runs import (
    VARIANTS,
    CompareSettings,
    ObjectiveRunsArgs,
    main,
    planned_runs,
)
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.drafters.training.loop.progress import TrainerConfig
from tests.drafters.training.setups import write_texts
from tests.tiny_text import save_drafters, save_prompts, save_target

NAMES = ("plain", "lk", "vsd")


@pytest.fixture
def args(tmp_path: Path) -> ObjectiveRunsArgs:
    target = load_target(str(save_target(tmp_path / "target")), "float32", 1)
    init = save_drafters(target, tmp_path)[0]
    return ObjectiveRunsArgs(
        drafter="eagle3",
        corpus=write_texts(tmp_path / "c.parquet", 257),
        init=init,
        out=tmp_path / "runs",
        variants=NAMES,
        seeds=(0, 1),
        repeated=("vsd",),
        hottest=None,
        features=None,
        target=target.name,
        threads=1,
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        trainer=TrainerConfig(updates=2, measure_updates=1, batch_size=2),
        compare=CompareSettings(max_new_tokens=12, temperatures=(0.0,), shapes=("3",)),
    )


@pytest.mark.slow
def test_all_objectives_are_trained_and_compared(args: ObjectiveRunsArgs) -> None:
    main(args)
    body = json.loads((args.out / "eagle3.json").read_text())
    assert {name: len(of) for name, of in body["checkpoints"].items()} == {
        "init": 1,
        "plain": 1,
        "lk": 1,
        "vsd": 2,
    }
    assert body["checkpoints"]["lk"][0]["folder"].endswith("lk-0/latest")
    for name in ("plain-0", "lk-0", "vsd-0", "vsd-1"):
        metrics = (args.out / "eagle3" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(metrics[-1])["updates"] == 2
    main(args)  # all is there: nothing is trained or measured again
    assert json.loads((args.out / "eagle3.json").read_text())["measured"] == body["measured"]


def test_runs_differ_in_their_objective_alone(args: ObjectiveRunsArgs) -> None:
    runs = list(planned_runs(replace(args, variants=tuple(VARIANTS), seeds=(0,))))
    assert [run.run.name.rpartition("-")[0] for run in runs] == list(VARIANTS)
    assert len({str((run.objective, run.terms)) for run in runs}) == len(VARIANTS)
    same = {str(replace(r, objective="plain", terms=runs[0].terms, run=args.out)) for r in runs}
    assert len(same) == 1


def test_unknown_variants_are_refused(args: ObjectiveRunsArgs) -> None:
    with pytest.raises(DraftgymError, match="vsd-3") as caught:
        main(replace(args, variants=("vsd-3",)))
    assert "vsd-16-paths" in caught.value.remedy
