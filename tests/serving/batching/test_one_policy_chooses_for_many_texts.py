"""A policy of single texts sees in a batch what it sees alone, and is asked once a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import RouterObserver, observe_together, signal_names
from draftgym.decoding.observers.two_stage import two_stage_names
from draftgym.decoding.round import play_round
from draftgym.policies.base import Policy
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.bandits import TokenBandit
from draftgym.serving.batching.policies import EachText, make_batch_policy
from tests.serving.writings import play, some_writings, writing

ARMS = tuple(map(parse_arm, ("eagle3:3", "ngram:4", "plain")))


class Witness(Policy):
    """Takes its arms in turn and keeps what it was shown."""

    def __init__(self, arms: Sequence[Arm] = ARMS, observes: bool = True) -> None:
        self.name, self.arms, self.observes = "witness", tuple(arms), observes
        self.shown: list[Mapping[str, NDArray[np.float32]]] = []

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The next arm, one further for every text."""
        self.shown.append(observation)
        return (np.arange(count) + len(self.shown)) % len(self.arms)

    def signal(self, name: str) -> float:
        """What the first text's newest observation says."""
        return float(self.shown[-1]["signals"][0][signal_names(self.arms).index(name)])


def test_every_text_is_described_as_if_it_were_alone(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    texts, witness = some_writings(target, drafters, 4), Witness()
    alone = [text.session for text in some_writings(target, drafters, 4)]
    observers = [RouterObserver(ARMS) for _ in alone]
    policy = EachText(witness)
    for number in range(1, 7):
        wanted = [o.observe(session) for o, session in zip(observers, alone, strict=True)]
        play(policy, texts)
        assert len(witness.shown) == number  # one question for all
        for key in ("signals", "hidden"):
            stacked = np.stack([observation[key] for observation in wanted])
            np.testing.assert_allclose(witness.shown[-1][key], stacked, atol=1e-5)
        for at, (observer, session) in enumerate(zip(observers, alone, strict=True)):
            action = (at + number) % len(ARMS)
            observer.update(action, play_round(session, ARMS[action]))
    assert [text.session.token_ids for text in texts] == [one.token_ids for one in alone]


def test_a_policy_decides_twice_for_every_text(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    asked: list[int] = []

    class Twice(Witness):
        """Tells when it is asked while an arm drafts."""

        levels = (0.0, 0.5)

        def choose(
            self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
        ) -> NDArray[np.int64]:
            """As a witness; of levels the first."""
            if observation["signals"][0][two_stage_names(ARMS).index("second")]:
                asked.append(count)
                return np.zeros(count, np.int64)
            return super().choose(observation, count, deterministic)

    once, twice = (some_writings(target, drafters, 3) for _ in range(2))
    policies = EachText(Witness()), EachText(Twice())
    for _ in range(6):
        for policy, texts in zip(policies, (once, twice), strict=True):
            play(policy, texts)
    assert set(asked) == {1} and len(asked) > 5
    assert [one.session.token_ids for one in twice] == [one.session.token_ids for one in once]


def test_where_nothing_is_observed_nothing_is_built(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    texts, witness = some_writings(target, drafters, 2), Witness(observes=False)
    play(EachText(witness), texts)
    assert witness.shown == [{}]
    assert not any(text.memory for text in texts)


@pytest.mark.parametrize("spec", ["plain", "eagle3:2", "entropy", "ucb", "random@eagle3:2,plain"])
def test_every_policy_that_decodes_chooses_for_a_batch(
    target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    texts, policy = some_writings(target, drafters, 3), make_batch_policy(spec, drafters, target)
    assert policy.name == make_policy(spec, drafters, target).name
    for _ in range(3):
        assert all(record.arm in policy.arms for record in play(policy, texts))


@pytest.mark.parametrize(
    ("played", "said"),
    [
        ("eagle3:2", {"last_arm_eagle3:3": 1}),  # cut
        ("ngram:16", {"last_arm_ngram:4": 1}),  # prompt lookup before a `>`
        ("plain", {"last_arm_plain": 1}),  # the guard
        ("dflash:4", {}),
    ],
)
def test_a_round_is_told_by_the_arm_that_was_played(
    target: Target, drafters: dict[str, Drafter], played: str, said: dict[str, float]
) -> None:
    texts, witness = some_writings(target, drafters, 1), Witness()
    record = play(EachText(witness), texts, [parse_arm(played)])[0]
    EachText(witness).choose(texts, texts)
    names = [name for name in signal_names(ARMS) if name.startswith("last_arm")]
    assert {name: value for name in names if (value := witness.signal(name))} == said
    assert witness.signal("last_committed") == len(record.committed) / 4


def test_a_round_of_no_own_arm_says_nothing_of_own_drafters(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    texts, witness = some_writings(target, drafters, 1), Witness(ARMS[:2])
    policy = EachText(witness)
    play(policy, texts, [parse_arm("eagle3:3")])
    play(policy, texts, [parse_arm("plain")])
    before = witness.signal("acceptance_eagle3")
    policy.choose(texts, texts)
    assert witness.signal("acceptance_eagle3") == before != 1.0


def test_a_bandit_learns_every_own_round_once(target: Target, drafters: dict[str, Drafter]) -> None:
    texts, bandit = some_writings(target, drafters, 3), TokenBandit(ARMS[:2])
    policy = EachText(bandit)
    own = 0
    for number in range(6):
        held_back = number % 3 == 1
        play(policy, texts, [parse_arm("plain")] * 3 if held_back else None)
        own += 0 if held_back else 3
    policy.choose(texts, texts)
    assert bandit.rounds.sum() == own


def test_texts_may_join_and_leave(target: Target, drafters: dict[str, Drafter]) -> None:
    witness = Witness()
    policy, texts = EachText(witness), some_writings(target, drafters, 2)
    play(policy, texts)
    texts = [texts[1], writing(target, drafters, range(20, 30))]
    play(policy, texts)
    places = [signal_names(ARMS).index(f"last_arm_{arm}") for arm in ARMS]
    rows: Any = witness.shown[-1]["signals"][:, places]
    assert rows[0].sum() == 1 and rows[1].sum() == 0


def test_several_sessions_are_read_at_once(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    from draftgym.decoding.observers import observation

    reads = []
    original = observation.read_together

    def counted(tensors: Any) -> Any:
        reads.append(len(tensors))
        return original(tensors)

    monkeypatch.setattr(observation, "read_together", counted)
    sessions = [text.session for text in some_writings(target, drafters, 5)]
    observe_together([RouterObserver(ARMS) for _ in sessions], sessions)
    assert len(reads) == 1
