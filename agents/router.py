"""What `train_router.py` does: reinforcement learning on rounds, then an exported policy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import JSONOutputFormat, Logger, TensorBoardOutputFormat

from agents.callbacks import BestPolicy, DecodingMetrics, SaveRun, StopAfter
from agents.experience import Experience, make_experience
from agents.learners import Agent, fresh_agent, inherited_agent, resumed_agent
from agents.network import deployable_network
from agents.router_args import RouterArgs, check_args
from decoding.errors import DraftgymError
from decoding.latency import write_cost_model
from decoding.probe import usable_cores
from decoding.provenance import command_line, describe_host, git_revision, plain
from policies.folder import read_body
from policies.learned import write_router


def train_router(args: RouterArgs) -> Path:
    """Trains, saves and exports; returns the folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, or a run folder that cannot be resumed with them.
    """
    check_args(args)
    experience = make_experience(args)
    agent = build_agent(args, experience)  # refuses another run's folder before anything is written
    run = _Run(args, experience, agent)
    write_cost_model(experience.cost_model, args.run / "cost_model.json")
    run.write_config()
    done, wanted = agent.num_timesteps, args.total_rounds
    print(f"target {experience.target}, {experience.kind}")
    print(f"arms: {' '.join(map(str, experience.arms))}; {done} of {wanted} rounds done")
    threads = args.threads or usable_cores()
    torch.set_num_threads(threads)  # SB3 leaves its own setting behind
    try:
        if done < wanted:
            agent.learn(
                wanted - done,
                CallbackList(run.callbacks()),
                log_interval=1 if args.algorithm == "ppo" else 1000,
                reset_num_timesteps=False,
                progress_bar=True,
            )
    finally:
        run.save()
        agent.logger.close()
    print(f"{agent.num_timesteps} rounds; policy exported to {run.exported}")
    return run.exported


def build_agent(args: RouterArgs, experience: Experience) -> Agent:
    """A fresh agent, the run folder's, or one that goes on from `--init`.

    Raises:
        DraftgymError: The folder's run has other arms or another target, or is damaged.
    """
    saved = args.run / "model.zip"
    if saved.exists():
        _check_same_choice(args.run / "policy", experience)
        agent = resumed_agent(saved, args, experience.env)
    elif args.init is not None:
        _check_same_choice(args.init / "policy", experience)
        agent = inherited_agent(args.init / "model.zip", args, experience.env)
    else:
        agent = fresh_agent(args, experience.env)
    args.run.mkdir(parents=True, exist_ok=True)
    outputs = [TensorBoardOutputFormat(str(args.run)), MetricLines(args.run / "metrics.jsonl")]
    agent.set_logger(Logger(str(args.run), outputs))
    return agent


class _Run:
    """A run folder that is being written."""

    def __init__(self, args: RouterArgs, experience: Experience, agent: Agent) -> None:
        self.args, self.experience, self.agent = args, experience, agent
        self.exported = args.run / "policy"
        self.best = args.run / "best.json"

    def callbacks(self) -> list[BaseCallback]:
        """What happens beside learning."""
        arms, validation = self.experience.arms, self.experience.validation
        metrics = DecodingMetrics(arms, rounds=1 if self.args.live else 5_000)
        callbacks = [metrics, SaveRun(self.save), StopAfter(self.args.minutes)]
        if validation is not None:
            callbacks.append(BestPolicy(validation, arms, self.keep, best=self._best_so_far()))
        return callbacks

    def keep(self, speed: float) -> None:
        """Exports the policy as the best so far."""
        self.export(speed)
        self.best.write_text(json.dumps({"tokens_per_target_step": speed}) + "\n")

    def save(self) -> None:
        """Saves what training goes on from; the policy too, where nothing tells which is best."""
        partial = self.args.run / "model.partial.zip"
        self.agent.save(partial)
        partial.replace(self.args.run / "model.zip")
        if self.experience.validation is None or not self.exported.is_dir():
            self.export(None)

    def export(self, validated: float | None) -> None:
        """Writes the deployable policy with its card."""
        rounds, made = self.agent.num_timesteps, self.experience
        provenance = {
            "settings": plain(asdict(self.args)),
            "rounds": rounds,
            "validation_tokens_per_target_step": validated,
            "host": describe_host(),
        }
        network = deployable_network(self.agent)
        write_router(network, made.arms, made.target, made.fingerprint, self.exported, provenance)
        card = policy_card(self.args, made, rounds, validated)
        (self.exported / "README.md").write_text(card, encoding="utf-8")

    def write_config(self) -> None:
        """Writes `config.json`: settings, command, revision, versions, target."""
        made = self.experience
        facts = {"target": made.target, "fingerprint": made.fingerprint, "dtype": made.dtype}
        body = {"settings": plain(asdict(self.args)), **facts, **describe_host()}
        (self.args.run / "config.json").write_text(json.dumps(body, indent=2) + "\n")

    def _best_so_far(self) -> float:
        if not self.best.is_file():
            return 0.0
        return float(json.loads(self.best.read_text())["tokens_per_target_step"])


class MetricLines(JSONOutputFormat):
    """Metrics as JSON lines, appended: SB3's own writer empties the file of a resumed run."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")


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
