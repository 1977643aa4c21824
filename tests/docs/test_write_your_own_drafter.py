"""The drafter of docs/extend/drafter.md, as the page has it, decodes, is traced and is played."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.loading import load_drafters
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.rules import RandomPolicy
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.traces.collect import CollectArgs, collect
from tests.tiny import PROMPTS, numbered_target
from tests.tiny_text import save_prompts, save_target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend" / "drafter.md"
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])
ENTRY = "bigram:BigramDrafter"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which a reader has saved the page's code as `bigram.py`."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[0]
    assert len(code.splitlines()) < 40
    (tmp_path / "bigram.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("bigram", None)


@pytest.fixture
def bigram(folder: Path, target: Target) -> dict[str, Drafter]:
    """Drafters as a user loads them."""
    return load_drafters(target, [ENTRY], shipped=folder)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_plain_decodings(
    target: Target, bigram: dict[str, Drafter], temperature: float
) -> None:
    assert list(bigram) == ["ngram", "suffix", "bigram"]
    plain = SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, 60, temperature, 3)
    arms = tuple(map(parse_arm, ("bigram:4", "ngram:4", "bigram:1", "plain")))
    for policy in (make_policy("bigram:4", bigram, target), RandomPolicy(arms, 0)):
        text = SpeculativeDecoder(target, bigram, policy).generate(PROMPT, 60, temperature, 3)
        assert text.tokens == plain.tokens
        drafted = [record.record for record in text.rounds if record.record.drafted]
        assert drafted and any(record.accepted for record in drafted)


def test_collecting_asks_it_at_every_position(folder: Path) -> None:
    """Its traces say what decoding with it does, round by round."""
    save_target(folder / "target")
    save_prompts(folder / "prompts.jsonl", 1)
    args = CollectArgs(
        target=str(folder / "target"),
        drafters=(Path(ENTRY),),
        arms=("bigram:4", "bigram:2"),
        prompts=str(folder / "prompts.jsonl"),
        out=folder / "traces",
        max_new_tokens=40,
        dtype="float32",
        threads=1,
    )
    traces = collect(args)
    target, drafters = args.load()
    assert traces.origin.drafters == {"bigram": "bigram-1"}
    prompts = {prompt.question_id: prompt.text for prompt in load_prompts(args.prompts)}
    for trace in traces.texts:
        for arm in args.arms:
            decoder = SpeculativeDecoder(target, drafters, make_policy(arm, drafters, target))
            position = 0
            for item in decoder.generate(prompts[trace.question_id], 40).rounds:
                made = trace.arms[arm]
                assert made.committed[position] == len(item.record.committed)
                assert made.drafted[position] == len(item.record.drafted)
                position += len(item.record.committed)
            assert position == len(trace.tokens) - 1


def test_the_environment_plays_it(target: Target, bigram: dict[str, Drafter]) -> None:
    env = gym.make(
        "draftgym/Router-v0",
        target=numbered_target(target),
        drafters=bigram,
        arms=["bigram:4", "plain"],
        prompts=PROMPTS,
        max_new_tokens=30,
    )
    env.reset(seed=0)
    done, rounds = False, 0
    while not done:
        _, _, done, _, _ = env.step(0)
        rounds += 1
    assert 0 < rounds < 29, "it saves some of plain decoding's rounds"


def test_code_that_makes_no_drafter_is_refused(folder: Path, target: Target) -> None:
    for entry in ("bigram:Missing", "missing_module:Mine", "builtins:id"):
        with pytest.raises(DraftgymError, match="drafter"):
            load_drafters(target, [entry], shipped=folder)
