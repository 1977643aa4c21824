"""Traces of several temperatures are one set to learn from; other differences are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train_router
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.traces.trace import TraceSet
from tests.traces import save_traces, tiny_traces


@pytest.fixture(scope="module")
def greedy(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, drafters)


@pytest.fixture(scope="module")
def sampled(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, drafters, 0.7)


def test_texts_of_all_temperatures_are_there_and_set_aside_by_their_prompts(
    greedy: TraceSet, sampled: TraceSet
) -> None:
    both = greedy.mixed_with([sampled])
    assert both.positions == greedy.positions + sampled.positions
    learned, aside = both.split(0.3)
    names = [{text.question_id for text in part.texts} for part in (learned, aside)]
    assert not names[0] & names[1]
    assert len(aside.texts) == 2 * len(greedy.split(0.3)[1].texts)


def test_a_router_trains_on_the_mixture(
    greedy: TraceSet, sampled: TraceSet, tmp_path: Path
) -> None:
    args = RouterArgs(
        traces=save_traces(greedy, tmp_path / "greedy"),
        also=(save_traces(sampled, tmp_path / "sampled"),),
        run=tmp_path / "run",
        rounds=64,
        ppo=RouterPPO(n_envs=4, n_steps=8, batch_size=16, n_epochs=1),
    )
    train_router(args)
    assert (tmp_path / "run" / "policy" / "policy.json").is_file()


def test_other_differences_are_refused_with_a_remedy(greedy: TraceSet, sampled: TraceSet) -> None:
    longer = replace(sampled, origin=replace(sampled.origin, max_new_tokens=41))
    with pytest.raises(DraftgymError, match="max_new_tokens") as caught:
        greedy.mixed_with([longer])
    assert "token limit" in caught.value.remedy
