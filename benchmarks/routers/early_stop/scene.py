"""Rounds with chains: every way of using one, priced, and who writes texts with some of them.

Notation: as `benchmarks.routers.early_stop.chains`; K = 1 + 2 L ways of using a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.routers.early_stop.acceptance import Floats, Signal
from benchmarks.routers.early_stop.chains import Chains
from draftgym.decoding.arms import Arm, Asking, Cascade, parse_arm
from draftgym.rollouts.replay.oracle import Walk, walk
from draftgym.rollouts.replay.pricing import (
    PricedText,
    backlogs,
    price_traces,
    round_seconds,
    step_seconds,
)
from draftgym.rollouts.traces.joint import made_by
from draftgym.rollouts.traces.trace import TextTrace, TraceSet

Ints = NDArray[np.int64]


def uses(length: int) -> tuple[Ints, Ints]:
    """Ways of using a chain: drafted and verified tokens of each, `[K]`.

    The first drafts nothing, the next L draft 1 to L tokens, the last L the same, but do not verify
    the last one.
    """
    drafted = np.arange(1, length + 1)
    return np.concatenate([[0], drafted, drafted]), np.concatenate([[0], drafted, drafted - 1])


def price_chains(
    traces: TraceSet, chains: Chains, drafter: str, first: Arm | None = None
) -> list[PricedText]:
    """Rounds that use chains in every way, one `uses` after the other in place of arms.

    Args:
        traces: The texts.
        chains: Of all their positions.
        drafter: Whose chains.
        first: What is verified alone wherever it has something to offer; None: nothing.

    Raises:
        DraftgymError: The drafter was not traced, or its costs are not known.
    """
    whole = next((arm for arm in traces.origin.arms if arm.startswith(f"{drafter}:")), drafter)
    arm = parse_arm(whole) if first is None else Cascade.of([first, parse_arm(whole)])
    texts = [text for text in traces.texts if len(text)]
    drafted, verified = uses(chains.length)
    arms = tuple(Arm(drafter, int(count)) for count in drafted)
    model = traces.origin.cost_model
    drafts = np.array([model.draft_seconds(Asking(one, one.length, one.length)) for one in arms])
    drafts[0] = 0.0
    longest = max(text.prompt_tokens + len(text) for text in texts)
    passes = np.array(
        [
            [model.target_seconds(1 + rows, context) for rows in range(chains.length + 1)]
            for context in range(longest)
        ]
    )
    made, start = [], 0
    for text, one in zip(texts, price_traces(replace(traces, texts=texts), [arm]), strict=True):
        accepted = chains.accepted[start : (start := start + len(text)), None]
        left = len(text) - np.arange(len(text))[:, None]
        asked = one.asked[:, [0] * len(arms)]
        asked[:, 0, -1] = False  # who drafts nothing asks nobody, but for the first part
        mine = replace(
            one,
            arms=arms,
            committed=np.minimum(1 + np.minimum(accepted, verified), left),
            seconds=passes[one.contexts][:, verified] + drafts,
            asked=asked,
        )
        made.append(mine if first is None else _behind(mine, text, traces, first))
    return made


def _behind(chained: PricedText, text: TextTrace, traces: TraceSet, first: Arm) -> PricedText:
    """The same where another arm is asked first; where it drafts, no chain is."""
    model, alone = traces.origin.cost_model, made_by(text, first)
    free, asking = (alone.drafted > 0)[:, None], round_seconds(model, text, first)[:, None]
    step = step_seconds(model, text)[:, None]
    return replace(
        chained,
        committed=np.where(free, alone.committed[:, None], chained.committed),
        seconds=np.where(free, asking, asking - step + chained.seconds),
    )


@dataclass(frozen=True, eq=False)
class Scene:
    """Texts that rules write.

    Attributes:
        texts: Their rounds; arms are the `uses` of a chain.
        chains: Of all their positions.
        scores: Of every token, by signal `[R, L]`.
        asked: Whether the drafter is asked there, and not something before it alone `[R]`.
    """

    texts: Sequence[PricedText]
    chains: Chains
    scores: Mapping[str, Floats]
    asked: NDArray[np.bool_]

    @classmethod
    def of(
        cls, texts: Sequence[PricedText], chains: Chains, signals: Mapping[str, Signal]
    ) -> Scene:
        """Of priced chains and what is known of them."""
        asked = np.concatenate([text.asked[:, -1, -1] for text in texts])
        scores = {name: signal.scores() for name, signal in signals.items()}
        return cls(texts, chains, scores, asked)

    def play(self, chosen: Ints) -> list[Walk]:
        """The rounds of who uses every position's chain like this `[R]`."""
        each = np.split(chosen, np.cumsum([len(text) for text in self.texts])[:-1])
        return [
            walk(text, partial(_chosen, mine.tolist()))
            for text, mine in zip(self.texts, each, strict=True)
        ]

    def speed(self, chosen: Ints) -> float:
        """Tokens per second of `play`, of all texts side by side, for those who try a lot."""
        rounds, tables = self._rounds, self.texts[0].catch_ups.tables
        sizes = np.array([len(text) for text in self.texts])
        ends, rows = np.cumsum(sizes), np.cumsum(sizes) - sizes
        last_used, seconds = np.tile(self.texts[0].never, (len(sizes), 1)), 0.0
        while len(rows):
            use, contexts = chosen[rows], rounds.contexts[rows, None]
            asked = rounds.asked[rows, use]
            waited = backlogs(contexts, last_used, rounds.remaining[rows, None])
            caught_up = tables[np.arange(len(tables)), waited] * asked
            seconds += rounds.seconds[rows, use].sum() + caught_up.sum()
            last_used = np.where(asked, contexts, last_used)
            rows = rows + rounds.committed[rows, use]
            going = rows < ends
            rows, ends, last_used = rows[going], ends[going], last_used[going]
        return float(sizes.sum() / seconds)

    @cached_property
    def _rounds(self) -> PricedText:
        """Those of all texts, one behind the other."""
        return replace(
            self.texts[0],
            committed=np.concatenate([text.committed for text in self.texts]),
            seconds=np.concatenate([text.seconds for text in self.texts]),
            contexts=np.concatenate([text.contexts for text in self.texts]),
            remaining=np.concatenate([text.remaining for text in self.texts]),
            asked=np.concatenate([text.asked for text in self.texts]),
        )


def _chosen(chosen: Sequence[int], position: int, costs: object) -> int:
    return chosen[position]
