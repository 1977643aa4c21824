"""Predictors of rounds, and the rounds of who believes them.

A predictor is a gradient-boosted regression per arm, of the tokens that a round with it commits,
less what it costs beyond the usual.

Notation: R = positions of all texts, text behind text; A = arms; k = facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from draftgym.rollouts.replay.oracle import Walk, total, walk
from draftgym.rollouts.replay.pricing import PricedText

Floats = NDArray[np.float64]
PRICES = 3
"""Times that the price is set to the speed that it leads to."""
MARGINS = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Tokens by which another arm must be ahead of the first."""


@dataclass(frozen=True)
class Terms:
    """On what terms a prediction is believed.

    The best of several guesses is mostly one that was too high, so the first arm is left only for
    one that is ahead by a margin.

    Attributes:
        price: Tokens that a second is worth.
        margin: Tokens.
    """

    price: float
    margin: float = 0.0


@dataclass(frozen=True, eq=False)
class Worth:
    """What a round is worth: committed tokens - price * seconds, catching up apart.

    What rounds cost tells what lookups found and how sure drafters are. So nobody is told; a
    predictor counts on the usual cost, and learns what a round costs beyond it, in tokens.

    Attributes:
        price: Tokens that a second is worth.
        usual: Mean cost of a round by arm, in seconds `[A]`.
    """

    price: float
    usual: Floats

    @classmethod
    def of(cls, texts: Sequence[PricedText], price: float) -> Worth:
        """With the mean costs of some texts."""
        return cls(price, np.concatenate([text.seconds for text in texts]).mean(0))

    def net_tokens(self, texts: Sequence[PricedText]) -> Floats:
        """Committed tokens, less what the round costs beyond the usual `[R, A]`."""
        committed = np.concatenate([text.committed for text in texts])
        beyond = np.concatenate([text.seconds for text in texts]) - self.usual
        net: Floats = committed - self.price * beyond
        return net

    def play(self, texts: Sequence[PricedText], net: Floats, terms: Terms) -> list[Walk]:
        """The rounds of who believes a prediction of net tokens.

        Args:
            texts: Some texts.
            net: Net tokens by position of them and arm `[R, A]`.
            terms: On what terms.
        """
        worth = net - terms.price * self.usual
        worth[:, 0] += terms.margin
        ends = np.cumsum([len(text) for text in texts])[:-1]
        parts = zip(texts, np.split(worth, ends), strict=True)
        return [_play(text, mine, terms.price) for text, mine in parts]

    def settle(self, texts: Sequence[PricedText], net: Floats) -> Terms:
        """The margin that is fastest, and its speed for a price (Dinkelbach)."""
        terms = Terms(self.price)
        for _ in range(PRICES):
            tried = [Terms(terms.price, margin) for margin in MARGINS]
            speeds = [total(self.play(texts, net, one)).tokens_per_second for one in tried]
            best = int(np.argmax(speeds))
            terms = Terms(speeds[best], MARGINS[best])
        return terms


def _play(text: PricedText, worth: Floats, price: float) -> Walk:
    def choose(position: int, costs: Floats) -> int:
        catching_up = costs - text.seconds[position]
        return int(np.argmax(worth[position] - price * catching_up))

    return walk(text, choose)


class Predictor:
    """Predicts what rounds with every arm are worth.

    Args:
        facts: What is known of some positions `[R, k]`.
        net: Net tokens of rounds that begin there `[R, A]`.
    """

    def __init__(self, facts: Floats, net: Floats) -> None:
        self._trees = [_fit(facts, column) for column in net.T]

    def __call__(self, facts: Floats) -> Floats:
        """Net tokens `[R, A]`."""
        return np.column_stack([trees.predict(facts) for trees in self._trees])


def _fit(facts: Floats, wanted: Floats) -> HistGradientBoostingRegressor:
    trees = HistGradientBoostingRegressor(
        max_iter=80,
        learning_rate=0.08,
        max_leaf_nodes=12,
        min_samples_leaf=60,
        l2_regularization=5.0,
        early_stopping=False,
        random_state=0,
    )
    return trees.fit(facts, wanted)
