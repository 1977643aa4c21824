"""Folders of policies for batches, loaded for a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draftgym.decoding.arms import check_arms
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import drafter_names
from draftgym.policies.folder import (
    BODY,
    FOR_BATCHES,
    FORECAST,
    policy_name,
    read_kind,
)
from draftgym.policies.serving.stored import CostsOf, load_rule
from draftgym.policies.serving.tokens import load_forecast
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.planning.policies import PlannedForBatch, RuleForBatch


def holds_batches(spec: str) -> bool:
    """Whether a policy's spec is a folder of one for batches."""
    folder = user_path(spec)
    return (folder / BODY).is_file() and read_kind(folder) in FOR_BATCHES


def load_for_batch(
    spec: str, drafters: Mapping[str, Drafter], target: Target, costs: CostsOf | None
) -> BatchPolicy:
    """Loads one.

    Args:
        spec: Its folder (`holds_batches`).
        drafters: Loaded drafters by name.
        target: The target.
        costs: What rounds cost; asked only by those who reckon with it.

    Raises:
        DraftgymError: A damaged folder, of another target, with arms that no loaded drafter can
            serve, or costs that are needed and not there.
    """
    folder = user_path(spec)

    def known(names: Sequence[str]) -> ServerCosts:
        if costs is None:
            raise DraftgymError(
                f"{folder} plans with what rounds cost on this host, and nobody told it",
                "name a file of draftgym measure-host with --costs, or published costs",
            )
        return costs(names)

    policy: BatchPolicy
    if read_kind(folder) == FORECAST:
        forecast = load_forecast(folder, target)
        priced = known(drafter_names(forecast.arms))
        policy = PlannedForBatch(policy_name(folder), forecast, priced)
    else:
        policy = RuleForBatch(load_rule(folder, target, costs=known))
    check_arms(policy.arms, drafters, target.decoder.draws_trees)
    return policy
