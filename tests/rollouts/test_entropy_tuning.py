"""The entropy threshold is the one that replays training traces fastest, with provenance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from draftgym.decoding.arms import Arm, Asking
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.routers.rules import ENTROPY, EntropyPolicy
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.replay.play import walk_single_arms
from draftgym.rollouts.replay.tune_entropy import TuneEntropyArgs, tune, tune_pair
from draftgym.rollouts.traces.file import trace_table
from draftgym.rollouts.traces.trace import TextTrace, TraceSet
from tests.handmade.traces import COST, PROMPT_TOKENS, handmade_traces

PAIR = (Arm("eagle3", 3), Arm("dflash", 4))


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    """DFlash accepts much where the target was sure, EAGLE-3 a little less everywhere."""
    rng = np.random.default_rng(1)

    def noise(count: int) -> np.ndarray:
        return rng.integers(0, 2, count)

    return handmade_traces(
        {
            "eagle3:3": lambda signals, hidden: 3 + noise(len(signals)),
            "dflash:4": lambda signals, hidden: np.where(signals[:, ENTROPY] < 1.3, 4, 1),
        }
    )


def save(traces: TraceSet, folder: Path) -> Path:
    """As `draftgym.rollouts.traces.collect` writes them."""
    folder.mkdir()
    shard = folder / "part-00000.parquet"
    pyarrow.parquet.write_table(trace_table(traces.texts, traces.origin), shard)
    return folder


def seconds_by_hand(traces: TraceSet, text: TextTrace, policy: EntropyPolicy) -> float:
    """Plays a text round by round, keeping every drafter's state in a dictionary."""
    place, spent = 0, 0.0
    used = {"eagle3": 1, "dflash": 0}
    while place < len(text):
        action, _ = policy.predict({"signals": text.signals[place]})
        arm = policy.arms[action]
        made, context = text.arms[str(arm)], PROMPT_TOKENS + place
        remaining = traces.origin.max_new_tokens - place - 1
        backlog = context - used[arm.drafter] if remaining > 1 else 0
        used[arm.drafter], drafted = context, int(made.drafted[place])
        spent += COST.round_seconds(
            [Asking(arm, drafted, int(made.depth[place]), backlog)], drafted, context
        )
        place += int(made.committed[place])
    return spent


def test_tuning_finds_the_threshold_that_brute_force_finds(traces: TraceSet) -> None:
    entropies = np.unique([h for text in traces.texts for h in text.signals[:-1, ENTROPY]])
    tokens = sum(map(len, traces.texts))
    by_hand = {}
    for threshold in map(float, [0.0, *entropies]):
        policy = EntropyPolicy(*PAIR, threshold=threshold)
        spent = sum(seconds_by_hand(traces, text, policy) for text in traces.texts)
        by_hand[threshold] = tokens / spent
    tuning = tune_pair(traces, PAIR, count=1000)
    assert tuning.thresholds.tolist() == list(by_hand)
    assert tuning.speeds == pytest.approx(list(by_hand.values()))
    best = max(by_hand, key=lambda threshold: by_hand[threshold])
    assert tuning.thresholds[tuning.best] == best
    assert 0 < best < entropies.max() and by_hand[best] > max(tuning.speeds[0], tuning.speeds[-1])


def test_the_ends_of_the_grid_are_single_arms(traces: TraceSet) -> None:
    tuning = tune_pair(traces, PAIR, count=7)
    single = walk_single_arms(traces, PAIR)
    assert (tuning.shares[0], tuning.shares[-1]) == (1, 0)
    assert tuning.speeds[[0, -1]] == pytest.approx(single.speeds)


def test_all_tokens_over_all_seconds_count_not_the_mean_of_rates(traces: TraceSet) -> None:
    each = [walk_single_arms(replace(traces, texts=[text]), PAIR) for text in traces.texts]
    together = walk_single_arms(traces, PAIR)
    assert together.tokens == sum(one.tokens for one in each)
    assert together.seconds == pytest.approx(np.sum([one.seconds for one in each], axis=0))
    assert together.speeds == pytest.approx(together.tokens / together.seconds)


def test_the_fastest_pair_is_written_with_its_figures(traces: TraceSet, tmp_path: Path) -> None:
    args = TuneEntropyArgs(
        traces=save(traces, tmp_path / "traces"),
        autoregressive=("eagle3:3", "plain"),
        diffusion=("dflash:4",),
        thresholds=20,
        output=tmp_path / "threshold.json",
    )
    best = tune(args)
    written = json.loads(args.output.read_text())
    assert written["threshold"] == best.thresholds[best.best]
    assert written["arms"] == list(map(str, best.arms)) == ["eagle3:3", "dflash:4"]
    speeds = written["tokens_per_second"]
    assert max(speeds.values()) == written["pairs"]["eagle3:3 dflash:4"]
    assert written["pairs"]["plain dflash:4"] < max(speeds.values())
    assert written["autoregressive_share"]["0"] == 1 and len(speeds) == 21
    assert {"target_fingerprint", "dtype", "drafters", "cpu", "torch", "command"} <= written.keys()


def test_held_out_prompts_are_refused(traces: TraceSet, tmp_path: Path) -> None:
    name = load_prompts("heldout")[3].question_id
    texts = [replace(traces.texts[0], question_id=name), *traces.texts[1:]]
    folder = save(replace(traces, texts=texts), tmp_path / "traces")
    with pytest.raises(DraftgymError, match="--prompts train"):
        tune(TuneEntropyArgs(traces=folder, output=tmp_path / "threshold.json"))
    assert not (tmp_path / "threshold.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"autoregressive": ("eagle3:9",)}, "not in these traces"),
        ({"diffusion": ()}, "no arm"),
        ({"thresholds": 1}, "two or more"),
        ({"traces": Path("no/such/folder")}, "no traces"),
    ],
)
def test_wrong_settings_are_answered_with_a_remedy(
    traces: TraceSet, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    folder = save(traces, tmp_path / "traces")
    args = replace(TuneEntropyArgs(traces=folder, output=tmp_path / "out.json"), **changes)
    with pytest.raises(DraftgymError, match=says) as caught:
        tune(args)
    assert caught.value.remedy and not args.output.exists()
