"""A writer that breaks off, at whatever step, leaves either what was there or what it writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftgym.agents.scheduler.train import LearnedScheduler
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.cost_model import CostModel, Curve, read_cost_model, write_cost_model
from draftgym.decoding.files import read_json, write_json, write_text
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    RouterNetwork,
    load_learned_policy,
    save_learned_policy,
)
from draftgym.policies.routers.neural import (
    DifferenceNetwork,
    NeuralPolicy,
    load_neural_policy,
    save_neural_policy,
)
from draftgym.policies.schedulers.learned import (
    LENGTHS,
    SchedulerHead,
    load_scheduler,
    save_scheduler,
)
from draftgym.rollouts.traces.file import read_traces
from tests.handmade.users import user_traces
from tests.traces import save_traces

ARMS = tuple(map(parse_arm, ("eagle3:3", "plain")))
NAMES = ("active", "deciding")


class Somebody:
    """Whom these policies are for."""

    name, fingerprint = "somebody", "0" * 16


def save_router(folder: Path, number: int) -> None:
    torch.manual_seed(number)
    size = 4 + number  # other sizes, so that files of two policies cannot be mixed unseen
    network = RouterNetwork(7 + 2 + 2, 4, 2, width=size, neck=2)
    save_learned_policy(network, ARMS, Somebody(), folder, {"number": number})


def read_router(folder: Path) -> int:
    policy: LearnedPolicy = load_learned_policy(folder, Somebody())
    return policy.network.scores.in_features - 4


def save_neural(folder: Path, number: int) -> None:
    policy = NeuralPolicy(DifferenceNetwork(8 * (1 + number)), ARMS, float(number))
    save_neural_policy(policy, Somebody(), folder, {})


def read_neural(folder: Path) -> int:
    policy = load_neural_policy(folder, Somebody())
    assert policy.network.narrow.in_features == 8 * (1 + int(policy.threshold))
    return int(policy.threshold)


def save_lengths(folder: Path, number: int) -> None:
    head = SchedulerHead(LENGTHS, 4 + number, NAMES, ())
    save_scheduler(LearnedScheduler(head.network(4), head), ARMS, Somebody(), folder, {})


def read_lengths(folder: Path) -> int:
    policy = load_scheduler(folder, Somebody())
    assert policy.network.outputs.out_features == policy.head.longest + 1
    return policy.head.longest - 4


def save_costs(folder: Path, number: int) -> None:
    curve = Curve((1, 2), (1.0 + number, 2.0))
    write_cost_model(CostModel({}, {16: curve}, {}, {}, {}), folder / "costs.json")


def read_costs(folder: Path) -> int:
    model = read_cost_model(folder / "costs.json", "-")
    return int(model.target_pass[16].seconds[0]) - 1


def save_text(folder: Path, number: int) -> None:
    write_text(folder / "text", f"{number}" * 9000)


def read_text(folder: Path) -> int:
    (number,) = set((folder / "text").read_text())
    return int(number)


WRITERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], int]]] = {
    "router": (save_router, read_router),
    "neural router": (save_neural, read_neural),
    "scheduler": (save_lengths, read_lengths),
    "cost model": (save_costs, read_costs),
    "text": (save_text, read_text),
    "json": (
        lambda folder, number: write_json(folder / "a.json", {"number": number}),
        lambda folder: int(read_json(folder / "a.json", "-")["number"]),
    ),
}


@pytest.mark.parametrize("killed", [False, True], ids=["breaks off", "is killed"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_breaks_off_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, killed: bool
) -> None:
    write, read = WRITERS[writer]
    steps = counted_steps(lambda: write(tmp_path, 0), monkeypatch)
    assert read(tmp_path) == 0 and steps
    number = 0
    for step in range(steps):
        with monkeypatch.context() as patched:
            stop_before(step, patched)
            if killed:  # then nothing is tidied up either
                patched.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(InterruptedError):
                write(tmp_path, number + 1)
        left = read(tmp_path)
        assert left in (number, number + 1), f"step {step}"
        number = left
        assert step or number == 0, "before the first step nothing can have changed"
    write(tmp_path, number + 1)
    assert read(tmp_path) == number + 1


def counted_steps(write: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a writer writes a text or gives a file its name."""
    with monkeypatch.context() as patched:
        taken = stop_before(-1, patched)
        write()
    return len(taken)


def stop_before(step: int, patched: pytest.MonkeyPatch) -> list[object]:
    """Breaks a writer off: in the middle of a text, or before a file gets its name."""
    replace, write_text, taken = os.replace, Path.write_text, []

    def stop(source: str, target: str) -> None:
        if len(taken) == step:
            raise InterruptedError
        taken.append(target)
        replace(source, target)

    def stop_within(self: Path, text: str, *rest: Any, **named: Any) -> int:
        if len(taken) == step:
            write_text(self, text[: len(text) // 2], *rest, **named)
            raise InterruptedError
        taken.append(self)
        return write_text(self, text, *rest, **named)

    patched.setattr(os, "replace", stop)
    patched.setattr(Path, "write_text", stop_within)
    return taken


def test_a_shard_that_breaks_off_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = user_traces(texts=3)
    save_traces(traces, tmp_path)
    with monkeypatch.context() as patched:
        stop_before(0, patched)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(InterruptedError):
            save_traces(traces, tmp_path)
    read = read_traces(tmp_path)
    assert [text.question_id for text in read.texts] == [t.question_id for t in traces.texts]
    for mine, theirs in zip(read.texts, traces.texts, strict=True):
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)


def test_the_first_export_that_breaks_off_leaves_a_folder_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patched:
            stop_before(step, patched)
            with pytest.raises(InterruptedError):
                save_router(folder, 1)
        save_router(folder, 2)
        assert read_router(folder) == 2
