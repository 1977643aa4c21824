"""Supervised learning of routers: fit a network to known outcomes, stop on held-out texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from draftgym.agents.common.trainer import open_traces
from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import check_run_folder, describe_host, plain
from draftgym.decoding.verify.seeds import check_seed
from draftgym.policies.base import Policy
from draftgym.policies.folder import PolicyTarget
from draftgym.rollouts.prompts.sets import refuse_held_out
from draftgym.rollouts.traces.trace import TraceSet

P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class Fitting:
    """How a network is fitted (AdamW, squared error).

    Attributes:
        epochs: Passes over the examples at most.
        patience: Epochs without a better validation error before it stops.
        batch_size: Examples per step.
        learning_rate: Peak of the step size, which rises for a tenth of the steps and then falls.
        weight_decay: AdamW's.
        holdout: Share of the texts that is left out of training, for stopping and for R2.
    """

    epochs: int = 20
    patience: int = 5
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    holdout: float = 0.1

    def check(self) -> None:
        """Raises `DraftgymError` for settings that cannot work."""
        for option in ("epochs", "patience", "batch_size"):
            if getattr(self, option) < 1:
                name = option.replace("_", "-")
                raise DraftgymError(
                    f"--fitting.{name} is {getattr(self, option)}", "give 1 or more"
                )
        if not 0 < self.holdout < 1:
            raise DraftgymError(
                f"--fitting.holdout is {self.holdout}", "give a share between 0 and 1, such as 0.1"
            )


@dataclass(frozen=True, kw_only=True)
class RegressionArgs:
    """What every trainer on known outcomes takes.

    Attributes:
        traces: Folder of traces of training prompts.
        out: Folder of the trained policy.
        fitting: How the network is fitted.
        seed: Seed of everything random.
    """

    traces: Path = Path("runs/traces")
    out: Path
    fitting: Fitting = field(default_factory=Fitting)
    seed: int = 0

    def check(self) -> None:
        """Raises `DraftgymError` for settings that cannot work, before anything is read."""
        check_seed(self.seed)
        self.fitting.check()
        check_run_folder(self.out, "--out")


def train_and_export(
    args: RegressionArgs,
    arms: Sequence[Arm],
    fit_policy: Callable[[TraceSet, TraceSet], tuple[P, dict[str, Any]]],
    save: Callable[[P, PolicyTarget, Path, Mapping[str, Any]], None],
    categories: Sequence[str] = (),
) -> P:
    """Traces -> fit -> export, as all trainers on known outcomes do; returns the policy.

    Args:
        args: Settings, checked.
        arms: What is chosen from; none leaves it to `fit_policy`.
        fit_policy: Makes a policy of texts to learn and texts to check on, and a report of it.
        save: Writes its deployable form.
        categories: Train on these categories of prompts alone.

    Raises:
        DraftgymError: No traces, held-out prompts, arms or categories that were not traced.
    """
    traces = open_traces(args.traces, f"draftgym collect --prompts train --out {args.traces}")
    traces.check_arms(arms)
    if categories:
        traces = traces.only(categories)
    train, validation = hold_out(traces, args.fitting.holdout)
    policy, report = fit_policy(train, validation)
    texts = {"train": len(train.texts), "validation": len(validation.texts)}
    report = {"texts": texts} | report
    save(
        policy,
        traces.origin,
        args.out,
        {"settings": plain(asdict(args)), **report, "host": describe_host()},
    )
    for name, value in report.items():
        print(f"{name}: {value}")
    print(f"policy exported to {args.out}")
    return policy


@dataclass(frozen=True)
class Examples:
    """Inputs and what should come out.

    Attributes:
        inputs: The network's arguments for some examples (indices `[b]`).
        targets: `[n]` or `[n, outputs]`.
    """

    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Fit:
    """How well a network fits.

    Attributes:
        r2: Share of the variance on held-out texts that it explains.
        epochs: Epochs until its weights, the best ones.
    """

    r2: float
    epochs: int


def hold_out(traces: TraceSet, share: float) -> tuple[TraceSet, TraceSet]:
    """Training and validation texts, the same ones for every trainer (`TraceSet.split`).

    Args:
        traces: Traces of training prompts.
        share: Part of the texts to hold out, about; at least one.

    Raises:
        DraftgymError: Fewer than two texts with a round, or prompts that results are reported on.
    """
    refuse_held_out(text.question_id for text in traces.texts)
    return replace(traces, texts=[text for text in traces.texts if len(text)]).split(share)


def fit(
    network: nn.Module, train: Examples, validation: Examples, how: Fitting, seed: int = 0
) -> Fit:
    """Fits in place and leaves the weights with the smallest validation error.

    Args:
        network: What is fitted.
        train: Examples to learn.
        validation: Examples of other texts.
        how: Settings.
        seed: Of the order of examples and of dropout.
    """
    torch.manual_seed(seed)
    steps = -(-len(train) // how.batch_size)
    adam = torch.optim.AdamW(network.parameters(), how.learning_rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, how.learning_rate, total_steps=steps * how.epochs, pct_start=0.1, cycle_momentum=False
    )
    best, best_error, best_epoch = copy.deepcopy(network.state_dict()), float("inf"), 0
    for epoch in range(1, how.epochs + 1):
        network.train()
        for batch in torch.randperm(len(train)).split(how.batch_size):
            error = nn.functional.mse_loss(network(*train.inputs(batch)), train.targets[batch])
            adam.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
        error_now = squared_error(network, validation)
        if error_now < best_error:
            best, best_error, best_epoch = copy.deepcopy(network.state_dict()), error_now, epoch
        elif epoch - best_epoch >= how.patience:
            break
    network.load_state_dict(best)
    network.eval()
    spread = float(validation.targets.var(0, correction=0).mean())
    return Fit(1 - best_error / spread if spread else 0.0, best_epoch)


@torch.inference_mode()
def squared_error(network: nn.Module, examples: Examples, batch: int = 4096) -> float:
    """Mean squared error over all examples and outputs."""
    network.eval()
    total = 0.0
    for rows in torch.arange(len(examples)).split(batch):
        error = network(*examples.inputs(rows)) - examples.targets[rows]
        total += float(error.square().sum())
    return total / examples.targets.numel()
