"""Ways to do the same work are timed in turn, and rates are those of the work, not of the start."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.scaling import cores, processes, workers
from benchmarks.scaling.commands import rates, table_of
from draftgym.decoding.errors import DraftgymError
from tests.handmade.users import user_traces
from tests.traces import save_traces


def writes(what: str, log: Path, out: Path) -> list[str]:
    """The command of a way that keeps its number, and tells when it was run."""
    program = (
        f"import pathlib; pathlib.Path({str(out)!r}).write_text({what!r}); "
        f"open({str(log)!r}, 'a').write({what!r})"
    )
    return [sys.executable, "-c", program]


def test_ways_take_turns_and_are_compared_round_by_round(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ways = {"one": partial(writes, "2", log), "two": partial(writes, "3", log)}
    found = rates(ways, lambda out: float(out.read_text()), 2)
    assert found == {"one": [2.0, 2.0], "two": [3.0, 3.0]}
    assert log.read_text() == "2323"
    facts = {
        "target": "tiny", "dtype": "float32", "cpu": "one", "cores": 1, "threads": 1,
        "instructions": "", "device": "cpu",
    }  # fmt: skip
    table = table_of({"environment": facts, "rates": {"one": [2.0, 4.0], "two": [3.0, 8.0]}}, "x")
    assert table.rows[1] == ["two", "5.5", "3.0, 8.0", "1.75 (1.50 to 2.00)"]


def test_a_way_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('first\\nno room')"]
    with pytest.raises(DraftgymError, match="no room"):
        rates({"one": lambda out: failing}, lambda out: 1.0, 1)


def test_the_start_of_workers_does_not_count(tmp_path: Path) -> None:
    traces = user_traces()
    folder = tmp_path / "traces"
    for number, text in enumerate(traces.texts[:3]):
        shard = save_traces(replace(traces, texts=[text]), tmp_path / str(number))
        folder.mkdir(exist_ok=True)
        (file,) = shard.glob("*.parquet")
        file.rename(folder / f"part-{number:05}.parquet")
        os.utime(folder / f"part-{number:05}.parquet", (100, 100 + 2 * number))
    tokens = [len(text.tokens) for text in traces.texts[:3]]
    assert workers.rate_of(folder, 1) == pytest.approx((tokens[1] + tokens[2]) / 4)
    assert workers.rate_of(folder, 2) == pytest.approx(tokens[2] / 2)
    with pytest.raises(DraftgymError, match="3 shards"):
        workers.rate_of(folder, 3)


def test_all_ways_do_the_same_work(tmp_path: Path) -> None:
    commands = [way(tmp_path) for way in workers.ways(workers.WorkersArgs()).values()]
    ends = [
        command[command.index("auto", command.index("--backend")) + 1 :] for command in commands
    ]
    assert ends[:2] == [["--threads", "1"], ["--threads", "2"]]
    assert ends[2:] == [["--ray", "local", "--workers", one] for one in "12"]
    alone, threads, team = (
        way(tmp_path) for way in processes.ways(processes.ProcessesArgs()).values()
    )
    at = alone.index("--threads") + 1
    assert [*alone[:at], "2", *alone[at + 1 :]] == threads
    assert team[-len(alone[3:]) :] == alone[3:]
    assert "--nproc-per-node" in team


def test_a_run_tells_its_rate(tmp_path: Path) -> None:
    lines = [json.dumps({"tokens_per_second": rate}) for rate in (10.0, 12.5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert processes.rate_of(tmp_path) == 12.5


def test_processes_at_once_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cores.products(0.001) > 0
    monkeypatch.setattr(cores, "products", lambda seconds: 10.0)
    threads = SimpleNamespace(get_context=lambda way: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(cores, "multiprocessing", threads)
    args = cores.CoresArgs(processes=(1, 3), repeats=2, json=tmp_path / "cores.json")
    result = cores.measure(args)
    assert result["rates"] == {"1 at once": [10.0, 10.0], "3 at once": [30.0, 30.0]}
    (table,) = cores.tables(result)
    assert table.rows[1][-1] == "3.00 (3.00 to 3.00)"
