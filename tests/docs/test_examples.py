"""The scripts in `examples/` do what they say, on tiny models."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from draftgym.decoding.costs.cost_model import Curve
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target, load_target
from draftgym.rollouts.traces.collect import CollectArgs, collect
from tests.handmade.traces import COST
from tests.tiny_text import save_drafters, save_prompts, save_target

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARMS = ("eagle3:2", "dflash:2", "ngram:3")


def example(name: str) -> ModuleType:
    """A script, loaded but not run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny target, its drafters and prompts."""
    folder = tmp_path_factory.mktemp("user")
    save_target(folder / "target")
    save_drafters(load_target(str(folder / "target"), "float32", 1), folder)
    save_prompts(folder / "prompts.jsonl", 2)
    return folder


@pytest.fixture(autouse=True)
def one_thread_and_known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed, and no other test waits for our threads."""
    lookup = {"ngram": Curve((1, 8), (0.0, 0.0))}
    costs = replace(COST, draft=COST.draft | lookup, catch_up=COST.catch_up | lookup)
    monkeypatch.setattr("draftgym.decoding.model.precision.usable_cores", lambda: 1)
    monkeypatch.setattr("draftgym.rollouts.traces.tracer.load_cost_model", lambda *_: costs)


def drafters(user: Path) -> tuple[Path, ...]:
    return user / "eagle3", user / "dflash"


def plain_text(user: Path, prompt: str, tokens: int) -> str:
    target: Target = load_target(str(user / "target"), "float32", 1)
    written = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, tokens).tokens
    return target.decode(written)


def test_decode_prints_rounds_and_plain_decodings_text(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "why?"
    example("decode").main(prompt, "eagle3:3", str(user / "target"), drafters(user), 20)
    out = capsys.readouterr().out
    assert plain_text(user, prompt, 20) in out
    assert "eagle3:3" in out and out.count("drafted") == out.count("committed") > 0
    assert "20 tokens" in out


def test_a_router_is_trained_and_deployed(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("train_and_deploy").main(
        target=str(user / "target"),
        drafters=drafters(user),
        arms=ARMS,
        prompts=str(user / "prompts.jsonl"),
        max_new_tokens=24,
        rounds=2000,
        out=user / "out",
    )
    assert plain_text(user, "Why is the sky blue?", 24) in capsys.readouterr().out
    assert (user / "out" / "router" / "policy" / "policy.safetensors").is_file()


def test_a_baseline_is_compared_with_every_arm(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"arms": ARMS, "prompts": str(user / "prompts.jsonl"), "max_new_tokens": 24}
    target = {"target": str(user / "target"), "drafters": drafters(user), "dtype": "float32"}
    collect(CollectArgs(out=user / "traces", **wanted, **target))  # type: ignore[arg-type]
    capsys.readouterr()
    example("baseline").main(user / "traces", episodes=4)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [*ARMS, "plain", "copy"]
    assert float(lines[3][1]) == 1.0  # plain decoding takes a step for every token


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name
