"""Promise: whatever drafts, verifies and chooses, on a device the text is the processor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import Memory, SpeculativeDecoder
from draftgym.decoding.drafting import CatchUp, Drafter
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.observers.observation import RouterObserver
from draftgym.decoding.round import play_round, play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.drafters.loading import load_folder
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.traces.counterfactual import trace_texts
from tests.architectures import architecture
from tests.device.places import on_each_device, there
from tests.drafters.checkpoints.test_padded_vocabularies_fit import KINDS as PADDED
from tests.drafters.checkpoints.test_padded_vocabularies_fit import ROWS, padded_target, save
from tests.drafters.checkpoints.test_published_checkpoints_load import check_lossless, publish
from tests.published.checkpoints import FORMATS, SIZES
from tests.tiny import ONE_THREAD, tiny_drafters, tiny_eagle3, tiny_target

PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 5, 9])
ARMS = ("plain", "ngram:4", "eagle3:3", "eagle3:3x7", "dflash:4", "dflash:4x8", "small:3x5")
RULES = {"greedy": 0.0, "coupled": 0.9, "rejection": 0.9}
NEW = 12


@cache
def built(device: str, kind: str = "llama") -> tuple[Target, dict[str, Drafter]]:
    """A target and its drafters; made while the device can be used."""
    target = tiny_target(kind, device=device, **({"sliding_window": 8} if "gemma" in kind else {}))
    return target, tiny_drafters(target)


def write(device: str, arm: str, kind: str = "llama", **told: Any) -> list[int]:
    target, drafters = built(device, kind)
    decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
    return decoder.generate(PROMPT, NEW, seed=4, **told).tokens


def assert_same_there(device: str, made: Callable[[str], object]) -> None:
    """What is made on the device equals what is made on the processor."""
    here = made("cpu")
    with there(device):
        assert made(device) == here


def check(device: str, *args: Any, **told: Any) -> None:
    assert_same_there(device, lambda where: write(where, *args, **told))


@pytest.mark.slow
@on_each_device
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_under_every_rule(device: str, arm: str, rule: str) -> None:
    check(device, arm, temperature=RULES[rule], verification=rule)


@on_each_device
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "qwen3"])
def test_windows_caps_and_norms(device: str, kind: str) -> None:
    check(device, "eagle3:3x7", kind)


@on_each_device
@pytest.mark.parametrize("how", [CatchUp(eager=True), CatchUp(full=True)], ids=str)
@pytest.mark.parametrize("arm", ["eagle3:3", "small:3"])
def test_however_drafters_catch_up(device: str, arm: str, how: CatchUp) -> None:
    check(device, arm, catching_up=how)


@on_each_device
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("arm", ["eagle3:3", "dflash:4x8"])
def test_sampling_settings(device: str, arm: str, rule: str) -> None:
    settings = SamplingSettings(repetition_penalty=1.4, top_k=0 if rule == "greedy" else 9)
    check(device, arm, temperature=RULES[rule], verification=rule, sampling=settings)


@on_each_device
@pytest.mark.parametrize("name", ["gpt2", "llama", "lfm2"])
def test_transformers_own_pass(device: str, name: str) -> None:
    def written(where: str) -> list[int]:
        model, precision = architecture(name), replace(ONE_THREAD, device=where)
        model.config.pad_token_id = None  # its warning about padding takes a list as an index
        target = wrap_model(model, None, name, precision, backend="transformers")
        head: dict[str, Drafter] = {"eagle3": tiny_eagle3(target, tap_layers=(0, 1, 2))}
        arm = "eagle3:3x6" if target.decoder.draws_trees else "eagle3:3"
        decoder = SpeculativeDecoder(target, head, FixedPolicy(parse_arm(arm)))
        return decoder.generate(PROMPT, NEW).tokens

    assert_same_there(device, written)


@on_each_device
@pytest.mark.parametrize(("kind", "rule"), zip(PADDED, cycle(RULES)))
def test_drafters_of_a_smaller_vocabulary(
    device: str, kind: str, rule: str, tmp_path: Path
) -> None:
    """They are as large as the tokenizer; the target's own rows are padded."""
    folder, told = save(kind, 257, tmp_path), {"temperature": RULES[rule], "verification": rule}

    def written(where: str) -> list[int]:
        target = padded_target(ROWS, device=where)
        drafter = load_folder(folder, target)
        policy = FixedPolicy(parse_arm(f"{drafter.name}:3x5"))
        decoder = SpeculativeDecoder(target, {drafter.name: drafter}, policy)
        return decoder.generate(PROMPT, NEW, seed=4, **told).tokens

    assert_same_there(device, written)


@pytest.mark.slow
@on_each_device
@pytest.mark.parametrize(("form", "size"), zip(FORMATS, cycle(SIZES)))
def test_published_checkpoints(device: str, form: str, size: str, tmp_path: Path) -> None:
    """With copies of the target's tables, which are left out."""
    here = built("cpu")[0]
    publish(tmp_path, form, SIZES[size], here)
    drafted = check_lossless(here, load_folder(tmp_path, here))
    with there(device):
        target = built(device)[0]
        assert check_lossless(target, load_folder(tmp_path, target)) == drafted


@on_each_device
def test_a_second_turn(device: str) -> None:
    def talk(where: str) -> list[int]:
        target, drafters = built(where)
        decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm("eagle3:3x7")))
        memory = Memory()
        first = decoder.generate(PROMPT, NEW, memory=memory)
        longer = torch.tensor([*PROMPT.tolist(), *first.tokens, 8, 3, 9])
        second = decoder.generate(longer, NEW, memory=memory)
        assert second.reused > len(PROMPT)
        return [*first.tokens, *second.tokens]

    assert_same_there(device, talk)


def session_of(where: str, prompt: torch.Tensor = PROMPT) -> Session:
    target, drafters = built(where)
    session = Session(target, prompt, make_rule(None, 0.8, 1, target.vocab_size), 20, drafters)
    session.prefill()
    return session


@on_each_device
def test_several_texts_in_one_pass_and_rolled_back_ones(device: str) -> None:
    arms = [parse_arm(arm) for arm in ("eagle3:3", "dflash:4x8", "plain")]

    def written(where: str) -> list[list[int]]:
        sessions = [session_of(where, PROMPT[: 6 + 2 * i]) for i in range(3)]
        for _ in range(3):
            play_rounds(sessions, arms)
        sessions[1].roll_back(len(sessions[1].token_ids) - 2)
        play_rounds(sessions, arms)
        return [session.token_ids for session in sessions]

    assert_same_there(device, written)


@on_each_device
def test_what_routers_observe(device: str) -> None:
    arm = parse_arm("eagle3:3")

    def observed(where: str) -> list[Any]:
        session, observer, found = session_of(where), RouterObserver([arm]), []
        for _ in range(3):
            found.append(observer.observe(session))
            observer.update(0, play_round(session, arm))
        return found

    here = observed("cpu")
    with there(device):
        for ours, theirs in zip(observed(device), here, strict=True):
            for key in theirs:
                torch.testing.assert_close(*map(torch.from_numpy, (ours[key], theirs[key])))


@on_each_device
def test_traces(device: str) -> None:
    arms = [parse_arm(arm) for arm in ("eagle3:3", "eagle3:3x7", "dflash:4x8", "ngram:4")]

    def traced(where: str) -> list[Any]:
        target, drafters = built(where)
        requests = [Request(f"q{i}", "chat", 0.8, i, PROMPT[: 7 + i]) for i in range(2)]
        return list(trace_texts(target, drafters, arms, requests, 8))

    here = traced("cpu")
    with there(device):
        for ours, theirs in zip(traced(device), here, strict=True):
            assert ours.tokens.tolist() == theirs.tokens.tolist()
            for mine, other in zip(ours.arms.values(), theirs.arms.values(), strict=True):
                assert mine.committed.tolist() == other.committed.tolist()
