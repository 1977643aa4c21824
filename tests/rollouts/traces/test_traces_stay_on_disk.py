"""Texts that stay on disk are those in memory, and a router learns the same from them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train_router
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TextTrace
from tests.tiny import ARMS
from tests.traces import save_traces, shards, tiny_traces


@pytest.fixture
def folder(target: Target, drafters: dict[str, Drafter], tmp_path: Path) -> Path:
    return save_traces(tiny_traces(target, drafters, 1.0, max_new_tokens=24), tmp_path / "traces")


def test_texts_on_disk_are_those_in_memory(folder: Path) -> None:
    mapped, whole = read_traces(folder, mapped=True), read_traces(folder)
    assert mapped.positions == whole.positions and mapped.origin == whole.origin
    for mine, theirs in zip(mapped.texts, whole.texts, strict=True):
        assert isinstance(mine, TextTrace) and len(mine) == len(theirs)
        np.testing.assert_equal(asdict(mine), asdict(theirs))
    hidden = mapped.texts[0].hidden
    assert not hidden.flags.owndata and not hidden.flags.writeable, "a view of the file"


def test_a_router_learns_the_same_from_disk(folder: Path, tmp_path: Path) -> None:
    def policy(stream: bool, twice: bool) -> dict[str, bytes]:
        run = tmp_path / f"{stream}-{twice}"
        args = RouterArgs(
            traces=folder,
            run=run,
            arms=ARMS,
            rounds=64,
            threads=1,
            twice=twice,
            stream=stream,
            ppo=RouterPPO(n_envs=2, batch_size=8),
        )
        train_router(args)
        return {path.name: path.read_bytes() for path in (run / "policy").glob("*.safetensors")}

    for twice in (False, True):
        assert policy(True, twice) == policy(False, twice) != {}
    assert [path.name for path in (folder / ".mapped").iterdir()] == ["part-00000.arrow"]


def test_a_shard_that_changed_is_mapped_anew(folder: Path) -> None:
    read_traces(folder, mapped=True)
    shard = shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(DraftgymError, match="cannot read"):
        read_traces(folder, mapped=True)
