"""The worker that traces: it holds target and drafters, in this process or on another machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import describe_device, describe_host, note_other_device
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.seeds import text_seed
from draftgym.rollouts.decode.batched import Request, next_requests, requests_of_run
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.prompts.prompt import Prompt
from draftgym.rollouts.traces.counterfactual import trace_texts
from draftgym.rollouts.traces.file import require_same, rows_in, trace_table
from draftgym.rollouts.traces.shards import ShardWriter, shard_path
from draftgym.rollouts.traces.trace import TextTrace, TraceOrigin
from draftgym.rollouts.workers.passes import Passes
from draftgym.rollouts.workers.shard import Amount, Shard, Told

if TYPE_CHECKING:
    from draftgym.rollouts.traces.collect import CollectArgs

DEFAULT_ARMS = (
    *("eagle3:1", "eagle3:2", "eagle3:3", "eagle3:4", "eagle3:3x6", "eagle3:4x8"),
    *("dflash:1", "dflash:2", "dflash:4", "dflash:3x6", "dflash:4x8"),
    *("ngram:3", "ngram:8", "ngram:16", "suffix:8", "suffix:16"),
)
"""Small arms of every drafter that is no language model itself; `plain` needs no trace. What the
drafters at hand cannot draft, or the target cannot verify, is left out."""


@dataclass(frozen=True)
class TracePlan:
    """What all workers of a run must agree on, and what there is to trace at first.

    Attributes:
        origin: What the files say of where they come from.
        passes: How the target computes.
        requests: The first turns.
    """

    origin: TraceOrigin
    passes: Passes
    requests: list[Request]


class Tracer:
    """Traces texts into shards.

    Args:
        args: Settings, checked.
        arms: What is asked at every position; empty for those that can be served.
    """

    def __init__(self, args: CollectArgs, arms: Sequence[Arm]) -> None:
        self.args, self._named, self._agreed = args, list(arms), False
        self._loaded: tuple[Target, Mapping[str, Drafter], list[Arm]] | None = None

    def plan(self, prompts: Sequence[Prompt], began: Mapping[str, Any] | None) -> TracePlan:
        """Measures costs and reads prompts.

        Args:
            prompts: What to trace.
            began: What the traces that are there say of their host, if there are any.
        """
        args, (target, drafters, arms) = self.args, self._load()
        fitted = fit_prompts(
            *(target, prompts, args.max_new_tokens, args.skip_long_prompts), all_turns=True
        )
        costs = load_cost_model(target, drafters, arms, args.max_new_tokens + fitted.longest)
        origin = describe_origin(args, target, drafters, arms, costs)
        origin.host["prompts"] = fitted.describe()
        if began is not None:
            costs_stay = "costs stay those of where they began; near ties may fall differently"
            note_other_device(f"traces {args.out}", began, target, costs_stay)
        requests = requests_of_run(fitted, args.temperature, args.seed)
        return TracePlan(origin, Passes.of(target), requests)

    def following(
        self, requests: Sequence[Request], answers: Mapping[str, Sequence[int]]
    ) -> list[Request]:
        """The next turns of requests that have one, behind these token ids by question id."""
        target, _, _ = self._load()
        answered = [(one, list(answers[one.question_id])) for one in requests]

        def seed_of(question_id: str, temperature: float) -> int:
            return text_seed(self.args.seed, question_id)

        return next_requests(target, answered, seed_of, self.args.max_new_tokens)

    def write(self, shard: Shard, plan: TracePlan, told: Told | None = None) -> Amount:
        """Traces a shard; see `draftgym.rollouts.workers.shard.Worker`.

        Raises:
            DraftgymError: Other weights are here than where the run was planned.
        """
        args, (target, drafters, arms), origin = self.args, self._load(plan.passes), plan.origin
        path, size = shard_path(args.out, shard.number), len(shard.requests)
        if told is None and path.exists():  # its writer died before it could say so
            return Amount(size, rows_in(path) - size)
        if not self._agreed:
            mine = describe_origin(args, target, drafters, arms, origin.cost_model)
            require_same(mine, origin, Path(f"{socket.gethostname()}:{os.getcwd()}"))
            self._agreed = True
        to_table, positions = partial(trace_table, origin=origin), 0
        limits = (args.max_new_tokens, args.batch_size)
        writer = ShardWriter[TextTrace](args.out, to_table, size, shard.number, told is None)
        with writer:
            for text in trace_texts(target, drafters, arms, shard.requests, *limits):
                writer.add(text)
                positions += len(text)
                if told is not None:
                    told(len(text))
        return Amount(size, positions)

    def _load(
        self, passes: Passes | None = None
    ) -> tuple[Target, Mapping[str, Drafter], list[Arm]]:
        """Target, drafters and arms; loaded once, to compute like that."""
        if self._loaded is None:
            args = self.args if passes is None else passes.settled(self.args)
            target, drafters = args.load()
            trees = target.decoder.draws_trees
            arms = self._named or default_arms(drafters, trees)
            check_arms(arms, drafters, trees)
            self._loaded = target, drafters, arms
        return self._loaded


def describe_origin(
    args: CollectArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    costs: CostModel,
) -> TraceOrigin:
    """What the traces' file says about where they come from."""
    used = {arm.drafter: drafters[arm.drafter] for arm in arms}
    rule = make_rule(args.verification, args.temperature, args.seed, target.vocab_size)
    return TraceOrigin(
        target=target.name,
        target_fingerprint=target.fingerprint,
        dtype=target.precision.dtype,
        drafters={name: drafter.fingerprint for name, drafter in used.items()},
        lags={name: drafter.lag for name, drafter in used.items()},
        arms=tuple(map(str, arms)),
        verification=rule.name,
        temperature=args.temperature,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        cost_model=costs,
        host={**describe_host(), **describe_device(target)},
        states=args.states,
    )


def default_arms(drafters: Mapping[str, Drafter], trees: bool) -> list[Arm]:
    """Those of `DEFAULT_ARMS` that can be served.

    Args:
        drafters: The loaded drafters.
        trees: Whether the target verifies trees.
    """

    def is_served(arm: Arm) -> bool:
        try:
            check_arms([arm], drafters, trees)
        except DraftgymError:
            return False
        return True

    return [arm for arm in map(parse_arm, DEFAULT_ARMS) if is_served(arm)]
