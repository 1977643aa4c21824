"""The survival budget in closed form: how likely a drafted path must be to be worth its row.

Verifying one more row makes the target's pass longer. In those seconds the text would have grown by
`price * seconds` tokens, the price being the tokens a second that it grows by; the row adds a token
where the path to it survives verification. So rows pay from the probability

    p = price * seconds of one more row

on. That is what vLLM's adaptive verification, D-Cut and DSpark decide with tables of costs, here
for one text; and arms have it as `~p`. Rules that ask something else of drafted tokens are in
`draftgym.policies.routers.stopping`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.base import Policy
from draftgym.policies.routers.bandits import full_round_seconds, read_context, read_rounds


class SurvivalPolicy(Policy):
    """Of arms that differ in one `~p`, the one whose p is nearest to what a row must be worth.

    Without a price it keeps an account of its own: tokens of all rounds that were reported over the
    seconds that the cost model has for full drafts. Those are too many where drafts stop early or
    another part of a cascade had something to offer, so that price errs on the low side. Until the
    first report it is that of plain decoding.

    Args:
        arms: What to choose from, alike but for `~` of one part.
        cost_model: What rows cost.
        price: Tokens a second; None keeps account.
        name: How tables call it.

    Raises:
        DraftgymError: The arms differ in something else, or the price is not above 0.

    Attributes:
        tokens: Tokens of the rounds reported so far; 0 with a given price.
        seconds: What these rounds cost.
    """

    observes = True

    def __init__(
        self,
        arms: Sequence[Arm],
        cost_model: CostModel,
        price: float | None = None,
        name: str = "survival",
    ) -> None:
        if price is not None and not (math.isfinite(price) and price > 0):
            raise DraftgymError(
                f"policy {name!r} has a price of {price}",
                "give tokens a second, as in survival:40@eagle3:3x6~0.03,eagle3:3x6~0.1",
            )
        self.name = name
        self.arms = tuple(arms)
        self.tokens = self.seconds = 0.0
        place = _differing_part(self.arms, name)
        self._rows = self.arms[0].parts[place].shape.budget
        self._sure = np.array([arm.parts[place].sure for arm in arms])
        self._cost_model, self._price = cost_model, price

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """Takes in what rounds are reported, then the nearest probability for each episode."""
        signals = np.asarray(observation["signals"])
        contexts = read_context(signals).tolist()
        if self._price is None:
            self._keep_account(signals, contexts)
        worth = np.array([self.price(context) * self.row_seconds(context) for context in contexts])
        nearest: NDArray[np.int64] = np.abs(self._sure - worth[:, None]).argmin(1)
        return nearest

    def price(self, context: int) -> float:
        """Tokens a second.

        Args:
            context: Positions in the target's cache.
        """
        if self._price is not None:
            return self._price
        plain = 1 / self._cost_model.step_seconds(context)
        return self.tokens / self.seconds if self.seconds else plain

    def row_seconds(self, context: int) -> float:
        """What one more row costs there: the mean over those of a full draft."""
        most = self._cost_model.target_seconds(1 + self._rows, context)
        return (most - self._cost_model.target_seconds(1, context)) / self._rows

    def _keep_account(self, signals: NDArray[np.float32], contexts: Sequence[int]) -> None:
        reported = (column.tolist() for column in read_rounds(signals, len(self.arms)))
        for row, arm, tokens in zip(*reported, strict=True):
            before = contexts[row] - tokens
            self.tokens += tokens
            self.seconds += full_round_seconds(self._cost_model, self.arms[arm], before, tokens)


def _differing_part(arms: Sequence[Arm], name: str) -> int:
    """Which part has another `~` in each of the arms; the last one where there is one arm."""
    kinds = {(type(arm), tuple(replace(one, sure=0.0) for one in arm.parts)) for arm in arms}
    columns = list(zip(*([one.sure for one in arm.parts] for arm in arms), strict=False))
    differing = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    if len(kinds) != 1 or not columns or len(differing) > 1:
        raise DraftgymError(
            f"policy {name!r} chooses between arms that differ in more than one ~",
            "name arms of one drafter, as in survival@eagle3:3x6~0.03,eagle3:3x6~0.1",
        )
    return differing[0] if differing else len(columns) - 1
