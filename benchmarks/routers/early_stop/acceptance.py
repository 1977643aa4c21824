"""Signals that say whether drafted tokens will be accepted, heads that learn to, and how well.

The heads are SpecDec++'s (`draftgym.policies.routers.acceptance`).

Notation: as `benchmarks.routers.early_stop.chains`; k = numbers that a head reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from benchmarks.report import Json
from benchmarks.routers.early_stop.chains import Chains
from draftgym.policies.routers.acceptance import REJECTED, AcceptanceHead

Floats = NDArray[np.float64]
EPOCHS, BATCH, RATE = 3, 256, 1e-3
ROWS = 16_384
"""Rows that a head judges at once."""
TOKEN, PATH, SVIP = "a token's probability", "a path's probability", "entropy"
PUBLISHED, EARLIER, ALL = "acceptance head", "head, a step earlier", "head that knows all"
HEADS = (
    (PUBLISHED, True, False, REJECTED),
    (EARLIER, False, False, REJECTED),
    (ALL, False, True, 1.0),
)
"""Name, whether it judges late, whether it knows more than the state, and `REJECTED`. Published is
one that reads the state behind a token, which the next step gives."""


@dataclass(frozen=True, eq=False)
class Signal:
    """How sure somebody is of the tokens of chains; more is surer.

    Attributes:
        tokens: Of each token `[R, L]`.
        of_path: Whether tokens add up from the anchor on, as log-probabilities do.
        late: Whether a token is judged only when the next one is drafted, too.
    """

    tokens: Floats
    of_path: bool = False
    late: bool = False

    def scores(self) -> Floats:
        """What a rule compares with its threshold when a token has been drafted `[R, L]`."""
        scores = np.cumsum(self.tokens, 1) if self.of_path else self.tokens
        if not self.late:
            return scores
        return np.concatenate([np.zeros((len(scores), 1)), scores[:, :-1]], 1)


def make_signals(
    learned: Chains, tested: Chains, bounds: Sequence[int], folds: int, seed: int = 0
) -> list[dict[str, Signal]]:
    """The signals of training and of held-out chains, by name.

    Those of training chains that a head gives are of a head that was trained on other texts.

    Args:
        learned: Of training texts.
        tested: Of held-out texts.
        bounds: Where each training text begins.
        folds: Parts of the training texts, each of which is judged by a head of the others.
        seed: Of the heads.
    """
    text = np.zeros(len(learned), dtype=np.int64)
    text[list(bounds)[1:]] = 1
    fold = np.random.default_rng(seed).permutation(len(bounds))[text.cumsum()] % folds
    made: list[dict[str, Signal]] = []
    for chains in (learned, tested):
        sure = chains.logprobs.astype(np.float64)
        entropy = Signal(-chains.entropies.astype(np.float64))
        made.append({TOKEN: Signal(sure), PATH: Signal(sure, of_path=True), SVIP: entropy})
    for name, late, knows_all, weight in HEADS:
        mine, others = (Examples.of(chains, late, knows_all) for chains in (learned, tested))
        for found, judged in zip(made, _judge(mine, others, fold, weight, seed), strict=True):
            found[name] = Signal(judged, of_path=True, late=late)
    return made


@dataclass(frozen=True, eq=False)
class Examples:
    """What a head reads and has to find out.

    Attributes:
        facts: Numbers about every token `[R, L, k]`.
        right: Whether it is accepted if all before it are `[R, L]`.
        known: Whether that is known: all before it are `[R, L]`.
    """

    facts: Tensor
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, chains: Chains, late: bool, knows_all: bool) -> Examples:
        """Of chains.

        Args:
            chains: The chains.
            late: Whether the state is read that knows the token; the last token then has none.
            knows_all: Whether log-probabilities of token and path, entropy and depth are told.
        """
        order = np.arange(chains.length)
        known = (order <= chains.accepted[:, None]) & (order < chains.room[:, None])
        facts = torch.from_numpy(chains.states)
        if late:
            known, facts = known & (order < chains.length - 1), facts.roll(-1, 1)
        if knows_all:
            sure = chains.logprobs
            depth = np.broadcast_to(order / chains.length, sure.shape)
            more = np.stack([sure, sure.cumsum(1), np.exp(sure), chains.entropies, depth], 2)
            facts = torch.cat([facts, torch.from_numpy(more).half()], 2)
        return cls(facts, order < chains.accepted[:, None], known)


def train_head(facts: Tensor, right: Tensor, weight: float, seed: int) -> AcceptanceHead:
    """A head that predicts acceptance.

    Args:
        facts: Of some tokens `[n, k]`.
        right: Which of them are accepted, as 0 and 1 `[n]`.
        weight: How much rejected ones count.
        seed: Of weights and order.
    """
    generator = torch.Generator().manual_seed(seed)
    read = facts.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AcceptanceHead(read.shape[1])
    head.mean, head.spread = read.mean(0), read.std(0).clamp(min=1e-6)
    steps = EPOCHS * -(-len(facts) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    counts = torch.where(right > 0, 1.0, weight)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(facts), generator=generator).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(head(facts[rows]), right[rows], counts[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def _judge(
    learned: Examples, tested: Examples, fold: NDArray[np.int64], weight: float, seed: int
) -> tuple[Floats, Floats]:
    """Log-probabilities of acceptance of both, each by heads that saw none of their texts."""
    mine = np.zeros(learned.right.shape)
    for part in range(fold.max() + 1):
        head = head_of(learned, fold != part, weight, seed)
        mine[fold == part] = _log_chance(head, learned.facts[fold == part])
    return mine, _log_chance(head_of(learned, fold >= 0, weight, seed), tested.facts)


def head_of(
    examples: Examples, rows: NDArray[np.bool_], weight: float = REJECTED, seed: int = 0
) -> AcceptanceHead:
    """A head that was trained on some rows `[R]` of examples."""
    chosen = torch.from_numpy(examples.known & rows[:, None])
    right = torch.from_numpy(examples.right)[chosen].float()
    return train_head(examples.facts[chosen], right, weight, seed)


@torch.inference_mode()
def _log_chance(head: AcceptanceHead, facts: Tensor) -> Floats:
    flat = facts.flatten(0, 1).split(ROWS)
    logits = torch.cat([head(rows) for rows in flat]).double()
    chances: Floats = F.logsigmoid(logits).view(facts.shape[:2]).numpy()
    return chances


def quality(learned: Chains, tested: Chains, mine: Signal, other: Signal) -> Json:
    """How well a signal tells accepted from rejected tokens of held-out texts.

    Args:
        learned: Chains of training texts.
        tested: Of held-out texts.
        mine: The signal of the first, from which an increasing function makes probabilities.
        other: The same signal of the others.

    Returns:
        Of tokens that come behind accepted ones, the last of a chain left out: area under the ROC
        curve, and log-loss in nats. `path`: area for whether a token is accepted with all before
        it, by the least sure score so far, when it is drafted.
    """
    sides = []
    for chains, signal in ((learned, mine), (tested, other)):
        one = Examples.of(chains, late=True, knows_all=False)
        sides.append((signal.tokens[one.known], one.right[one.known]))
    (told, was), (tell, is_right) = sides
    probable = IsotonicRegression(y_min=0.002, y_max=0.998, out_of_bounds="clip").fit(told, was)
    there = np.arange(tested.length) < tested.room[:, None]
    reached = np.arange(tested.length) < tested.accepted[:, None]
    least = np.minimum.accumulate(other.scores(), 1)
    return {
        "auc": float(roc_auc_score(is_right, tell)),
        "log_loss": float(log_loss(is_right, probable.predict(tell))),
        "path": float(roc_auc_score(reached[there], least[there])),
    }
