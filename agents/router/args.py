"""What `train_router.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from draftgym.agents.common.hyperparameters import LIVE_PPO, RouterDQN, RouterPPO
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import check_run_folder
from draftgym.envs.router.reward import GOODPUT

ALGORITHMS = ("ppo", "dqn")
ROUNDS, LIVE_ROUNDS = 500_000, 6_000


@dataclass(frozen=True, kw_only=True)
class RouterArgs:
    """Train a router.

    Attributes:
        traces: Folder of traces to train on (`draftgym collect`); made when it is
            missing, from `prompts`, `target` and `drafters`.
        live: Train on live decoding instead: thousands of times slower, and true to the clock.
        init: Run folder whose agent is trained further under another name, such as one trained on
            traces that is fine-tuned with --live.
        algorithm: ppo or dqn (traces only).
        rounds: Rounds to train for, over all resumed sessions. Default: half a million on traces,
            6000 live.
        minutes: Stop earlier when this much time has passed; the run can be resumed.
        run: Run folder; resumed when it exists.
        arms: What the router chooses from, such as eagle3:2 dflash:2 ngram:8 plain; eagle3:5x16
            is a tree of at most 16 tokens, 5 deep. Default: all traced arms and plain; live, one
            arm per loaded drafter.
        categories: Train on these categories of prompts alone (traces only).
        validation: Share of the texts set aside to choose the best policy by (traces only).
        prompts: Prompt set or file to train on.
        max_new_tokens: Token limit of a text.
        temperature: 0 for greedy decoding.
        latency_price: Price of a target step in tokens: goodput (the speed being reached, so that
            rewards say what total tokens over total time gains) or a number.
        latency: Live: calibrated (reproducible) or measured (wall-clock).
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        dtype: auto, float32 or bfloat16.
        threads: CPU threads; default: all cores.
        seed: Seed of texts, exploration and initial weights.
        ppo: Hyperparameters on traces; a resumed run keeps the ones it was started with.
        live_ppo: Hyperparameters on live decoding.
        dqn: Hyperparameters of DQN.
    """

    traces: Path = Path("runs/traces")
    live: bool = False
    init: Path | None = None
    algorithm: str = "ppo"
    rounds: int | None = None
    minutes: float | None = None
    run: Path = Path("runs/router")
    arms: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    validation: float = 0.1
    prompts: str = "train"
    max_new_tokens: int = 128
    temperature: float = 0.0
    latency_price: float | str = GOODPUT
    latency: str = "calibrated"
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    seed: int = 0
    ppo: RouterPPO = field(default_factory=RouterPPO)
    live_ppo: RouterPPO = LIVE_PPO
    dqn: RouterDQN = field(default_factory=RouterDQN)

    @property
    def total_rounds(self) -> int:
        """Rounds to train for."""
        return self.rounds or (LIVE_ROUNDS if self.live else ROUNDS)


def check_args(args: RouterArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    check_budget(args.rounds, args.minutes, args.validation)
    if args.algorithm not in ALGORITHMS:
        raise DraftgymError(
            f"unknown algorithm {args.algorithm!r}", f"choose from {', '.join(ALGORITHMS)}"
        )
    if args.live and args.algorithm != "ppo":
        raise DraftgymError("live decoding is learned with PPO", "leave --algorithm out")
    check_price(args.latency_price, "--latency-price")
    for name, ppo in (("ppo", args.ppo), ("live-ppo", args.live_ppo)):
        if ppo.n_steps * ppo.n_envs < 2 or ppo.batch_size < 2:
            raise DraftgymError("an update needs at least two rounds", f"raise --{name}.n-steps")
    if args.init is not None and not (args.init / "model.zip").is_file():
        raise DraftgymError(
            f"{args.init} holds no agent (no model.zip)", "name a run folder of train_router.py"
        )
    check_run_folder(args.run)


def check_budget(rounds: int | None, minutes: float | None, validation: float) -> None:
    """Raises `DraftgymError` for a budget or a share of texts that cannot be."""
    if rounds is not None and rounds < 1:
        raise DraftgymError(f"--rounds is {rounds}", "train for at least one round")
    if minutes is not None and not minutes >= 0:
        raise DraftgymError(f"--minutes is {minutes}", "give zero or more, or leave it out")
    if not 0 < validation < 1:
        raise DraftgymError(f"--validation is {validation}", "give a share such as 0.1")


def check_price(price: float | str, option: str) -> None:
    """Raises `DraftgymError` for a price that cannot be."""
    if price != GOODPUT and (isinstance(price, str) or not price >= 0):
        raise DraftgymError(f"{option} is {price}", f"give {GOODPUT} or a number of at least 0")
