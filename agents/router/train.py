"""Train a router: which drafter, how many tokens, each round.

    $ draftgym train-router                       # on traces, collected first if there are none
    $ draftgym train-router --algorithm dqn --run runs/router-dqn
    $ draftgym train-router --arms eagle3:2 dflash:2 ngram:8 plain --rounds 2000000
    $ draftgym train-router --live --init runs/router --run runs/router-live   # fine-tune
    $ tensorboard --logdir runs                    # watch it

On traces a million rounds take minutes; live decoding plays some twenty rounds a second. A run
folder is resumed when it exists; `<run>/policy` is the deployable policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import tyro

from draftgym.agents.common.callbacks import DecodingMetrics
from draftgym.agents.common.learners import Agent, fresh_agent, inherited_agent, resumed_agent
from draftgym.agents.common.run_folder import MODEL, POLICY, RunFolder, log_to, write_config
from draftgym.agents.router.args import RouterArgs, check_args
from draftgym.agents.router.experience import Experience, make_experience
from draftgym.agents.router.network import deployable_network
from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.latency import write_cost_model
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import command_line, describe_host, git_revision, plain
from draftgym.policies.folder import read_body
from draftgym.policies.routers.learned import LearnedPolicy, write_router
from draftgym.rollouts.replay.evaluation import play_policy
from draftgym.rollouts.traces.trace import TraceSet


def train_router(args: RouterArgs) -> Path:
    """Trains, saves and exports; returns the folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, or a run folder that cannot be resumed with them.
    """
    check_args(args)
    experience = make_experience(args)
    agent = build_agent(args, experience)  # refuses another run's folder before anything is written
    validation = experience.validation
    run = RunFolder(
        args.run,
        agent,
        lambda validated: export_router(args, experience, agent, validated),
        "tokens_per_target_step",
        None if validation is None else lambda: _speed(agent, experience.arms, validation),
    )
    write_cost_model(experience.cost_model, args.run / "cost_model.json")
    made = experience
    facts = {"target": made.target, "fingerprint": made.fingerprint, "dtype": made.dtype}
    write_config(args.run, args, facts)
    done, wanted = agent.num_timesteps, args.total_rounds
    print(f"target {experience.target}, {experience.kind}")
    print(f"arms: {' '.join(map(str, experience.arms))}; {done} of {wanted} rounds done")
    metrics = DecodingMetrics(experience.arms, rounds=1 if args.live else 5_000)
    interval = 1 if args.algorithm == "ppo" else 1000
    run.learn(wanted, [metrics], args.minutes, args.threads, interval)
    return args.run / POLICY


def build_agent(args: RouterArgs, experience: Experience) -> Agent:
    """A fresh agent, the run folder's, or one that goes on from `--init`.

    Raises:
        DraftgymError: The folder's run has other arms or another target, or is damaged.
    """
    saved = args.run / MODEL
    if saved.exists():
        _check_same_choice(args.run / POLICY, experience)
        agent: Agent = resumed_agent(saved, args.algorithm, experience.env, args.seed)
    elif args.init is not None:
        _check_same_choice(args.init / POLICY, experience)
        agent = inherited_agent(args.init / MODEL, args, experience.env)
    else:
        agent = fresh_agent(args, experience.env)
    log_to(args.run, agent)
    return agent


def export_router(
    args: RouterArgs, made: Experience, agent: Agent, validated: float | None
) -> None:
    """Writes the deployable policy with its card.

    Args:
        args: How it was trained.
        made: On what.
        agent: The agent.
        validated: Tokens per target step on the texts set aside.
    """
    rounds, folder = agent.num_timesteps, args.run / POLICY
    provenance = {
        "settings": plain(asdict(args)),
        "rounds": rounds,
        "validation_tokens_per_target_step": validated,
        "host": describe_host(),
    }
    network = deployable_network(agent)
    write_router(network, made.arms, made.target, made.fingerprint, folder, provenance)
    card = policy_card(args, made, rounds, validated)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _speed(agent: Agent, arms: Sequence[Arm], texts: TraceSet) -> float:
    """Tokens per target step on some texts."""
    played = play_policy(texts, LearnedPolicy(deployable_network(agent), arms))
    return sum(text.tokens for text in played) / sum(text.steps for text in played)


def policy_card(
    args: RouterArgs, experience: Experience, rounds: int, validated: float | None
) -> str:
    """The card beside an exported policy: what it is, how it was made, how to use it."""
    arms = ", ".join(f"`{arm}`" for arm in experience.arms)
    speed = (
        ""
        if validated is None
        else f"\n| texts set aside | {validated:.3f} tokens per target step |"
    )
    return f"""# Router for {experience.target}

Chooses each round of speculative decoding among {arms}.

| | |
|---|---|
| target | {experience.target}, fingerprint `{experience.fingerprint}`, {experience.dtype} |
| drafters | {", ".join(experience.drafters)} |
| trained | {rounds} rounds {experience.kind}, {args.algorithm.upper()}, seed {args.seed} |
| reward | tokens - price x target steps, price {args.latency_price} |{speed}
| made by | `{command_line()}` at revision `{git_revision()}` |

    python generate.py --policy FOLDER --prompt "..."
    python evaluate.py --policies FOLDER
"""


def _check_same_choice(exported: Path, experience: Experience) -> None:
    """Arms of the same number fit the saved network, but mean something else."""
    if not exported.is_dir():
        return
    body = read_body(exported)
    arms = [str(arm) for arm in experience.arms]
    if body.get("arms") != arms:
        raise DraftgymError(
            f"{exported.parent} was trained with arms {' '.join(body.get('arms', []))}, "
            f"asked for: {' '.join(arms)}",
            "name the same --arms, or another --run",
        )
    if body.get("target_fingerprint") != experience.fingerprint:
        raise DraftgymError(
            f"{exported.parent} was trained for target {body.get('target')!r} "
            f"(fingerprint {body.get('target_fingerprint')}), not for {experience.target!r}",
            "name that target, or another --run",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-router`."""
    train_router(
        tyro.cli(RouterArgs, args=arguments, description=__doc__, prog="draftgym train-router")
    )
