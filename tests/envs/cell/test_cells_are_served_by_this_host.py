"""A host is measured once, kept in a file, and serves cells: its passes, its drafting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.totals import play_cells
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.cell import host as measuring
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.devices import MeasuredServer
from draftgym.envs.cell.host import (
    HostArgs,
    affine_errors,
    measure_host,
    print_host,
    read_host,
)
from tests.handmade.host import handmade_host
from tests.handmade.users import user_table
from tests.tiny import tiny_costs, tiny_drafters


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "host.json"
    path.write_text(handmade_host().to_json())
    return path


def test_a_file_tells_the_host_again(file: Path) -> None:
    assert read_host(file) == handmade_host()


def test_a_pass_of_a_cell_takes_what_it_takes_here(file: Path) -> None:
    table = user_table()
    settings = CellArgs(users=4, server=file).settings()
    assert isinstance(settings.edge.server, MeasuredServer)
    cell = Cell(table, settings)
    cell.reset(np.random.default_rng(0))
    played = cell.step(cell.best_plan(np.full((1, 4), 6)))
    expected = 0.01 + 4 * 0.002 + 0.001 * played.drafted.sum()
    assert played.time.verify[0] == pytest.approx(expected)


def test_devices_are_the_settings_unless_they_are_said_to_be_the_hosts(file: Path) -> None:
    usual = CellArgs().settings()
    assert CellArgs(server=file).settings().device("small") == usual.device("small")
    slower = CellArgs(server=file, device_factor=4.0).settings()
    assert slower.device("small").seconds_per_token == pytest.approx(4 * 0.005)
    assert slower.device("unknown") == usual.device("unknown")


def test_schedulers_plan_with_the_hosts_law(file: Path) -> None:
    cell = Cell(user_table(), CellArgs(users=16, server=file, device_factor=2.0).settings(), 2)
    law = cell.verification
    assert (law.fixed, law.per_user, law.per_token) == pytest.approx((0.01, 0.002, 0.001))
    seeds = [np.random.default_rng(seed) for seed in range(2)]
    assert (play_cells("heterogeneous@beta", cell, seeds, 20).tokens > 0).all()


def test_an_affine_host_has_no_error_and_others_are_told_theirs() -> None:
    np.testing.assert_allclose(affine_errors(handmade_host()), 0, atol=1e-9)
    assert np.abs(affine_errors(handmade_host(rounding=0.005))).max() > 0.1


def test_what_was_not_measured_is_refused(file: Path) -> None:
    for asked in (CellArgs(users=17, server=file), CellArgs(longest_draft=17, server=file)):
        with pytest.raises(DraftgymError, match="up to 16 users and 16 tokens were measured"):
            asked.settings()
    with pytest.raises(DraftgymError, match="0 times as slow"):
        CellArgs(server=file, device_factor=0).settings()
    with pytest.raises(DraftgymError, match="-1 times as slow"):
        CellArgs(device_factor=-1).settings()


def test_devices_of_a_setting_are_as_slow_as_asked() -> None:
    usual, slower = CellArgs().settings(), CellArgs(device_factor=2.0).settings()
    assert slower.edge.device.seconds_per_token == 2 * usual.edge.device.seconds_per_token
    assert slower.edge.server == usual.edge.server and slower.edge.radio == usual.edge.radio


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"batches": {}, "costs": {}, "facts": {}}'])
def test_files_without_a_host_are_refused_with_a_remedy(file: Path, text: str) -> None:
    file.write_text(text)
    for path in (file, file.with_name("missing.json")):
        with pytest.raises(DraftgymError) as found:
            CellArgs(server=path).settings()
        assert path.name in found.value.problem and "draftgym measure-host" in found.value.remedy


def test_this_host_is_measured(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    costs = tiny_costs(target, some := _some(target))
    monkeypatch.setattr(measuring, "load_target", lambda *_: target)
    monkeypatch.setattr(measuring, "load_drafters", lambda *_: some)
    monkeypatch.setattr(measuring, "load_cost_model", lambda *_: costs)
    out = tmp_path / "runs" / "host.json"
    args = HostArgs(out=out, users=(1, 3), rows_each=(1, 5), contexts=(8, 32), repeats=1)
    host = measure_host(args)
    assert read_host(out) == host and host.batches.users == (1, 3)
    assert set(host.costs.draft) == {"small", "ngram"}
    said = capsys.readouterr().out
    assert "closest affine law" in said and "32 cached positions" in said and "small" in said
    with pytest.raises(DraftgymError, match="nothing"):
        measure_host(HostArgs(out=out, users=(0,)))


def test_the_table_has_every_point(capsys: pytest.CaptureFixture) -> None:
    print_host(handmade_host())
    said = capsys.readouterr().out
    for seconds in np.ravel(handmade_host().batches.seconds):
        assert f"{1e3 * seconds:.0f}" in said
    assert "10.0 ms + 2.0 ms a user + 1.00 ms a drafted token; off by 0%" in said


def _some(target: Target) -> dict[str, Drafter]:
    everyone = tiny_drafters(target)
    return {name: everyone[name] for name in ("small", "ngram")}
