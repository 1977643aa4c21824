"""Train a router: which drafter, how many tokens, each round.

    $ draftgym collect --prompts train --out runs/traces    # once
    $ draftgym train-router
    $ draftgym train-router --algorithm dqn --run runs/router-dqn
    $ draftgym train-router --arms eagle3:2 dflash:2 ngram:8 plain --rounds 2000000
    $ draftgym train-router --live --init runs/router --run runs/router-live   # fine-tune
    $ tensorboard --logdir runs                    # watch it

On traces no model is loaded, and a million rounds take minutes; live decoding plays some twenty
rounds a second. A run folder is resumed when it exists; `<run>/policy` is the deployable policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

from draftgym.agents.common.trainer import POLICY, Trainer, open_traces, write_card
from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.agents.router.args import RouterArgs, check_args, offered_arms
from draftgym.agents.router.network import agent_arguments, deployable_network
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.costs.cost_model import CostModel, write_cost_model
from draftgym.decoding.costs.published import named_cost_model
from draftgym.decoding.observers.two_stage import LEVELS
from draftgym.decoding.provenance import sole_writer
from draftgym.envs.reward import Reward
from draftgym.envs.router.replay import RouterReplayVectorEnv
from draftgym.envs.router.two_stage import TwoStageReplayVectorEnv
from draftgym.policies.base import Policy
from draftgym.policies.folder import PolicyTarget
from draftgym.policies.routers.learned import LearnedPolicy, save_learned_policy
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.replay.two_stage import replay_for
from draftgym.rollouts.traces.trace import TraceSet

if TYPE_CHECKING:
    from draftgym.agents.router.live import CountedRounds

COLLECT = (
    "draftgym collect --prompts train --out {folder}   (once; 150 texts, some ten thousand "
    "positions: 3 to 8 minutes on two cores), or --live to train on decoding itself"
)


def train_router(args: RouterArgs) -> Path:
    """Trains on the traces in `args.traces`, or live, saves and exports.

    Returns:
        The folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, no traces, or a run folder that cannot be resumed with them.
    """
    check_args(args)
    with sole_writer(args.run, "--run"):
        if args.live:
            from draftgym.agents.router.live import live_experience  # loads models

            experience = live_experience(args)
        else:
            first, *others = (
                open_traces(folder, COLLECT.format(folder=folder), args.stream)
                for folder in (args.traces, *args.also)
            )
            traces = first.mixed_with(others)
            experience = replayed_experience(traces, args)
        RouterTrainer(args, experience, args.run).train()
    return args.run / POLICY


def train(traces: TraceSet, settings: RouterArgs, reward: Reward | None = None) -> LearnedPolicy:
    """Trains on loaded traces, in memory: no file is read or written.

    Args:
        traces: What every arm would do, of training prompts.
        settings: How; `traces`, `run` and what is live are not read.
        reward: What rounds are worth, instead of tokens less the price of their time.

    Returns:
        The best policy on texts set aside: by tokens per target step, or by its own reward.

    Raises:
        DraftgymError: Bad settings, or arms that were not traced.
    """
    check_args(settings)
    trainer = RouterTrainer(settings, replayed_experience(traces, settings), None, reward)
    trainer.train()
    return trainer.best_policy()


@dataclass(frozen=True)
class Experience:
    """An environment, and whom the policy is for.

    Attributes:
        env: What the agent plays.
        counts: What counts its rounds.
        arms: What it chooses from.
        target: Whom the policy is for.
        dtype: What it runs in.
        drafters: Names of the drafters.
        cost_model: What rounds cost.
        validation: Texts to choose the best policy by; None for live decoding.
        kind: What the card says: `replayed from traces` or `live decoding`.
    """

    env: VecEnv
    counts: RouterReplayVectorEnv | CountedRounds
    arms: tuple[Arm, ...]
    target: PolicyTarget
    dtype: str
    drafters: tuple[str, ...]
    cost_model: CostModel
    validation: TraceSet | None
    kind: str


def replayed_experience(traces: TraceSet, args: RouterArgs) -> Experience:
    """Many episodes over traces, part of which is set aside.

    Raises:
        DraftgymError: Arms or categories that were not traced.
    """
    if args.categories:
        traces = traces.only(args.categories)
    origin = traces.origin
    arms = tuple(map(parse_arm, args.arms)) or offered_arms(traces)
    texts, validation = traces.split(args.validation)
    names = list(map(str, arms))
    kind, model = RouterReplayVectorEnv, origin.cost_model
    if args.twice:
        kind = TwoStageReplayVectorEnv
    if args.cost_model is not None:
        model = named_cost_model(args.cost_model, origin.drafters)
    env = kind(args.agent.n_envs, texts, names, args.latency_price, model)
    return Experience(
        SB3VecEnv(env, args.seed),
        env,
        arms,
        origin,
        origin.dtype,
        tuple(origin.drafters),
        model,
        validation,
        f"replayed from traces of {len(texts.texts)} texts",
    )


def reward_per_token(
    traces: TraceSet, policy: Policy, reward: Reward, model: CostModel | None = None
) -> float:
    """What a policy's rounds of all texts are worth, over the tokens they wrote."""
    count = sum(len(text) > 0 for text in traces.texts)
    replay, going = replay_for(policy, traces, count, model), np.ones(count, dtype=np.bool_)
    tokens, total = 0, 0.0
    while going.any():
        actions, _ = policy.predict(replay.observe(), deterministic=True)
        played = replay.step(actions)  # finished episodes stay where they are
        total += float(reward(played.committed, played.steps, played.arms)[going].sum())
        tokens += int(played.committed[going].sum())
        going &= ~played.done
    return total / tokens


class RouterTrainer(Trainer[LearnedPolicy]):
    """Trains a router.

    Args:
        args: Settings, checked.
        experience: What it is trained on.
        run: Run folder; None keeps everything in memory.
        reward: See `train`; on traces alone.
    """

    args: RouterArgs
    agent: PPO | DQN

    def __init__(
        self,
        args: RouterArgs,
        experience: Experience,
        run: Path | None,
        reward: Reward | None = None,
    ) -> None:
        self.args, self.run, self.rounds = args, run, args.total_rounds
        self.experience, self.target = experience, experience.target
        self.env, self.counts, self.reward = experience.env, experience.counts, reward
        self.figure = "tokens_per_target_step" if reward is None else "reward_per_token"
        if reward is not None:
            self.env.set_attr("reward", reward)
        self.log_interval = 1 if args.algorithm == "ppo" else 1000
        self.usual_speed = 20 if args.live else 10_000
        self.agent = self.make_agent()
        print(f"target {self.target.name}, {experience.kind}")
        print(f"arms: {' '.join(map(str, experience.arms))}")

    def fresh_agent(self) -> PPO | DQN:
        """An untrained agent, or one that goes on from another run's weights (`--init`)."""
        args, arguments = self.args, agent_arguments(self.args.agent)
        if args.init is None:
            kind = DQN if args.algorithm == "dqn" else PPO
            return kind("MultiInputPolicy", self.env, seed=args.seed, device="cpu", **arguments)
        del arguments["policy_kwargs"]  # the network is the other run's
        agent: PPO | DQN = self.load_agent(args.init, **arguments)
        agent.num_timesteps = 0
        agent.set_random_seed(args.seed)
        return agent

    def identity(self) -> dict[str, Any]:
        """Arms of the same number fit the saved network, but mean something else."""
        arms = [str(arm) for arm in self.experience.arms]
        return {"arms": arms, "target_fingerprint": self.target.fingerprint}

    def episodes(self) -> Any:
        """Replayed ones; those of live decoding are not kept."""
        return None if self.args.live else self.env.snapshot()  # type: ignore[attr-defined]

    def world(self) -> Any:
        """The texts, how many play them side by side, and what rounds are worth."""
        replay = self.env.get_attr("replay", 0)[0]
        texts = [(text.question_id, len(text)) for text in replay.texts]
        return texts, self.env.num_envs, self.identity(), self.args.latency_price

    def go_on(self, episodes: Any) -> None:
        """Replays on from there."""
        self.env.restore(episodes)  # type: ignore[attr-defined]

    def policy(self) -> LearnedPolicy:
        """A copy of what acts."""
        rate = self.agent.exploration_rate if isinstance(self.agent, DQN) else None
        network, arms = deployable_network(self.agent), self.experience.arms
        levels = LEVELS if self.args.twice else ()
        return LearnedPolicy(network, arms, exploration_rate=rate, levels=levels)

    def validate(self) -> float | None:
        """Tokens per target step, or rewards per token, on the texts set aside."""
        texts, model = self.experience.validation, self.experience.cost_model
        if texts is None:
            return None
        if self.reward is not None:
            return reward_per_token(texts, self.policy(), self.reward, model)
        played = play_policy(texts, self.policy(), model)
        return sum(text.tokens for text in played) / sum(text.steps for text in played)

    def charts(self, seconds: float) -> dict[str, float]:
        """Acceptance length, speed, and every arm's share of the rounds."""
        counts = self.experience.counts
        rounds = int(counts.played.sum())
        if rounds < (1 if self.args.live else 5_000):
            return {}
        shares = zip(self.experience.arms, (counts.played / rounds).tolist(), strict=True)
        return {
            "charts/acceptance_length": counts.tokens / rounds,
            "charts/tokens_per_target_step": counts.tokens / counts.steps,
            "charts/rounds_per_second": rounds / seconds,
            **{f"arms/{str(arm).replace(':', '_')}": share for arm, share in shares},
        }

    def write_config(self, folder: Path) -> None:
        """Writes `config.json`, and the costs that rewards are reckoned with."""
        super().write_config(folder)
        write_cost_model(self.experience.cost_model, folder / "cost_model.json")

    def write(self, policy: LearnedPolicy, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Writes the deployable form."""
        rate, levels = policy.exploration_rate, policy.levels
        chosen = policy.network, policy.arms, self.target
        save_learned_policy(*chosen, folder, provenance, rate, levels)

    def card(self, validated: float | None) -> str:
        """The card beside it."""
        made, args = self.experience, self.args
        target = f"{self.target.name}, fingerprint `{self.target.fingerprint}`, {made.dtype}"
        algorithm = f"{args.algorithm.upper()}, seed {args.seed}"
        rows = {
            "target": target,
            "drafters": ", ".join(made.drafters),
            "trained": f"{self.agent.num_timesteps} rounds {made.kind}, {algorithm}",
            "reward": f"tokens - price x target steps, price {args.latency_price}",
        }
        if validated is not None:
            rows["texts set aside"] = f"{validated:.3f} tokens per target step"
        return write_card(
            f"Router for {self.target.name}",
            "Chooses each round of speculative decoding among "
            f"{', '.join(f'`{arm}`' for arm in made.arms)}.",
            rows,
            '    draftgym generate --policy FOLDER --prompt "..."\n'
            "    draftgym evaluate --policies FOLDER",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-router`."""
    train_router(
        tyro.cli(RouterArgs, args=arguments, description=__doc__, prog="draftgym train-router")
    )
