"""Several processes train the drafter that one process trains, and one of them writes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import get_args_parser

from draftgym import cli
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Corpus
from draftgym.drafters.training.loop.parts import count_parts, parts_of
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.team import ALONE, Team, joined
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.main import Eagle3Args, train
from tests.drafters.training.setups import (
    objective_of,
    stopping_after,
    weights_of,
    write_texts,
)
from tests.feature_context import random_texts
from tests.tiny_text import VOCAB, save_target

CLOSE = {"rtol": 0.0, "atol": 1e-6}
CONFIG = TrainerConfig(updates=4, batch_size=5, parts=2, measure_updates=2, save_minutes=99)
"""Of twelve texts, so that one batch has two; the parts of the others have three and two."""


def together(count: int, act: Callable[[Team], Any]) -> list[Any]:
    """What each member of a team of forked processes makes, or `repr` of its error."""

    def member() -> Any:
        with joined("cpu") as team:
            return act(team)

    return forked(count, member)


def forked(count: int, act: Callable[[], Any]) -> list[Any]:
    """The same for processes that are told of each other as `torchrun` tells them."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    results = fork.SimpleQueue()

    def member(rank: int) -> None:
        names = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        try:
            results.put((rank, act()))
        except BaseException as error:
            results.put((rank, repr(error)))

    members = [fork.Process(target=member, args=(rank,)) for rank in range(count)]
    for one in members:
        one.start()
    made = dict(results.get() for _ in members)
    for one in members:
        one.join()
    return [made[rank] for rank in range(count)]


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def trained(
    kind: str,
    target: Target,
    folder: Path,
    config: TrainerConfig,
    team: Team = ALONE,
    stop: int | None = None,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """What a run measured, and the weights that it ends with; `stop` interrupts its process."""
    objective = objective_of(kind, target)
    if stop is not None:
        objective = stopping_after(objective, stop, KeyboardInterrupt())
    texts = random_texts([(3, 6 + i) for i in range(15)], target.vocab_size)
    corpus = Corpus(texts[3:], texts[:3])
    history = Trainer(objective, target, corpus, folder, config, team=team).run().history
    return history, {name: weight.numpy() for name, weight in weights_of(objective).items()}


def assert_alike(one: Any, other: Any) -> None:
    """Losses and weights, to 1e-6."""
    losses = [[entry["loss"] for entry in history] for history, _ in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.0, abs=1e-6)
    assert [entry["updates"] for entry in one[0]] == [entry["updates"] for entry in other[0]]
    for name, weight in one[1].items():
        torch.testing.assert_close(torch.tensor(weight), torch.tensor(other[1][name]), **CLOSE)


@pytest.mark.parametrize("kind", ["eagle3", "vsd", "small"])
def test_two_processes_learn_what_one_learns(target: Target, tmp_path: Path, kind: str) -> None:
    alone = trained(kind, target, tmp_path / "one", CONFIG)
    for both in together(2, lambda team: trained(kind, target, tmp_path / "two", CONFIG, team)):
        assert_alike(both, alone)
    assert sum(path.name.startswith("events") for path in (tmp_path / "two").iterdir()) == 1


def test_parts_of_equal_texts_are_the_whole_batch(target: Target, tmp_path: Path) -> None:
    """Where nothing is drawn, an update is that of a batch that is never split."""
    texts = random_texts([(3, 8)] * 10, target.vocab_size)
    corpus, found = Corpus(texts[2:], texts[:2]), []
    for parts in (1, 4):
        objective, config = objective_of("eagle3", target), replace(CONFIG, parts=parts)
        Trainer(objective, target, corpus, tmp_path / str(parts), config).run()
        found.append(weights_of(objective))
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(weight, other[name], **CLOSE)


def test_a_run_goes_on_with_another_number_of_processes(target: Target, tmp_path: Path) -> None:
    """Three end when one of them does, after two updates; two go on, and one ends it."""
    config = replace(CONFIG, parts=6, batch_size=6)
    whole = trained("dflash", target, tmp_path / "whole", config)
    for count, calls, updates in ((3, 4, 2), (2, 3, 3)):

        def act(team: Team, last: int = count - 1, calls: int = calls) -> Any:
            stop = calls if team.rank == last else None
            return trained("dflash", target, tmp_path / "parts", config, team, stop)

        *others, stopped = together(count, act)
        assert "KeyboardInterrupt" in stopped
        assert all("another process" in one for one in others)
        state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
        assert state["progress"]["updates"] == updates
    assert_alike(trained("dflash", target, tmp_path / "parts", config), whole)


def test_processes_that_see_different_runs_are_told(target: Target, tmp_path: Path) -> None:
    trained("eagle3", target, tmp_path / "0", CONFIG)

    def act(team: Team) -> Any:
        return trained("eagle3", target, tmp_path / str(team.rank), CONFIG, team)

    assert all("all their machines share" in one for one in together(2, act))


def test_a_gradient_that_only_some_have_is_summed_and_nobodys_stays_none() -> None:
    def act(team: Team) -> Any:
        layers = torch.nn.ModuleList(torch.nn.Linear(2, 1, bias=False) for _ in range(3))
        used = layers[0] if team.leads else layers[1]
        (used(torch.ones(1, 2)).sum() + layers[1](torch.ones(1, 2)).sum()).backward()
        team.sum_gradients(layers.parameters())
        grads = [one.weight.grad for one in layers]
        return [None if grad is None else grad.tolist() for grad in grads]

    assert together(2, act) == [[[[1.0, 1.0]], [[3.0, 3.0]], None]] * 2


def test_parts_cover_a_batch_once_and_draw_differently() -> None:
    texts = random_texts([(3, 5 + i) for i in range(7)], 61)
    for size in (1, 2, 4):
        parts = [part for rank in range(size) for part in parts_of(texts, 4, 9, Team(rank, size))]
        assert sum(len(part.texts) for part in parts) == 7
        assert sum(part.share for part in parts) == pytest.approx(1.0)
        assert sorted(part.seed for part in parts) == [37, 38, 39, 40]
    assert [len(part.texts) for part in parts_of(texts[:1], 4, 0, ALONE)] == [1]


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        ({"parts": 3}, 2, "multiple of 2"),
        ({"parts": None}, 8, "at least 8 texts"),
        ({"parts": 6}, 1, "at least 6 texts"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    changes: dict[str, Any], processes: int, says: str
) -> None:
    with pytest.raises(DraftgymError, match=says):
        count_parts(replace(CONFIG, **changes), processes)
    assert count_parts(replace(CONFIG, parts=None), 4) == 4


def test_replay_has_one_account_of_errors(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="one process"):
        train(Eagle3Args(tmp_path, tmp_path / "run", objective="replay", trainer=CONFIG))


def test_processes_share_cores_and_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(rank=5, size=8, local_rank=1, local_size=4)
    assert team.own_threads(3) == 3 and team.own_device("cpu") == "cpu"
    monkeypatch.setattr("draftgym.drafters.training.loop.team.usable_cores", lambda: 10)
    assert team.own_threads(None) == 2 and ALONE.own_threads(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert team.own_device("auto") == team.own_device("cuda") == "cuda:1"
    assert ALONE.own_device("cuda:3") == "cuda:3"
    with pytest.raises(DraftgymError, match="cannot share"):
        team.own_device("cuda:3")
    with pytest.raises(DraftgymError, match="for 4 GPUs"):
        Team(0, 5, 0, 5).own_device("auto")


def test_the_command_is_torchruns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/scaling.md has it; the leader alone speaks, and the run tells how many took part."""
    save_target(tmp_path / "target")
    corpus = write_texts(tmp_path / "texts.parquet", VOCAB)
    words = f"train-drafter eagle3 --corpus {corpus} --target {tmp_path / 'target'} --device cpu "
    words += f"--dtype float32 --trainer.updates 2 --run {tmp_path / 'run'}"
    started = f"--nproc-per-node 2 -m -- draftgym {words}".split()
    launch = get_args_parser().parse_args(started)
    assert (launch.module, launch.training_script) == (True, "draftgym")
    verb, *options = launch.training_script_args
    monkeypatch.setattr(sys, "argv", ["draftgym", verb, *options])
    assert forked(2, lambda: cli.run(verb, options)) == [None, None]
    out = capfd.readouterr().out
    assert out.count("checkpoint: ") == out.count("corpus: ") == 1
    assert read_json(tmp_path / "run" / "config.json", "")["processes"] == 2
    assert "2 processes of 1" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
