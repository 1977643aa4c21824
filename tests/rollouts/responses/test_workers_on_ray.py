"""Workers on Ray write what one process writes, file by file, whichever of them die."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.parquet
import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.responses.respond import RespondArgs, respond
from draftgym.rollouts.traces.collect import CollectArgs, trace
from draftgym.rollouts.traces.file import read_origin
from draftgym.rollouts.traces.shards import shard_path, shards_in
from draftgym.rollouts.workers.cluster import room_for
from draftgym.rollouts.workers.options import WorkerOptions
from draftgym.rollouts.workers.pool import open_pool
from draftgym.rollouts.workers.shard import Amount, Shard, Told, cut_shards
from tests.tiny_text import save_drafters, save_prompts, save_target, text_target

TOKENS = 10


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return save_prompts(tmp_path / "prompts.jsonl", per_category=4)


@pytest.fixture
def args(tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> CollectArgs:
    monkeypatch.setenv("DRAFTGYM_CALIBRATION_SECONDS", "0.1")
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    return CollectArgs(
        out=tmp_path / "traces",
        target=str(save_target(tmp_path / "target")),
        drafters=tuple(save_drafters(text_target(), tmp_path)),
        arms=("eagle3:3", "dflash:2", "ngram:8"),
        prompts=str(prompts),
        max_new_tokens=TOKENS,
        shard_texts=3,
        states="float16",
        dtype="float32",
        threads=1,
    )


def tables_in(folder: Path) -> dict[str, Any]:
    return {shard.name: pyarrow.parquet.read_table(shard) for shard in shards_in(folder)}


def kill_workers() -> None:
    """As a machine that is switched off does."""
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::Host"):
            process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_traces_are_those_of_one_process_though_workers_die(
    ray: Any, args: CollectArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(args, out=args.out.with_name("whole"))
    trace(whole)
    expected = tables_in(whole.out)
    assert list(expected) == [f"part-0000{n}.parquet" for n in range(4)]
    add, amounts = Progress.add, []

    def deadly(self: Progress, count: int, texts: int = 1) -> None:
        add(self, count, texts)
        amounts.append((count, texts))
        if len(amounts) == 1:
            kill_workers()

    monkeypatch.setattr(Progress, "add", deadly)
    trace(replace(args, ray="auto", workers=1))
    assert tables_in(args.out) == expected
    assert read_origin(shards_in(args.out)[2]) == read_origin(shards_in(whole.out)[2])
    assert amounts == [(3 * (TOKENS - 1), 3)] * 4


@pytest.mark.slow
@pytest.mark.skipif("DRAFTGYM_RAY_TESTS" not in os.environ, reason="DRAFTGYM_RAY_TESTS asks for it")
def test_responses_are_those_of_one_process(ray: Any, args: CollectArgs) -> None:
    shared = {name: getattr(args, name) for name in ("target", "prompts", "dtype", "threads")}
    alone = RespondArgs(out=args.out, max_new_tokens=TOKENS, shard_texts=5, **shared)
    on_ray = replace(alone, out=args.out.with_name("on-ray"), ray="auto", workers=1)
    assert respond(alone) == respond(on_ray)

    def rows(folder: Path) -> list[Any]:
        tables = [pyarrow.parquet.read_table(shard).to_pylist() for shard in shards_in(folder)]
        return sorted((row for rows in tables for row in rows), key=lambda row: str(row["seed"]))

    assert rows(alone.out) == rows(on_ray.out)
    assert respond(on_ray).texts == 0


@dataclass
class Scripted:
    """A worker that does as a shard's question says."""

    out: Path

    def write(self, shard: Shard, plan: str, told: Told | None = None) -> Amount:
        """Dies, fails, refuses, or writes the plan."""
        wish = shard.requests[0].question_id
        if wish == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if wish == "fail":
            raise RuntimeError("a kernel failed")
        if wish == "rest":
            time.sleep(1)
        if wish == "refuse":
            raise DraftgymError("a wrong setting", "another one")
        (self.out / f"{shard.number}").write_text(plan)
        return Amount(1, 1)


def play(ray: Any, out: Path, *wishes: str) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    requests: list[Any] = [SimpleNamespace(question_id=wish) for wish in wishes]
    shards = [Shard(number, (one,)) for number, one in enumerate(requests)]
    options = WorkerOptions(ray="auto", workers=1, tries=2)
    with (
        open_pool(lambda: Scripted(out), options, out) as pool,
        Progress("testing", "units", len(shards)) as bar,
    ):
        pool.write(shards, "plan", bar)


@pytest.mark.slow
def test_a_shard_that_fails_every_time_is_given_up_and_named(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows a failure is not begun by the worker that is about to end for it."""
    kill = ray.kill

    def kill_late(actor: Any, no_restart: bool = True) -> None:
        Timer(0.0 if no_restart else 0.5, kill, (actor,), {"no_restart": no_restart}).start()

    monkeypatch.setattr(ray, "kill", kill_late)
    with pytest.raises(DraftgymError) as refused:
        play(ray, tmp_path, "die", "a", "fail", "rest")
    assert refused.value.problem == (
        "given up after 2 tries each: shard 0 (questions 'die'): its worker died; "
        "shard 2 (questions 'fail'): RuntimeError: a kernel failed"
    )
    assert (tmp_path / "1").exists() and (tmp_path / "3").exists()


@pytest.mark.slow
def test_what_the_user_can_mend_ends_the_run(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="a wrong setting") as refused:
        play(ray, tmp_path, "refuse", "a")
    assert refused.value.remedy == "another one"
    assert not (tmp_path / "1").exists()


def test_shards_are_the_same_wherever_a_run_goes_on(tmp_path: Path) -> None:
    wanted = [Request(str(n), "chat", 0.0, 0, torch.arange(1)) for n in range(8)]
    whole = cut_shards(tmp_path, wanted, wanted, 3)
    assert [(one.number, len(one.requests)) for one in whole] == [(0, 3), (1, 3), (2, 2)]
    shard_path(tmp_path, 0).touch()
    shard_path(tmp_path, 2).touch()
    assert cut_shards(tmp_path, wanted, wanted[3:6], 3) == [whole[1]]


@pytest.mark.parametrize(
    ("cpus", "gpus", "count"), [(1, 0, 24), (1, 1, 2), (0.5, 0.1, 20), (6, 0.5, 2), (17, 0, 0)]
)
def test_machines_have_room_for_shares_of_accelerators(
    cpus: float, gpus: float, count: int
) -> None:
    machines = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}]
    nodes = [{"Alive": True, "Resources": one} for one in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}})
    assert room_for(SimpleNamespace(nodes=lambda: nodes), cpus, gpus) == count


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"workers": 2}, {"ray": "auto", "tries": 0}, {"gpus_per_worker": -1.0}):
        with pytest.raises(DraftgymError):
            WorkerOptions(**wrong).check_workers()  # type: ignore[arg-type]
