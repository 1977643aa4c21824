"""What a router learns from: replayed traces or live decoding, behind one face."""

from __future__ import annotations

from dataclasses import dataclass

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.vec_env import ReplayVecEnv
from draftgym.decoding.arms import PLAIN, Arm, parse_arm
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.latency import CostModel
from draftgym.decoding.model.target import load_target
from draftgym.drafters.loading import load_drafters
from draftgym.envs.router.live import RouterEnv
from draftgym.rollouts.traces.collect import DEFAULT_ARMS, CollectArgs, collect
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.shards import shards_in
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True)
class Experience:
    """An environment, and whom the policy is for.

    Attributes:
        env: What the agent plays.
        arms: What it chooses from.
        target: Name of the target.
        fingerprint: Hash of its weights.
        dtype: What it runs in.
        drafters: Names of the drafters.
        cost_model: What rounds cost.
        validation: Texts to choose the best policy by; None for live decoding.
        kind: What the card says: `replayed from traces` or `live decoding`.
    """

    env: VecEnv
    arms: tuple[Arm, ...]
    target: str
    fingerprint: str
    dtype: str
    drafters: tuple[str, ...]
    cost_model: CostModel
    validation: TraceSet | None
    kind: str


def make_experience(args: RouterArgs) -> Experience:
    """What a run trains on.

    Raises:
        DraftgymError: Bad settings, damaged traces, arms that were not traced.
    """
    return _live(args) if args.live else _replayed(args)


def _replayed(args: RouterArgs) -> Experience:
    traces = traces_of(args)
    if args.categories:
        traces = traces.only(args.categories)
    arms = tuple(map(parse_arm, args.arms or (*traces.origin.arms, PLAIN)))
    train, validation = traces.split(args.validation)
    count = args.ppo.n_envs if args.algorithm == "ppo" else args.dqn.n_envs
    env = ReplayVecEnv(train, arms, count, args.latency_price, seed=args.seed)
    origin = traces.origin
    return Experience(
        env,
        arms,
        origin.target,
        origin.target_fingerprint,
        origin.dtype,
        tuple(origin.drafters),
        origin.cost_model,
        validation,
        f"replayed from traces of {len(train.texts)} texts",
    )


def traces_of(args: RouterArgs) -> TraceSet:
    """The run's traces, collected first where there are none."""
    if args.traces.is_dir() and shards_in(args.traces):
        return read_traces(args.traces)
    print(f"no traces in {args.traces}: collecting them (once)")
    wanted = tuple(arm for arm in args.arms if parse_arm(arm).drafts)
    return collect(
        CollectArgs(
            out=args.traces,
            arms=wanted or DEFAULT_ARMS,
            prompts=args.prompts,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            target=args.target,
            drafters=args.drafters,
            dtype=args.dtype,
            threads=args.threads,
        )
    )


def _live(args: RouterArgs) -> Experience:
    target = load_target(args.target, args.dtype, args.threads)
    drafters = load_drafters(target, args.drafters)
    env = RouterEnv(
        target=target,
        drafters=drafters,
        arms=args.arms or None,
        prompts=args.prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        latency_price=args.latency_price,
        latency=args.latency,
        cost_model=load_cost_model(target, drafters),
    )
    return Experience(
        DummyVecEnv([lambda: Monitor(env)]),
        env.arms,
        target.name,
        target.fingerprint,
        target.precision.dtype,
        tuple(env.drafters),
        env.cost_model,
        None,
        "of live decoding",
    )
