"""Policies for batches by what a user writes: a folder, an engine's file, an arm, a rule's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json, user_path
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import BatchPolicy, drafter_of, traced_ladder
from draftgym.envs.serving.kept import rule_policy
from draftgym.policies.folder import FORECAST, RULE, policy_name, read_kind
from draftgym.policies.serving.adaptive import SGLANG, AdaptiveLength, AdaptiveSize
from draftgym.policies.serving.engines.openvino import LENGTH, from_openvino
from draftgym.policies.serving.engines.sglang import CANDIDATES, from_sglang
from draftgym.policies.serving.engines.tensorrt_llm import KEY as SCHEDULE
from draftgym.policies.serving.engines.tensorrt_llm import from_tensorrt_llm
from draftgym.policies.serving.engines.vllm import KEY as BY_SIZE
from draftgym.policies.serving.engines.vllm import from_vllm
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule, Ladder, ServingRule
from draftgym.policies.serving.stored import load_rule
from draftgym.policies.serving.tokens import load_forecast
from draftgym.rollouts.traces.trace import TraceSet

ADAPTIVE, GOODPUT = "adaptive", "goodput"


def named_policy(
    spec: str, traces: TraceSet, settings: ServerSettings, drafter: str | None = None
) -> BatchPolicy:
    """Who chooses for batches.

    Args:
        spec: A folder of a forecast or a rule; a file that an engine reads; an arm; `adaptive` or
            `goodput`.
        traces: Of whose target it is, and what there is to choose from.
        settings: What rounds cost.
        drafter: Whose lengths `adaptive`, `goodput` and a file tell; None takes the one network
            that was traced.

    Raises:
        DraftgymError: It is none of these, or of another target.
    """
    path = user_path(spec)
    if path.is_dir():
        return _stored(path, traces, settings)
    if path.is_file():
        return rule_policy(_of_engine(path, _ladder(traces, drafter)))
    if spec in (ADAPTIVE, GOODPUT):
        ladder = _ladder(traces, drafter)
        if spec == ADAPTIVE:
            return rule_policy(_adaptive(ladder, SGLANG))
        costs = replace(settings, places=1).make_costs([ladder.drafter])
        return rule_policy(GoodputLength(ladder, costs))
    return rule_policy(FixedRule(parse_arm(spec)))


def _ladder(traces: TraceSet, drafter: str | None) -> Ladder:
    chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None]
    return traced_ladder(traces, drafter or drafter_of(chains))


def _stored(folder: Path, traces: TraceSet, settings: ServerSettings) -> BatchPolicy:
    kind, costs = read_kind(folder), replace(settings, places=1).make_costs
    if kind == RULE:
        return rule_policy(load_rule(folder, traces.origin, None, costs))
    if kind != FORECAST:
        raise DraftgymError(
            f"{folder} holds a policy of kind {kind!r}, which chooses for one text alone",
            "name the folder of a forecast or a rule for batches",
        )
    forecast = load_forecast(folder, traces.origin)
    name = policy_name(folder)
    return BatchPolicy(name, forecast.arms, lambda load: PlannedPlayer(forecast, load), True)


def _of_engine(path: Path, ladder: Ladder) -> ServingRule:
    """The rule in a file that one of the engines reads."""
    remedy = "name a file that draftgym export-policy wrote, or that one of these engines reads"
    try:
        text, drafter = path.read_text(encoding="utf-8"), ladder.drafter
        if SCHEDULE in text:
            return from_tensorrt_llm(text, drafter).rule()
        body = parse_json(text, str(path), remedy)
        if BY_SIZE in body:
            return from_vllm(body, drafter).rule()
        if LENGTH in text:
            return from_openvino(body, drafter).rule()
        if CANDIDATES in text:
            return _adaptive(ladder, from_sglang(body))
    except (OSError, UnicodeDecodeError) as error:
        raise DraftgymError(f"cannot read {path}: {error}", remedy) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DraftgymError(f"{path}: {error!r}", remedy) from error
    raise DraftgymError(f"{path} has no lengths by size", remedy)


def _adaptive(ladder: Ladder, sizes: dict[int, AdaptiveSize]) -> AdaptiveLength:
    """SGLang's rule; candidates that were not traced become the next shorter ones that were."""

    def traced(lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted({int(ladder.lengths[ladder.index(length)]) for length in lengths}))

    kept = {size: replace(one, candidates=traced(one.candidates)) for size, one in sizes.items()}
    return AdaptiveLength(ladder, tuple(drafter_names(list(ladder.arms.values()))), kept)
