"""Rules that stop a chain while it is drafted.

Notation: as `benchmarks.routers.early_stop.chains`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.routers.early_stop.acceptance import (
    ALL,
    EARLIER,
    PATH,
    PUBLISHED,
    SVIP,
    TOKEN,
    Floats,
)
from benchmarks.routers.early_stop.scene import Ints, Scene
from benchmarks.routers.joint import climb
from draftgym.policies.routers.stopping import RocThreshold
from draftgym.rollouts.replay.oracle import Choice, Walk, total, walk


@dataclass(frozen=True)
class Setting:
    """What a rule may set.

    Attributes:
        length: Tokens that are drafted at most.
        least: Score below which a token stops the draft.
        keeps: Whether that token is verified, too.
    """

    length: int
    least: float
    keeps: bool


def stop(scores: Floats, room: Ints, setting: Setting) -> Ints:
    """Which of the `uses` a rule makes of chains `[R]`.

    Args:
        scores: Of their tokens `[R, L]`.
        room: Most tokens that may be drafted `[R]`.
        setting: The rule's.
    """
    length = scores.shape[1]
    unsure = scores < setting.least
    first = np.where(unsure.any(1), unsure.argmax(1), length)
    most = np.minimum(room, setting.length)
    drafted = np.minimum(first + 1, most)
    chosen: Ints = drafted + np.where((first < most) & (not setting.keeps), length, 0)
    return chosen


def play_roc(scene: Scene, setting: Setting, across: bool) -> list[Walk]:
    """Moves the threshold of a token's probability after every round, as transformers does.

    Args:
        scene: The texts.
        setting: With the threshold that is begun with.
        across: Whether rounds of earlier texts count, too. In transformers each text begins anew.
    """
    threshold, start, walks = RocThreshold(setting.least), 0, []
    most = np.where(scene.asked, np.minimum(scene.chains.room, setting.length), 0).tolist()
    sure, accepted = scene.chains.logprobs.tolist(), scene.chains.accepted.tolist()
    for text in scene.texts:
        threshold = threshold if across else RocThreshold(setting.least)
        rows = slice(start, start := start + len(text))
        chains = [row[:n] for row, n in zip(sure[rows], most[rows], strict=True)]
        skip = 0 if setting.keeps else scene.chains.length
        walks.append(walk(text, _roc_choice(chains, accepted[rows], threshold, skip)))
    return walks


def _roc_choice(
    chains: Sequence[Sequence[float]], accepted: Sequence[int], now: RocThreshold, skip: int
) -> Choice:
    """Chooses among `uses`; those that leave out the last token are `skip` further on."""

    def choose(position: int, costs: object) -> int:
        chain, least = chains[position], now.least
        drafted = next((n for n, one in enumerate(chain, 1) if one < least), len(chain))
        if not drafted:
            return 0
        now.add(chain[:drafted], min(accepted[position], drafted))
        return drafted + (skip if chain[drafted - 1] < least else 0)

    return choose


@dataclass(frozen=True)
class Rule:
    """A rule that stops a draft behind the first token whose score is below a threshold.

    Attributes:
        signal: Whose scores.
        published: Its threshold as published, and whether the token that stops is verified.
        keeps: What there is to choose from of the latter.
        across: Whether the threshold, which moves (`play_roc`), is kept from text to text; None: it
            does not move.
    """

    signal: str
    published: tuple[float, bool] | None = None
    keeps: tuple[bool, ...] = (False, True)
    across: bool | None = None

    def play(self, scene: Scene, setting: Setting) -> list[Walk]:
        """Its rounds."""
        if self.across is not None:
            return play_roc(scene, setting, self.across)
        return scene.play(stop(scene.scores[self.signal], scene.chains.room, setting))

    def speed(self, scene: Scene, setting: Setting) -> float:
        """Tokens per second of these rounds."""
        if self.across is not None:
            return total(self.play(scene, setting)).tokens_per_second
        return scene.speed(stop(scene.scores[self.signal], scene.chains.room, setting))

    def tuned(self, scene: Scene) -> Setting:
        """The fastest setting on some texts that is found one at a time."""
        scores = scene.scores[self.signal][scene.asked]
        quantiles: list[float] = np.quantile(scores, QUANTILES).tolist()
        leasts = quantiles if self.across is None else ROC_BEGINS
        known: dict[Setting, float] = {}

        def worth(chosen: Sequence[Any]) -> float:
            setting = Setting(*chosen)
            if setting not in known:
                known[setting] = self.speed(scene, setting)
            return known[setting]

        axes = [range(1, scores.shape[1] + 1), leasts, self.keeps]
        starts = [[scores.shape[1], leasts[len(leasts) // 3], keeps] for keeps in self.keeps]
        return Setting(*max((climb(axes, one, worth) for one in starts), key=worth))


QUANTILES = np.linspace(0, 0.93, 32)
ROC_BEGINS: list[float] = np.log([0.2, 0.4, 0.6, 0.8]).tolist()
SHIPPED = "`~P`"
BY_ROC = f"{TOKEN}, threshold by ROC"
RULES = {
    SHIPPED: Rule(PATH, keeps=(False,)),
    PATH: Rule(PATH),
    TOKEN: Rule(TOKEN, (float(np.log(0.4)), True)),  # transformers' default
    BY_ROC: Rule(TOKEN, (float(np.log(0.4)), True), across=False),
    f"{BY_ROC} over all texts": Rule(TOKEN, (float(np.log(0.4)), True), across=True),
    SVIP: Rule(SVIP, (-0.6, True)),  # where sqrt(0.15 * entropy) is above 0.3
    PUBLISHED: Rule(PUBLISHED, (float(np.log(0.7)), True)),  # a rejection is likelier than 0.3
    EARLIER: Rule(EARLIER),
    ALL: Rule(ALL),
}
"""Rules by name, the one that is shipped first."""
