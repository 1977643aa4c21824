"""What `train_router.py` does: PPO on live decoding, then an exported policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import JSONOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.monitor import Monitor

from agents.callbacks import DecodingMetrics, SaveRun, StopAfter
from agents.hyperparameters import RouterPPO
from agents.network import deployable_network, policy_kwargs
from decoding.calibration import load_cost_model
from decoding.errors import DraftgymError
from decoding.latency import write_cost_model
from decoding.provenance import (
    check_run_folder,
    command_line,
    describe_host,
    git_revision,
    plain,
    write_run_config,
)
from decoding.target import load_target
from drafters.loading import load_drafters
from envs.router import RouterEnv
from policies.learned import load_learned_policy, save_learned_policy


@dataclass(frozen=True, kw_only=True)
class RouterArgs:
    """Train a router with PPO on real decoding.

    Attributes:
        rounds: Environment steps to train for, over all resumed sessions.
        minutes: Stop earlier when this much time has passed; the run can be resumed.
        run: Run folder; resumed when it exists.
        arms: What the router chooses from, such as eagle3:3 dflash:3 ngram:8 plain; eagle3:5x16
            is a tree of at most 16 tokens, 5 deep. Default: one arm per loaded drafter.
        prompts: Prompt set or file to train on.
        max_new_tokens: Token limit of an episode.
        temperature: 0 for greedy decoding.
        latency_price: Price of a target step in tokens: higher prefers short rounds.
        latency: calibrated (reproducible) or measured (wall-clock).
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        dtype: auto, float32 or bfloat16.
        threads: CPU threads; default: all cores.
        seed: Seed of prompts, exploration and initial weights.
        ppo: Hyperparameters; a resumed run keeps the ones it was started with.
    """

    rounds: int = 6000
    minutes: float | None = None
    run: Path = Path("runs/router")
    arms: tuple[str, ...] = ()
    prompts: str = "train"
    max_new_tokens: int = 96
    temperature: float = 0.0
    latency_price: float = 1.0
    latency: str = "calibrated"
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    seed: int = 0
    ppo: RouterPPO = field(default_factory=RouterPPO)


def train_router(args: RouterArgs) -> Path:
    """Trains, saves and exports; returns the folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, or a run folder that cannot be resumed with them.
    """
    check_args(args)
    env = make_env(args)
    model = build_model(args, env)  # refuses another run's folder before anything is written
    done = model.num_timesteps
    write_cost_model(env.cost_model, args.run / "cost_model.json")
    write_run_config(args.run, args, env.target)
    print(
        f"target {env.target.name} on {env.target.precision.dtype}: {env.target.precision.reason}"
    )
    print(f"arms: {' '.join(map(str, env.arms))}; {done} of {args.rounds} rounds done")
    exported = args.run / "policy"

    def save() -> None:
        _save_zip(model, args.run)
        provenance = describe_run(args, model.num_timesteps)
        network = deployable_network(model.policy)
        save_learned_policy(network, env.arms, env.target, exported, provenance)
        (exported / "README.md").write_text(policy_card(args, env, model.num_timesteps))

    callbacks = CallbackList([DecodingMetrics(), SaveRun(save), StopAfter(args.minutes)])
    try:
        if done < args.rounds:
            model.learn(args.rounds - done, callbacks, reset_num_timesteps=False, progress_bar=True)
    finally:
        save()
        model.logger.close()
    print(f"{model.num_timesteps} rounds; policy exported to {exported}")
    return exported


def check_args(args: RouterArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    if args.rounds < 1:
        raise DraftgymError(f"--rounds is {args.rounds}", "train for at least one round")
    if args.minutes is not None and not args.minutes >= 0:
        raise DraftgymError(f"--minutes is {args.minutes}", "give zero or more, or leave it out")
    if args.ppo.n_steps < 2 or args.ppo.batch_size < 2:
        raise DraftgymError("an update needs at least two rounds", "raise --ppo.n-steps")
    check_run_folder(args.run)


def make_env(args: RouterArgs) -> RouterEnv:
    """The training environment of a run."""
    target = load_target(args.target, args.dtype, args.threads)
    drafters = load_drafters(target, args.drafters)
    return RouterEnv(
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


def build_model(args: RouterArgs, env: RouterEnv) -> PPO:
    """A fresh PPO agent, or the run folder's.

    Raises:
        DraftgymError: The folder's run has other arms or another target, or is damaged.
    """
    saved = args.run / "model.zip"
    monitored = Monitor(env)
    if saved.exists():
        _check_same_choice(args.run / "policy", env)
        model = _load_zip(saved, monitored)
        # A resumed run must not replay its first prompts and choices.
        model.set_random_seed(args.seed + model.num_timesteps)
    else:
        settings = asdict(args.ppo)
        width = settings.pop("width")
        model = PPO(
            "MultiInputPolicy",
            monitored,
            policy_kwargs=policy_kwargs(width),
            seed=args.seed,
            device="cpu",
            **settings,
        )
    args.run.mkdir(parents=True, exist_ok=True)
    outputs = [TensorBoardOutputFormat(str(args.run)), MetricLines(args.run / "metrics.jsonl")]
    model.set_logger(Logger(str(args.run), outputs))
    torch.set_num_threads(env.target.precision.threads)  # SB3 leaves its own setting behind
    return model


class MetricLines(JSONOutputFormat):
    """Metrics as JSON lines, appended: SB3's own writer empties the file of a resumed run."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")


def policy_card(args: RouterArgs, env: RouterEnv, rounds: int) -> str:
    """The card beside an exported policy: what it is, how it was made, how to use it."""
    drafters = ", ".join(env.drafters)
    return f"""# Router for {env.target.name}

Chooses each round of speculative decoding among {", ".join(f"`{arm}`" for arm in env.arms)}.

| | |
|---|---|
| target | {env.target.name}, fingerprint `{env.target.fingerprint}`, {env.target.precision.dtype} |
| drafters | {drafters} |
| trained | {rounds} rounds of live decoding, PPO, seed {args.seed}, prompts `{args.prompts}` |
| reward | tokens - {args.latency_price} x target steps, {args.latency} latency |
| made by | `{command_line()}` at revision `{git_revision()}` |

    python generate.py --policy FOLDER --prompt "..."
    python evaluate.py --policies FOLDER
"""


def describe_run(args: RouterArgs, rounds: int) -> dict[str, Any]:
    """Provenance of an exported policy."""
    return {"settings": plain(asdict(args)), "rounds": rounds, "host": describe_host()}


def _check_same_choice(exported: Path, env: RouterEnv) -> None:
    """Arms of the same number fit the saved network, but mean something else."""
    if not exported.is_dir():
        return
    arms = load_learned_policy(exported, env.target).arms
    if arms != env.arms:
        raise DraftgymError(
            f"{exported.parent} was trained with arms {' '.join(map(str, arms))}, "
            f"asked for: {' '.join(map(str, env.arms))}",
            "name the same --arms, or another --run",
        )


def _load_zip(path: Path, env: Monitor[Any, Any]) -> PPO:
    try:
        return PPO.load(path, env=env, device="cpu")
    except Exception as error:  # SB3 raises many kinds for a damaged or foreign zip
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DraftgymError(
            f"cannot resume from {path}: {reason}",
            "its arms or target differ from these settings, or it is damaged; name another --run",
        ) from error


def _save_zip(model: PPO, folder: Path) -> None:
    partial = folder / "model.partial.zip"
    model.save(partial)
    partial.replace(folder / "model.zip")
