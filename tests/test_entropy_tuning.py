"""The entropy threshold is chosen on training prompts by measured throughput, with provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decoding.errors import DraftgymError
from decoding.target import load_target
from rollouts.tune_entropy import TuneEntropyArgs, tune
from tests.tiny_text import save_drafters, save_prompts, save_target


def test_the_fastest_threshold_is_written_with_its_figures(tmp_path: Path) -> None:
    name = str(save_target(tmp_path / "target"))
    folders = save_drafters(load_target(name, "float32", 1), tmp_path)
    args = TuneEntropyArgs(
        target=name,
        drafters=tuple(folders),
        dtype="float32",
        threads=1,
        grid=(0.0, 2.0, 12.0),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl", 1)),
        max_new_tokens=12,
        output=tmp_path / "threshold.json",
    )
    best = tune(args)
    written = json.loads(args.output.read_text())
    speeds = {float(key): value for key, value in written["tokens_per_second"].items()}
    assert set(speeds) == {0.0, 2.0, 12.0}
    assert written["threshold"] == best and speeds[best] == max(speeds.values())
    assert written["autoregressive_share"]["0"] == 1 and written["autoregressive_share"]["12"] == 0
    assert {"fingerprint", "dtype", "threads", "cpu", "torch", "command"} <= written.keys()


def test_held_out_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="--prompts train"):
        tune(TuneEntropyArgs(prompts="heldout", output=tmp_path / "threshold.json"))
    assert not (tmp_path / "threshold.json").exists()
