"""Promise: processes that share a target (tensor parallel) all write its text; one prints it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym import cli
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.training.loop.team import joined
from draftgym.policies.routers.rules import FixedPolicy
from tests.drafters.training.test_several_processes_learn_as_one import forked
from tests.tiny import tiny_eagle3, tiny_model
from tests.tiny_text import VOCAB, byte_tokenizer

PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31, 5, 9, 14])
SHARED = "tensor-parallel"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A target of two layers that reads and writes bytes."""
    tiny_model(vocab_size=VOCAB, num_hidden_layers=2).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def texts(target: Target) -> list[list[int]]:
    """What a target writes with a tree of a drafter that reads its taps, greedily and sampled."""
    head = tiny_eagle3(target, tap_layers=(0, 0, 1))
    decoder = SpeculativeDecoder(target, {"eagle3": head}, FixedPolicy(parse_arm("eagle3:3x6")))
    return [decoder.generate(PROMPT, 6, temperature=heat, seed=3).tokens for heat in (0.0, 0.9)]


@pytest.mark.slow
def test_each_writes_the_text_or_is_told_that_they_part(folder: Path) -> None:
    """Passes of processes that part would mix texts; and each would measure other costs."""
    alone = load_target(str(folder), "float32", 1)

    def member() -> Any:
        with joined(SHARED) as team:
            target = load_target(str(folder), "float32", 1, SHARED)
            written = texts(target)
            with pytest.raises(DraftgymError, match="time its rounds"):
                load_cost_model(target, {})
            rows = NewRows(target.decoder.new_cache(9), PROMPT[team.rank :][:4])
            with pytest.raises(DraftgymError, match="parted"):
                target.decoder.forward([rows])
        return target.fingerprint, written

    assert forked(2, member) == [(alone.fingerprint, texts(alone))] * 2


@pytest.mark.slow
def test_the_first_one_prints(folder: Path) -> None:
    told = ["--target", str(folder), "--dtype", "float32", "--policy", "ngram:4"]
    told += ["--prompt", "a b c a b", "--max-new-tokens", "4"]

    def printed(*where: str) -> str:
        with redirect_stdout(io.StringIO()) as out:
            cli.run("generate", [*told, *where])
        return out.getvalue()

    assert forked(2, lambda: printed("--device", SHARED)) == [printed(), ""]


@pytest.mark.parametrize(
    ("verb", "told", "what"),
    [
        ("generate", ["--prompt", "a"], "one alone"),
        ("generate", ["--chat"], "one reader"),
        ("train-drafter", ["eagle3", "--corpus", "x"], "divide the texts"),
    ],
)
def test_what_one_process_cannot_do_is_refused(
    verb: str, told: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.run(verb, [*told, "--device", SHARED])
    assert what in capsys.readouterr().err
