"""What a round of the batch should have taken by a server's costs, beside what it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from draftgym.decoding.costs.server_costs import BatchDrafts, ServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.round import RoundRecord
from draftgym.policies.serving.stored import CostsOf


class RoundPrices:
    """Prices rounds that were played.

    Args:
        costs: What rounds cost with some drafters.
        drafters: Drafters that may be asked; those that the costs know are priced.
    """

    def __init__(self, costs: CostsOf, drafters: Iterable[str]) -> None:
        self._names = tuple(name for name in drafters if _knows(costs, name))
        self._costs: ServerCosts = costs(self._names)

    def seconds(
        self, records: Sequence[RoundRecord], prompt_rows: int
    ) -> tuple[float, float] | None:
        """Seconds of drafting and of the pass; None where the costs say nothing of it.

        Prompts that are read in the pass count as rows of one more text.

        Args:
            records: What happened, one per text that was being written.
            prompt_rows: Rows of prompts.
        """
        try:
            draft = float(self._costs.draft_seconds(self._drafts(records))[0]) if records else 0.0
            texts = len(records) + (prompt_rows > 0)
            rows = sum(1 + len(record.drafted) for record in records) + prompt_rows
            cached = sum(record.context for record in records)
            (verify,) = self._costs.pass_seconds(
                *(np.array([one]) for one in (texts, rows, cached))
            )
        except (DraftgymError, ValueError):  # a drafter or a tree that nobody measured
            return None
        return draft, float(verify)

    def _drafts(self, records: Sequence[RoundRecord]) -> BatchDrafts:
        each = (1, len(records), len(self._names))
        asked = np.zeros(each, np.bool_)
        steps, tokens, missed = np.zeros((3, *each), np.int64)
        alone = np.zeros(each[:2])
        for place, record in enumerate(records):
            for one in record.asked:
                column = self._names.index(one.arm.drafter)
                asked[0, place, column] = True
                steps[0, place, column], missed[0, place, column] = one.depth, one.caught_up
                nodes = one.arm.nodes
                tokens[0, place, column] = nodes if nodes and one.depth else one.drafted
                if self._costs.model is not None:
                    alone[0, place] += self._costs.model.draft_seconds(one)
        context = np.array([[record.context for record in records]])
        return BatchDrafts(asked, steps, tokens, missed, context, alone)


def _knows(costs: CostsOf, drafter: str) -> bool:
    try:
        costs([drafter])
    except DraftgymError:
        return False
    return True
