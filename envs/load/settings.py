"""What a server and its load are made of: one value for environments, training and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from draftgym.decoding.costs.host_costs import HostCosts, make_server_costs
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import Arrivals, Poisson

GOODPUT, LATENCY = "goodput", "latency"
OBJECTIVES = (GOODPUT, LATENCY)


@dataclass(frozen=True)
class LatencyObjective:
    """What a request may wait for.

    Attributes:
        first_token: Seconds from its arrival to its first token, the queue included.
        per_token: Mean seconds between its tokens from then on.

    Raises:
        DraftgymError: A number is not above 0.
    """

    first_token: float = 1.0
    per_token: float = 0.05

    def __post_init__(self) -> None:
        if not (self.first_token > 0 and self.per_token > 0):
            raise DraftgymError(f"an objective of {self}", "give seconds above 0")


@dataclass(frozen=True)
class ServerSettings:
    """A server under load.

    Attributes:
        places: Requests that are in the batch at most, K.
        requests: Requests of an episode.
        arrivals: When they come.
        mixture: Weight of each category that they ask for; None takes all texts alike.
        costs: What rounds cost: published costs by name, a file of `draftgym measure-host`, or what
            that program returns.
        prompt_rows: Rows of prompts in a pass beside requests that are being written.
        prompt_rows_alone: The same where nobody is.
        copies: How many identical requests each stands for; more than 1 plays batches of equal
            texts.
        look_up: Whether what drafters that look up have found is observed; the time is counted,
            for every request in every round.
        latency: The objective that `latency` rewards, and that is told of every request.

    Raises:
        DraftgymError: A number is impossible, or costs of this name are not published.
    """

    places: int = 16
    requests: int = 64
    arrivals: Arrivals = field(default_factory=lambda: Poisson(4.0))
    mixture: Mapping[str, float] | None = None
    costs: str | Path | HostCosts = "llama3.1-8b-h100"
    prompt_rows: int = 512
    prompt_rows_alone: int = 2048
    copies: int = 1
    look_up: bool = True
    latency: LatencyObjective = field(default_factory=LatencyObjective)

    def __post_init__(self) -> None:
        for name in ("places", "requests", "prompt_rows", "prompt_rows_alone", "copies"):
            if getattr(self, name) < 1:
                raise DraftgymError(f"a server with {name} {getattr(self, name)}", "give 1 or more")

    def make_costs(self, drafters: Sequence[str]) -> ServerCosts:
        """What rounds cost with these drafters.

        Raises:
            DraftgymError: Neither published costs nor a measured host, a drafter without costs, or
                more places than were measured.
        """
        costs = make_server_costs(self.costs, drafters)
        texts = self.places * self.copies
        if costs.most_texts is not None and texts > costs.most_texts:
            raise DraftgymError(
                f"{texts} places; up to {costs.most_texts} texts were measured",
                "give fewer places, or measure more: draftgym measure-host --users",
            )
        return costs
