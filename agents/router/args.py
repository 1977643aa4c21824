"""What `draftgym train-router` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from draftgym.agents.common.settings import LIVE_PPO, RouterDQN, RouterPPO, TrainArgs
from draftgym.decoding.arms import PLAIN, Arm, Cascade, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.envs.reward import GOODPUT
from draftgym.policies.registry import COPYING, RULE_TREE
from draftgym.rollouts.traces.trace import TraceSet

ALGORITHMS = ("ppo", "dqn")
ROUNDS, LIVE_ROUNDS = 500_000, 6_000


@dataclass(frozen=True, kw_only=True)
class RouterArgs(TrainArgs):
    """Train a router.

    Attributes:
        live: Train on live decoding instead of traces: thousands of times slower, and true to the
            clock.
        init: Run folder whose agent is trained further under another name, such as one trained on
            traces that is fine-tuned with --live.
        algorithm: ppo or dqn (traces only).
        rounds: Rounds to train for, over all resumed sessions. Default: half a million on traces,
            6000 live.
        arms: What the router chooses from, such as eagle3:2 dflash:2 ngram:8 plain; eagle3:5x16
            is a tree of at most 16 tokens, 5 deep. Default: all traced arms, the rule that is the
            default of `draftgym generate` if its parts are among them, and plain; live, one arm per
            loaded drafter.
        stream: Leave the traces on disk and read what a round looks at: for traces that do not fit
            into memory. Takes an uncompressed copy of them, in .mapped of their folder.
        also: More folders of traces to train on, such as of other temperatures.
        cost_model: What rounds cost: a cost model's file, or published costs by name
            (llama3.1-8b-h100); default: the costs that were measured with the traces.
        twice: Decide twice a round (RouterReplay-v1): which arm, and while it drafts, how sure it
            must be to go on (traces only).
        categories: Train on these categories of prompts alone (traces only).
        validation: Share of the texts set aside to choose the best policy by (traces only).
        latency_price: Price of a target step in tokens: goodput (the speed being reached, so that
            rewards say what total tokens over total time gains) or a number.
        prompts: Live: prompt set or file to train on.
        max_new_tokens: Live: token limit of a text.
        skip_long_prompts: Live: leave out prompts that do not fit; else they are refused at once.
        temperature: Live: 0 for greedy decoding.
        latency: Live: calibrated (reproducible) or measured (wall-clock).
        target: Live: embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Live: drafter checkpoints beside or instead of the shipped ones.
        dtype: Live: auto, float32, bfloat16 or float16.
        device: Live: where target and drafters compute (auto, cpu, cuda, cuda:1, mps or xpu); the
            network in training, which is small, stays on the processor.
        backend: Live: whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
        ppo: Hyperparameters on traces; a resumed run keeps the ones it was started with.
        live_ppo: Hyperparameters on live decoding.
        dqn: Hyperparameters of DQN.
    """

    traces: Path = Path("runs/traces")
    run: Path = Path("runs/router")
    live: bool = False
    init: Path | None = None
    arms: tuple[str, ...] = ()
    stream: bool = False
    also: tuple[Path, ...] = ()
    cost_model: Path | None = None
    twice: bool = False
    categories: tuple[str, ...] = ()
    latency_price: float | str = GOODPUT
    prompts: str = "train"
    max_new_tokens: int = 128
    skip_long_prompts: bool = False
    temperature: float = 0.0
    latency: str = "calibrated"
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    ppo: RouterPPO = field(default_factory=RouterPPO)
    live_ppo: RouterPPO = LIVE_PPO
    dqn: RouterDQN = field(default_factory=RouterDQN)

    @property
    def total_rounds(self) -> int:
        """Rounds to train for."""
        return self.rounds or (LIVE_ROUNDS if self.live else ROUNDS)

    @property
    def agent(self) -> RouterPPO | RouterDQN:
        """Hyperparameters of the algorithm that is asked for."""
        if self.algorithm == "dqn":
            return self.dqn
        return self.live_ppo if self.live else self.ppo


def check_args(args: RouterArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    args.check(ALGORITHMS, args.latency_price, "--latency-price")
    if args.live and args.algorithm != "ppo":
        raise DraftgymError("live decoding is learned with PPO", "leave --algorithm out")
    if args.live and args.twice:
        raise DraftgymError("two decisions a round are learned on traces", "leave --live out")
    args.ppo.check("ppo")
    args.live_ppo.check("live-ppo")
    if args.init is not None and not (args.init / "model.zip").is_file():
        raise DraftgymError(
            f"{args.init} holds no agent (no model.zip)",
            "name a run folder of draftgym train-router",
        )


def offered_arms(traces: TraceSet) -> tuple[Arm, ...]:
    """What a router chooses from unless it is told: all traced arms, the default rule, and plain.

    The rule is among them where traces tell what it would do.
    """
    rule = parse_arm(f"{COPYING}{Cascade.sign}{RULE_TREE}")
    joint = [rule] if traces.tells(rule) else []
    return (*map(parse_arm, traces.origin.arms), *joint, parse_arm(PLAIN))
