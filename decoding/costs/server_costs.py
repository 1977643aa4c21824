"""What a round of many texts costs on one server: one pass over all rows, and drafting before it.

The cost model (`draftgym.decoding.costs.cost_model`) times the rounds of one text. What a row costs
on a server depends on who else is there:

* `LinearServerCosts` (published fits): a pass is linear in rows and cached positions of the batch.
  Texts that ask one drafter draft together, which takes its start once, however deep the drafts
  are, and everybody's rows. That is how the fit's authors reckon (`predict_draft_time` of their
  simulator).
* `MeasuredServerCosts` (`draftgym measure-host`): a pass goes by texts, rows and context. Texts
  draft one after the other, as in `draftgym serve`.

Notation: n = servers, K = texts of a batch, D = drafters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.arms import Arm, Asking
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel, Curve, slope_beyond
from draftgym.decoding.costs.published import LinearCosts
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BatchDrafts:
    """What drafting for a batch comes to.

    Attributes:
        asked: Which drafters each text asks `[n, K, D]`. Of others nothing is read, and everything
            below is 0.
        steps: Levels that they draft `[n, K, D]`.
        tokens: Rows of their drafts `[n, K, D]`.
        missed: Positions that they encode first `[n, K, D]`.
        context: Positions in the target's cache `[n, K]`.
        alone: Seconds of drafting by `ServerCosts.model`, without encoding `[n, K]`.
        copies: How many identical texts each of these stands for.
    """

    asked: NDArray[np.bool_]
    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    missed: NDArray[np.int64]
    context: NDArray[np.int64]
    alone: Floats
    copies: int = 1


class ServerCosts(ABC):
    """Prices the rounds of a server.

    Attributes:
        drafters: Their names, in the order of `BatchDrafts`.
        model: What prices the drafts of one text alone; None where nothing needs it.
        most_texts: Texts of a pass at most; None where any number can be priced.
    """

    drafters: tuple[str, ...]
    model: CostModel | None = None
    most_texts: int | None = None

    @abstractmethod
    def pass_seconds(self, texts: ArrayLike, rows: ArrayLike, cached: ArrayLike) -> Floats:
        """Seconds of passes; 0 where there is no text.

        Args:
            texts: Texts that have rows in each pass `[n]`.
            rows: Rows of all of them `[n]`.
            cached: Cached positions of all of them `[n]`.
        """

    def draft_seconds(self, drafts: BatchDrafts) -> Floats:
        """Seconds of drafting for batches `[n]`, catching up included."""
        own = drafts.copies * self.own_seconds(drafts).sum(-1)
        return np.asarray(own + self.shared_seconds(drafts))

    @abstractmethod
    def own_seconds(self, drafts: BatchDrafts) -> Floats:
        """What each text's draft adds, whoever else drafts `[n, K]`."""

    @abstractmethod
    def shared_seconds(self, drafts: BatchDrafts) -> Floats:
        """What drafting takes beside that, for all together `[n]`."""

    @abstractmethod
    def chain_seconds(
        self, drafter: str, texts: ArrayLike, length: int, cached: ArrayLike
    ) -> Floats:
        """Seconds of drafting a chain for each of some texts, of which none has to be caught up.

        Args:
            drafter: Whose chains.
            texts: How many texts `[n]`.
            length: Tokens of each chain.
            cached: Cached positions of all of them `[n]`.
        """


class LinearServerCosts(ServerCosts):
    """A published fit, for batches.

    Args:
        costs: The fit.
        drafters: Names of drafters. Those that look up are priced as lookups, the others all as the
            network that was measured.
    """

    def __init__(self, costs: LinearCosts, drafters: Sequence[str]) -> None:
        self.costs, self.drafters = costs, tuple(drafters)

    def pass_seconds(self, texts: ArrayLike, rows: ArrayLike, cached: ArrayLike) -> Floats:
        """See `ServerCosts`."""
        costs, rows, cached = self.costs, np.asarray(rows, float), np.asarray(cached, float)
        seconds = costs.step + costs.pass_start + costs.pass_row * rows + costs.pass_cached * cached
        return np.where(np.asarray(texts) > 0, seconds, 0.0)

    def own_seconds(self, drafts: BatchDrafts) -> Floats:
        """See `ServerCosts`: rows, and cached positions that are read."""
        seconds = np.zeros(drafts.context.shape)
        for column in self._networks:
            rows = drafts.tokens[..., column] + drafts.missed[..., column]
            read = np.where(drafts.steps[..., column] > 0, drafts.context, 0)
            seconds += self.costs.draft_row * rows + self.costs.draft_cached * read
        return seconds

    def shared_seconds(self, drafts: BatchDrafts) -> Floats:
        """See `ServerCosts`: starts, and lookups: a share of a pass over who looks up."""
        seconds = np.zeros(len(drafts.context))
        for column in self._networks:
            seconds += self.costs.draft_start * (drafts.steps[..., column] > 0).any(-1)
        for column, name in enumerate(self.drafters):
            if name in LOOKUPS:
                seconds += self._lookups(drafts.copies * drafts.asked[..., column].sum(-1))
        return seconds

    @property
    def _networks(self) -> list[int]:
        """Columns of the drafters that have one."""
        return [column for column, name in enumerate(self.drafters) if name not in LOOKUPS]

    def chain_seconds(
        self, drafter: str, texts: ArrayLike, length: int, cached: ArrayLike
    ) -> Floats:
        """See `ServerCosts`."""
        texts, cached = np.asarray(texts, float), np.asarray(cached, float)
        if drafter in LOOKUPS:
            return self._lookups(texts)
        if not length:
            return np.zeros(np.broadcast_shapes(texts.shape, cached.shape))
        costs = self.costs
        seconds = costs.draft_start + costs.draft_cached * cached
        return np.where(texts > 0, seconds + costs.draft_row * length * texts, 0.0)

    def _lookups(self, texts: ArrayLike) -> Floats:
        texts = np.asarray(texts, float)
        seconds = self.costs.lookup * (self.costs.pass_start + self.costs.pass_row * texts)
        return np.where(texts > 0, seconds, 0.0)


class MeasuredServerCosts(ServerCosts):
    """This host's server, as it was measured.

    Passes with more rows than were measured, which parts of prompts make, go on along the last
    measured slope.

    Args:
        batches: What passes over several texts take.
        model: What drafting takes.
        drafters: Names of drafters.

    Raises:
        DraftgymError: A drafter that was not measured.
    """

    model: CostModel

    def __init__(self, batches: BatchCost, model: CostModel, drafters: Sequence[str]) -> None:
        for name in drafters:
            if not (name in model.draft and name in model.catch_up):
                raise DraftgymError(
                    f"the cost model knows no costs of {name}",
                    f"leave out its arms, or measure one with it; it has {', '.join(model.draft)}",
                )
        self.batches, self.model, self.drafters = batches, model, tuple(drafters)
        self.most_texts = batches.users[-1]

    def pass_seconds(self, texts: ArrayLike, rows: ArrayLike, cached: ArrayLike) -> Floats:
        """See `ServerCosts`.

        Raises:
            DraftgymError: More texts than were measured.
        """
        texts = np.asarray(texts)
        some = np.maximum(texts, 1)
        rows, context = np.maximum(rows, some), np.asarray(cached) / some
        each = self.batches.rows_each
        most = some * each[-1]
        seconds = self.batches(some, np.minimum(rows, most), context)
        beyond = np.maximum(rows - most, 0)
        if beyond.any() and len(each) > 1:
            ends = (self.batches(some, some * at, context) for at in (each[-1], each[-2]))
            slope = np.maximum(np.subtract(*ends), 0.0) / (some * (each[-1] - each[-2]))
            seconds = seconds + slope * beyond
        return np.where(texts > 0, seconds, 0.0)

    def own_seconds(self, drafts: BatchDrafts) -> Floats:
        """See `ServerCosts`."""
        seconds = drafts.alone
        for column, name in enumerate(self.drafters):
            costs = curve_seconds(self.model.catch_up[name], drafts.missed[..., column])
            seconds = seconds + np.where(drafts.asked[..., column], costs, 0.0)
        return seconds

    def shared_seconds(self, drafts: BatchDrafts) -> Floats:
        """See `ServerCosts`: nothing."""
        return np.zeros(len(drafts.context))

    def chain_seconds(
        self, drafter: str, texts: ArrayLike, length: int, cached: ArrayLike
    ) -> Floats:
        """See `ServerCosts`."""
        asked = Asking(Arm(drafter, length), length, length)
        return np.asarray(texts, float) * self.model.draft_seconds(asked)


def curve_seconds(curve: Curve, x: ArrayLike) -> Floats:
    """A curve's costs at many arguments."""
    x = np.asarray(x, float)
    beyond = np.maximum(x - curve.at[-1], 0.0) * slope_beyond(curve.at, curve.seconds)
    return np.asarray(np.interp(x, curve.at, curve.seconds) + beyond)
