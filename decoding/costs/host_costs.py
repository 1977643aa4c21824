"""What `draftgym measure-host` writes: what passes of many texts, and drafting, take on a host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.published import PUBLISHED, published_costs
from draftgym.decoding.costs.server_costs import (
    LinearServerCosts,
    MeasuredServerCosts,
    ServerCosts,
)
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json

AGAIN = "measure it with draftgym measure-host --out FILE"


@dataclass(frozen=True)
class HostCosts:
    """What verifying and drafting take on a host.

    Attributes:
        batches: Passes over drafts of several users.
        costs: The cost model; drafting is read from it.
        facts: Processor, target, versions.
    """

    batches: BatchCost
    costs: CostModel
    facts: Mapping[str, Any]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads `to_json`'s text.

        Raises:
            DraftgymError: The text is no such thing.
        """
        try:
            body = parse_json(text, "not a measured host: it", AGAIN)
            batches, costs = (json.dumps(body[name]) for name in ("batches", "costs"))
            facts = dict(body["facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise DraftgymError(f"not a measured host: {error!r}", AGAIN) from error
        return cls(BatchCost.from_json(batches), CostModel.from_json(costs), facts)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of `draftgym measure-host`.

        Raises:
            DraftgymError: It cannot be read, or holds something else.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, DraftgymError) as error:
            problem = error.problem if isinstance(error, DraftgymError) else str(error)
            raise DraftgymError(f"{path}: {problem}", AGAIN) from error


def make_server_costs(given: str | Path | HostCosts, drafters: Sequence[str]) -> ServerCosts:
    """What rounds of a server cost.

    Args:
        given: Published costs by name, a file of `draftgym measure-host`, or what it holds.
        drafters: Names of drafters.

    Raises:
        DraftgymError: It is neither, or a drafter has no costs.
    """
    if isinstance(given, str) and (given in PUBLISHED or not Path(given).exists()):
        return LinearServerCosts(published_costs(given), drafters)
    host = given if isinstance(given, HostCosts) else HostCosts.read(Path(given))
    return MeasuredServerCosts(host.batches, host.costs, drafters)
