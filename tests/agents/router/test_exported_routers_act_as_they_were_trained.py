"""What a router's training exports is what it trained, and the best of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import draftgym.agents.router.live
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.network import deployable_network
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from draftgym.policies.base import Policy
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    load_learned_policy,
    save_learned_policy,
)
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet
from tests.agents.router_runs import (
    MODES,
    Train,
    agent_of,
    final_weights,
    observations,
    rounds_of,
    router_env,
)
from tests.tiny import ARMS


@pytest.mark.parametrize("mode", MODES)
def test_the_exported_policy_acts_as_sb3s(train: Train, target: Target, mode: str) -> None:
    args = train(rounds=64, **MODES[mode])
    model, batch = agent_of(args), observations(router_env(args), 300)
    exported = args.run / "last"
    torch.manual_seed(0)
    with torch.no_grad():  # agents so young may choose one arm alone, which would show little
        for weight in model.policy.parameters():
            weight.add_(torch.randn_like(weight))
    network = deployable_network(model)
    save_learned_policy(network, [parse_arm(arm) for arm in ARMS], target, exported, {})
    wanted, _ = model.predict(batch, deterministic=True)
    actions, _ = load_learned_policy(exported, target).predict(batch, deterministic=True)
    assert len(set(wanted.tolist())) > 1
    assert actions.tolist() == wanted.tolist()


def test_the_exported_policy_samples_as_sb3s(train: Train) -> None:
    args = train()
    env, model = router_env(args), agent_of(args)
    with torch.no_grad():
        scores = model.policy.action_net
        assert isinstance(scores, torch.nn.Linear)
        scores.weight.normal_()  # young policies choose nearly at random
    one = observations(env, 1)
    tensors = {key: torch.from_numpy(value) for key, value in one.items()}
    choices = torch.arange(len(env.arms))
    model.policy.set_training_mode(False)  # as SB3 does wherever it acts
    distribution = model.policy.get_distribution(tensors)  # type: ignore[arg-type]
    probabilities = distribution.log_prob(choices).exp().detach()
    network = deployable_network(model)
    ours = network(**tensors).softmax(-1)[0].detach()
    torch.testing.assert_close(ours, probabilities)
    many = {key: np.repeat(value, 20_000, axis=0) for key, value in one.items()}
    drawn, _ = LearnedPolicy(network, env.arms).predict(many)
    shares = np.bincount(drawn, minlength=len(env.arms)) / len(drawn)
    assert float(probabilities.max()) > 0.4
    np.testing.assert_allclose(shares, probabilities.numpy(), atol=0.015)


@pytest.mark.parametrize("spec", ["plain", "eagle3:3", "learned"])
def test_sb3_evaluates_our_policies(
    train: Train, target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    args = train()
    policy: Policy = (
        load_learned_policy(args.run / "policy", target)
        if spec == "learned"
        else make_policy(spec, drafters, target)
    )
    arms = tuple(map(str, policy.arms))
    env, same = (router_env(replace(args, arms=arms)) for _ in range(2))
    env.reset(seed=5)
    returns, lengths = evaluate_policy(
        policy, Monitor(env), n_eval_episodes=3, return_episode_rewards=True
    )
    same.reset(seed=5)
    wanted = [play(same, policy) for _ in range(3)]
    assert isinstance(returns, list) and isinstance(lengths, list)
    assert returns == pytest.approx(wanted, abs=1e-4)
    if spec == "plain":
        assert returns == pytest.approx([0.0] * 3) and lengths == [23] * 3


def play(env: RouterEnv, policy: Policy) -> float:
    """Return of one episode, by hand."""
    observation, _ = env.reset()
    total, done = 0.0, False
    while not done:
        action, _ = policy.predict(observation, deterministic=True)
        observation, reward, done, _, _ = env.step(action)
        total += reward
    return total


def test_training_on_traces_exports_the_best_of_what_it_validated(train: Train) -> None:
    args = train(rounds=300, live=False, validation=0.5)
    best = json.loads((args.run / "best.json").read_text())["tokens_per_target_step"]
    body = json.loads((args.run / "policy" / "policy.json").read_text())
    assert body["provenance"]["validation_tokens_per_target_step"] == best
    _, aside = tiny_split(args)
    policy = load_learned_policy(
        args.run / "policy", draftgym.agents.router.live.load_target("patched")
    )
    played = play_policy(aside, policy)
    speed = sum(text.tokens for text in played) / sum(text.steps for text in played)
    assert speed == pytest.approx(best)


def tiny_split(args: RouterArgs) -> tuple[TraceSet, TraceSet]:
    """What a run trains on, and what it sets aside."""
    return read_traces(args.traces).split(args.validation)


def test_an_agent_trained_on_traces_goes_on_with_live_decoding(train: Train) -> None:
    first = train(live=False)
    tuned = train(live=True, init=first.run, run=first.run / "tuned", rounds=32)
    assert rounds_of(tuned) == 32, "counted anew"
    before = agent_of(replace(first, live=False))
    untouched = train(live=True, init=first.run, run=first.run / "same", rounds=1, minutes=0.0)
    inherited, after = final_weights(untouched), final_weights(tuned)
    for name, weight in deployable_network(before).state_dict().items():
        assert torch.equal(weight, inherited[name]), "a single round is no update"
    assert not torch.equal(after["scores.weight"], inherited["scores.weight"])
