"""Every policy answers `predict` as Stable-Baselines3 asks it, and names lead to policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from draftgym.decoding.arms import Arm, default_arms, parse_arm
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import TEXT_SIGNALS, signal_names
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.policies.base import Policy
from draftgym.policies.registry import all_policies, default_policy, make_policy
from draftgym.policies.routers.rules import EntropyPolicy, RandomPolicy, tuned_threshold

SPECS = [
    *("plain", "eagle3", "eagle3:2", "dflash:3", "ngram", "random", "entropy", "entropy:1.5"),
    *("random@eagle3:2,ngram:8,plain", "entropy:1.5@eagle3:2,dflash:3"),
    *("ucb", "ucb:0.5", "ucb@eagle3:2,plain", "ucb-time@eagle3:2,dflash:3x5,plain"),
    *("survival@eagle3:3~0.03,eagle3:3", "survival:30@eagle3:3~0.03,eagle3:3"),
    "entropy:1.5@ngram:4@3>eagle3:3~0.1,ngram:4>dflash:3",
    *("roc", "svip:0.6@ngram:4>eagle3:3", "confidence:0.3@small:4"),
]
BY_OBSERVATION = [s for s in SPECS if not s.startswith(("random", "ucb", "survival@"))]
"""Choose by the observation alone; the others by the order of questions, too."""
ARMS = (Arm("eagle3", 4), Arm("dflash", 4))


def costs(arms: Sequence[Arm] = ()) -> CostModel:
    """Rounds that all cost about the same."""
    flat = Curve((1,), (1.0,))
    names = ("eagle3", "dflash", "small", "ngram")
    each = dict.fromkeys(names, flat)
    return CostModel({}, {1: flat}, each, each, {name: {1: flat} for name in names})


def observations(count: int, policy: Policy, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of observations with random contents."""
    rng = np.random.default_rng(seed)
    width = len(signal_names(policy.arms))
    return {
        "signals": rng.uniform(0, 3, (count, width)).astype(np.float32),
        "hidden": rng.normal(size=(count, 32)).astype(np.float32),
    }


class ArmCounter(gymnasium.Env[dict[str, np.ndarray], Any]):
    """Ten steps; the reward is the arm's index, so the return shows what was chosen."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.step_count = policy, 0
        shapes = {key: value.shape[1:] for key, value in observations(1, policy).items()}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape) for key, shape in shapes.items()}
        )
        self.action_space = spaces.Discrete(len(policy.arms))

    def _observe(self) -> dict[str, np.ndarray]:
        return {k: v[0] for k, v in observations(1, self.policy, self.step_count).items()}

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Back to step 0."""
        super().reset(**kwargs)
        self.step_count = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Counts."""
        assert self.action_space.contains(action)
        self.step_count += 1
        return self._observe(), float(action), self.step_count == 10, False, {}


@pytest.mark.parametrize("spec", SPECS)
def test_one_observation_gives_an_int_and_a_batch_an_array(
    target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    policy = make_policy(spec, drafters, target, cost_model=costs)
    batch = observations(5, policy)
    single = {key: value[0] for key, value in batch.items()}
    action, state = policy.predict(single, state="kept")
    assert type(action) is int and 0 <= action < len(policy.arms) and state == "kept"
    actions, _ = policy.predict(batch, episode_start=np.zeros(5, dtype=bool))
    assert isinstance(actions, np.ndarray) and actions.shape == (5,)
    assert np.issubdtype(actions.dtype, np.integer) and (actions < len(policy.arms)).all()
    if not policy.observes:
        assert type(policy.predict({})[0]) is int


@pytest.mark.parametrize("spec", BY_OBSERVATION)
def test_a_batch_is_answered_like_its_members(
    target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    policy = make_policy(spec, drafters, target, cost_model=costs)
    batch = observations(20, policy)
    members = [{key: value[i] for key, value in batch.items()} for i in range(20)]
    assert policy.predict(batch)[0].tolist() == [policy.predict(one)[0] for one in members]


@pytest.mark.parametrize("spec", SPECS)
def test_sb3_evaluates_every_policy(
    target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    policy = make_policy(spec, drafters, target, cost_model=costs)
    env = DummyVecEnv([lambda: ArmCounter(policy)] * 3)
    returns, lengths = evaluate_policy(
        policy, env, n_eval_episodes=3, return_episode_rewards=True, warn=False
    )
    assert lengths == [10] * 3
    if spec == "entropy:1.5":  # both arms occur, and each of the environments sees the same
        assert 0 < returns[0] < 10 and len(set(returns)) == 1


def test_entropy_above_the_threshold_takes_the_autoregressive_arm() -> None:
    policy = EntropyPolicy(*ARMS, threshold=1.5)
    signals = np.full((4, len(signal_names(ARMS))), 9.0, dtype=np.float32)
    signals[:, TEXT_SIGNALS.index("entropy")] = [0.0, 1.4, 1.5, 1.6]
    assert policy.predict({"signals": signals})[0].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(("threshold", "drafter"), [(0.0, "eagle3"), (50.0, "dflash")])
def test_extreme_thresholds_are_fixed_arms_in_real_decoding(
    target: Target, drafters: dict[str, Drafter], threshold: float, drafter: str
) -> None:
    policy = make_policy(f"entropy:{threshold}", drafters, target)
    result = SpeculativeDecoder(target, drafters, policy).generate(torch.tensor([5, 9, 7]), 24)
    assert {item.record.arm for item in result.rounds} == {parse_arm(drafter)}


def test_the_shipped_threshold_is_the_default() -> None:
    assert EntropyPolicy(*ARMS).threshold == tuned_threshold() >= 0


def test_equal_seeds_throw_equal_dice_and_every_arm_occurs() -> None:
    def throws(seed: int) -> list[int]:
        policy = RandomPolicy(ARMS, seed)
        return [policy.predict({})[0] for _ in range(64)]

    assert throws(3) == throws(3) != throws(4)
    assert Counter(throws(3)).keys() == {0, 1}


def test_every_listed_policy_can_be_made(target: Target, drafters: dict[str, Drafter]) -> None:
    names = all_policies(drafters)
    assert names[:2] == ["plain", default_policy(drafters)], "the strongest rule stands first"
    assert names[2:] == ["eagle3", "dflash", "small", "ngram", "random", "entropy"]
    made = [make_policy(name, drafters, target) for name in names]
    assert [policy.name for policy in made] == names
    assert made[2].arms == default_arms({"eagle3": drafters["eagle3"]})
    assert make_policy("eagle3:2", drafters, target).arms == (Arm("eagle3", 2),)
    only_ngram = {"ngram": drafters["ngram"]}
    assert all_policies(only_ngram) == ["plain", "ngram"]
    assert all_policies(only_ngram, Path("mine"))[-1] == "mine"


def test_the_default_policy_copies_before_it_asks_a_network(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    everyone = drafters | {"suffix": SuffixDrafter()}
    assert default_policy(everyone) == "suffix~0.7>eagle3:3x6~0.06"
    assert default_policy(everyone, dear_rows=False) == "suffix~0.7>eagle3:3x6"
    assert default_policy(everyone, trees=False) == "suffix~0.7>eagle3"
    assert default_policy({"dflash": drafters["dflash"]}) == "dflash:3x6~0.06"
    assert default_policy({"ngram": drafters["ngram"]}) == "ngram"
    assert default_policy({}) == "plain"
    for trees in (True, False):
        made = make_policy(default_policy(everyone, trees), everyone, target)
        assert [part.drafter for part in made.arms[0].parts] == ["suffix", "eagle3"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("egle3", "did you mean 'eagle3'"),
        ("entropi", "did you mean 'entropy'"),
        ("eagle3:zero", "positive number"),
        ("eagle3:99", "at most"),
        ("entropy:high", "nats"),
        ("entropy:-1", "0 or more"),
        ("entropy:nan", "0 or more"),
        ("random:3", "unknown policy"),
        ("random@", "empty arm"),
        ("random@eagle3:2,,plain", "empty arm"),
        ("random@eagle3:2,plain,eagle3:2", "twice"),
        ("random@egle3:2", "did you mean 'eagle3'"),
        ("random@eagle3:two", "positive number"),
        ("ranodm@eagle3:2", "did you mean 'random'"),
        ("eagle3@ngram:8", "match length"),
        ("ngram:8>eagle9:2", "unknown drafter"),
        ("entropy@eagle3:2", "two arms, not 1"),
        ("entropy:1.5@eagle3:2,dflash:2,plain", "two arms, not 3"),
        ("ucb:much", "factor of the bonus"),
        ("ucb:-1", "0 or more"),
        ("ucb-time", "what rounds cost"),
        ("survival@eagle3:3~0.1,eagle3:3", "what rounds cost"),
        ("no/such/folder", "does not exist"),
        (__file__, "is a file"),
    ],
)
def test_wrong_names_are_answered_with_a_remedy(
    target: Target, drafters: dict[str, Drafter], spec: str, says: str
) -> None:
    with pytest.raises(DraftgymError, match="remedy") as caught:
        make_policy(spec, drafters, target)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("survival", "more than one ~"),
        ("survival@eagle3:3~0.1,dflash:3", "more than one ~"),
        ("survival@ngram:4~0.5>eagle3:3,ngram:4>eagle3:3~0.1", "more than one ~"),
        ("survival:-1@eagle3:3~0.1,eagle3:3", "tokens a second"),
        ("survival:dear@eagle3:3~0.1,eagle3:3", "tokens a second"),
    ],
)
def test_survival_budgets_need_arms_that_differ_in_one_probability(
    target: Target, drafters: dict[str, Drafter], spec: str, says: str
) -> None:
    with pytest.raises(DraftgymError, match="remedy") as caught:
        make_policy(spec, drafters, target, cost_model=costs)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "arm"),
    [
        ("ngram:8>eagle3:3x6", "ngram:8>eagle3:3x6"),
        ("ngram@3>eagle3~0.1", "ngram:8@3>eagle3:2~0.1"),
        ("suffix~0.5", "suffix:16~0.5"),
        ("eagle3:2+ngram:4", "eagle3:2+ngram:4"),
    ],
)
def test_arms_of_several_drafters_are_policies(
    target: Target, drafters: dict[str, Drafter], spec: str, arm: str
) -> None:
    policy = make_policy(spec, drafters | {"suffix": SuffixDrafter()}, target)
    assert policy.name == spec and [*map(str, policy.arms)] == [arm]


def test_choosers_take_the_arms_they_are_told(target: Target, drafters: dict[str, Drafter]) -> None:
    for name in ("random", "ucb", "ucb-time", "ucb-time:0.2"):
        told = make_policy(f"{name}@eagle3:2,ngram:8,plain", drafters, target, 0, costs)
        assert list(map(str, told.arms)) == ["eagle3:2", "ngram:8", "plain"]
        assert told.name == f"{name}@eagle3:2,ngram:8,plain"
        assert make_policy(name, drafters, target, 0, costs).arms == default_arms(drafters)
    pair = make_policy("entropy:0.5@ngram:8,plain", {"ngram": drafters["ngram"]}, target)
    assert list(map(str, pair.arms)) == ["ngram:8", "plain"]
    assert isinstance(pair, EntropyPolicy) and pair.threshold == 0.5


def test_costs_are_loaded_only_where_they_are_needed(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    def refuse(arms: Sequence[Arm]) -> CostModel:
        raise AssertionError("loaded")

    for spec in ("plain", "random", "ucb", "entropy"):
        make_policy(spec, drafters, target, cost_model=refuse)
    with pytest.raises(AssertionError, match="loaded"):
        make_policy("ucb-time", drafters, target, cost_model=refuse)


def test_entropy_needs_both_paradigms(target: Target, drafters: dict[str, Drafter]) -> None:
    with pytest.raises(DraftgymError, match="--drafters"):
        make_policy("entropy", {"ngram": drafters["ngram"]}, target)


def test_a_target_without_a_shipped_router_says_so(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    with pytest.raises(DraftgymError, match="no router ships"):
        make_policy("router", drafters, target)
