"""Bandits learn from their own rounds which arm pays, in tokens or in tokens per second."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import RouterMemory
from draftgym.policies.routers.bandits import Bandit, TimedBandit, TokenBandit

ARMS = (Arm("eagle3", 4), Arm("dflash", 4))
EAGLE_IS_DEAR = CostModel(
    host={},
    target_pass={1: Curve((1,), (1.0,))},
    draft={"eagle3": Curve((1,), (3.0,)), "dflash": Curve((1,), (0.1,))},
    catch_up={"eagle3": Curve((1,), (0.0,)), "dflash": Curve((1,), (0.0,))},
)
"""4.0 seconds a round against 1.1."""


def serve(
    bandit: Bandit, chances: tuple[float, float], rounds: int, episodes: int = 1
) -> list[int]:
    """Plays rounds in which each arm's tokens are accepted with a chance; the actions taken."""
    rng = np.random.default_rng(0)
    memory, taken = RouterMemory(ARMS, episodes), []
    context = np.full(episodes, 20)
    for _ in range(rounds):
        signals = memory.signals(np.zeros((episodes, 4), np.float32), context, np.ones(episodes))
        actions, _ = bandit.predict({"signals": signals})
        accepted = rng.random((episodes, 4)) < np.array(chances)[actions][:, None]
        memory.update(actions, 1 + accepted.cumprod(1).sum(1), context)
        context = context + 1
        taken += actions.tolist()
    return taken


@pytest.mark.parametrize(("chances", "better"), [((0.9, 0.2), 0), ((0.2, 0.9), 1)])
def test_the_arm_that_commits_more_is_found(chances: tuple[float, float], better: int) -> None:
    late = serve(TokenBandit(ARMS), chances, 600)[300:]
    assert np.mean(np.array(late) == better) > 0.8


def test_by_seconds_the_dear_arm_must_commit_much_more() -> None:
    chances = (0.9, 0.5)  # about 4.1 and 1.9 tokens: 1.0 and 1.8 a second
    late = serve(TimedBandit(ARMS, EAGLE_IS_DEAR), chances, 600)[300:]
    assert np.mean(late) > 0.8
    assert np.mean(serve(TokenBandit(ARMS), chances, 600)[300:]) < 0.3


def test_measured_seconds_tell_stopping_rules_apart() -> None:
    chances = (0.9, 0.8)  # full drafts of both would cost the same
    dear_first = TimedBandit(ARMS, EAGLE_IS_DEAR, seconds=[3.0, 1.0])
    assert np.mean(serve(dear_first, chances, 600)[300:]) > 0.8


def test_statistics_are_exact_and_live_on_between_texts() -> None:
    bandit, memory = TokenBandit(ARMS), RouterMemory(ARMS)
    told = {0: [3, 5, 1], 1: [2, 2]}

    def observe() -> dict[str, np.ndarray]:
        text, context = np.zeros((1, 4), np.float32), np.array([9])
        return {"signals": memory.signals(text, context, np.ones(1))[0]}

    bandit.predict(observe())
    assert not bandit.rounds.any(), "nothing happened yet"
    for arm, committed in told.items():
        for tokens in committed:
            memory.update(np.array([arm]), np.array([tokens]), np.array([9]))
            bandit.predict(observe())
    memory.forget(np.array([0]))
    bandit.predict(observe())  # a new text has nothing to report
    assert bandit.rounds.tolist() == [3, 2] and bandit.mean_tokens.tolist() == [3, 2]


def test_every_arm_is_tried_first_even_by_a_batch() -> None:
    assert sorted(serve(TokenBandit(ARMS), (0.5, 0.5), 2)) == [0, 1]
    assert sorted(serve(TokenBandit(ARMS), (0.5, 0.5), 1, episodes=2)) == [0, 1]


@pytest.mark.parametrize("episodes", [1, 4])
def test_the_same_rounds_give_the_same_choices(episodes: int) -> None:
    first, again = (serve(TokenBandit(ARMS), (0.7, 0.6), 80, episodes) for _ in range(2))
    assert first == again and set(first) == {0, 1}


def test_a_batch_learns_what_its_members_would_teach() -> None:
    together, apart = TokenBandit(ARMS), TokenBandit(ARMS)
    memory = RouterMemory(ARMS, 3)
    memory.update(np.array([0, 1, 0]), np.array([4, 2, 1]), np.array([5, 5, 5]))
    signals = memory.signals(np.zeros((3, 4), np.float32), np.full(3, 9), np.ones(3))
    actions, _ = together.predict({"signals": signals})
    assert actions.shape == (3,) and actions.dtype == np.int64
    for row in signals:
        assert type(apart.predict({"signals": row})[0]) is int
    assert together.rounds.tolist() == apart.rounds.tolist() == [2, 1]
    assert together.tokens.tolist() == apart.tokens.tolist() == [5, 2]


def test_a_bandit_serves_real_decoding(target: Target, drafters: dict[str, Drafter]) -> None:
    bandit = TokenBandit(ARMS)
    decoder = SpeculativeDecoder(target, drafters, bandit)
    texts = [decoder.generate(torch.tensor([5, 9, 7 + i]), 24) for i in range(2)]
    reported = [item.record for text in texts for item in text.rounds[:-1]]
    assert bandit.rounds.sum() == len(reported)
    assert bandit.tokens.sum() == sum(len(record.committed) for record in reported)


def test_a_bandit_needs_arms() -> None:
    with pytest.raises(DraftgymError, match="no arms"):
        TokenBandit(())
