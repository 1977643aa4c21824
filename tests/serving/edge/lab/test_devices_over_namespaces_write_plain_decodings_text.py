"""`draftgym edge lab`: real processes in network namespaces, one of them killed, packets lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftgym.cli import run
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.serving.edge.lab import network
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.channels import relay_bands, write_channels
from draftgym.serving.edge.lab.checking import OTHER, SAME, check_texts
from draftgym.serving.edge.lab.faults import planned_faults
from draftgym.serving.edge.lab.lab import Lab, prompt_lines
from draftgym.serving.edge.lab.processes import journal_of
from tests.handmade.host import handmade_host
from tests.tiny_text import save_prompts, save_target


def why_not() -> str:
    """What is missing for namespaces here; nothing where they can be made."""
    try:
        network.check_possible()
    except DraftgymError as error:
        return error.problem
    return ""


needs_root = pytest.mark.skipif(bool(why_not()), reason=why_not() or "none")


def until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.05)


@pytest.mark.slow
@needs_root
def test_texts_are_plain_decodings_with_loss_and_a_killed_device(tmp_path: Path) -> None:
    args = EdgeLabArgs(
        devices=2,
        seconds=3600.0,
        step_seconds=600.0,
        kinds=("ngram",),
        target=str(save_target(tmp_path)),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        max_new_tokens=12,
        loss=0.02,
        threads=1,
        server=tmp_path / "host.json",
    )
    (tmp_path / "host.json").write_text(handmade_host().to_json(), encoding="utf-8")
    bands = relay_bands(write_channels(args, tmp_path / "channels.csv"), args.band_hertz)
    for index, lines in enumerate(prompt_lines(args)):
        (tmp_path / f"prompts-{index}.jsonl").write_text(lines, encoding="utf-8")
    options = {"least_bits": 16e3, "down_bits": None, "queue_bytes": 131072, "seed": 0}
    air = {"delay": 0.002, "jitter": 0.001, "loss": args.loss}

    def kept(device: int) -> dict[str, Any]:
        path = journal_of(tmp_path, device)
        return read_json(path, "none") if path.exists() else {"texts": [], "unfinished": None}

    with network.Network(2, bands, **options, **air) as made:
        lab = Lab(args, made, tmp_path)
        try:
            lab.start()
            until(lambda: all(kept(one)["texts"] for one in range(2)) and kept(0)["unfinished"])
            lab.devices[0].kill()
            before = kept(0)
            lab.restart(0)
            until(lambda: len(kept(0)["texts"]) > len(before["texts"]))
        finally:
            lab.end(0.0)
    found = check_texts(args, {f"device-{one}": kept(one) for one in range(2)})
    whole = [one for one in found if one["is"] == SAME]
    assert len(whole) >= 3 and all(one["is"] != OTHER for one in found)
    if before["unfinished"]:
        assert before["unfinished"]["session"] in {one["session"] for one in whole}
    assert sum(one["up"]["packets"] for one in made.counts) > 0
    assert not list(network.NAMESPACES.glob(f"{network.PREFIX}{os.getpid()}-*"))


@needs_root
def test_what_a_lab_left_that_is_no_more_is_removed() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"{network.PREFIX}{ended.pid}-server"
    subprocess.run(["ip", "netns", "add", name], check=True)
    left = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "1000"])
    until(
        lambda: (
            subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False).stdout
        )
    )
    assert name in network.remove_leftovers()
    assert left.wait() == -9
    assert not (network.NAMESPACES / name).exists()


def test_who_may_not_make_networks_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(network.shutil, "which", lambda name: "/sbin/ip")
    with pytest.raises(SystemExit):
        run("edge", ["lab", "--devices", "1"])
    assert "run the lab as root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--devices", "0"], "--devices is 0"),
        (["--jitter-ms", "20"], "--jitter-ms is 20"),
        (["--loss", "1"], "--loss is 1"),
        (["--kinds", "small@fast"], "no class of devices"),
        (["--setting", "modes-qwen2.5"], "noise grows"),
        (["--faults", "meteor"], "no fault 'meteor'"),
    ],
)
def test_labs_that_cannot_work_are_refused(
    options: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("edge", ["lab", *options])
    assert what in capsys.readouterr().err


def test_every_fault_has_its_time_and_its_device() -> None:
    planned = planned_faults(EdgeLabArgs(faults=("all",), devices=2, seconds=120.0))
    assert len({one.name for one in planned}) == len(planned) == 10
    assert [one.at for one in planned] == sorted(one.at for one in planned)
    assert all(0 < one.at < 120 for one in planned)
