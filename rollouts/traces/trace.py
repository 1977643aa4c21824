"""A trace: what every arm would have done at every position of a text.

A policy never changes the text, and a proposal depends on the committed prefix alone. So one text
with every arm's counterfactuals holds the rounds of *any* policy: rounds can be replayed, and
perfect choice computed, without decoding again.

Notation: m = new tokens of a text, n = m - 1 = positions at which a round can begin, d = hidden
size of the target.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Graft, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError


@dataclass(frozen=True)
class ArmTrace:
    """What one arm would have done, per position of the anchor.

    Attributes:
        committed: Tokens a round with this arm would have committed `[n]`, at least 1.
        drafted: Tokens it would have proposed `[n]`.
        depth: Tokens on its longest path `[n]`.
    """

    committed: NDArray[np.int64]
    drafted: NDArray[np.int64]
    depth: NDArray[np.int64]


@dataclass(frozen=True)
class Drafts:
    """The tokens of chains or trees, one per position.

    Attributes:
        tokens: Token ids `[n, budget]`; how many count, `ArmTrace.drafted` says.
        parents: Index of each node's parent, -1 for the anchor `[n, budget]`; None for chains.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int8] | None = None


@dataclass(frozen=True, eq=False)
class TextTrace:
    """A text with every arm's counterfactuals; equal to itself alone.

    Position i stands for the round whose anchor is the i-th new token. The last token of a text
    needs no round; what a router would observe there is kept all the same.

    Attributes:
        question_id: Which prompt.
        category: Its category.
        prompt_hash: Short hash of the prompt's token ids.
        prompt_tokens: Their number.
        tokens: New tokens `[m]`.
        signals: `TEXT_SIGNALS` of each, float32 `[m, 4]`; NaN where nobody knows them.
        hidden: The target's final hidden state that each was chosen from, float32 or float16
            (`TraceOrigin.states`) `[m, d]`; d is 0 where traces do not hold them.
        arms: One trace per arm that drafts, by the arm's text.
        logprobs: What the drafters themselves thought: log-probability of every token that was
            drafted at temperature 1, float32 `[n, budget]`, 0 behind their end; of the longest
            chains by drafter, of trees by arm.
        scores: How likely verification was to commit them (`Proposal.scores`), likewise; empty in
            greedy traces, where that is what the drafters thought.
        drafts: These tokens, likewise; none of a drafter whose tokens nobody published.
        matches: Newest tokens that agree with where a drafter that looks up would copy from `[n]`,
            likewise; 0 where there is no such place.
    """

    question_id: str
    category: str
    prompt_hash: str
    prompt_tokens: int
    tokens: NDArray[np.int64]
    signals: NDArray[np.float32]
    hidden: NDArray[np.float32] | NDArray[np.float16]
    arms: dict[str, ArmTrace]
    logprobs: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    drafts: dict[str, Drafts] = field(default_factory=dict)
    matches: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Positions at which a round can begin."""
        return len(self.tokens) - 1

    def holds_drafts(self, key: str) -> bool:
        """Whether the tokens are there that are called so (`draft_key`)."""
        return key in self.drafts


SAMPLING = ("verification", "temperature", "seed", "seeding")
"""Facts of an origin that say how texts were sampled."""
PER_TEXT, ONE_FOR_ALL = "per text", "one for all"
"""How texts got their noise: each its own (`text_seed`), or, before version 3, all the same."""
States = Literal["float32", "float16", "none"]
"""How hidden states are stored that were there to store."""
NO_STATES, UNPUBLISHED = "none", "not published"
"""Texts without hidden states, and those of which nobody told how sure the target was, either."""


@dataclass(frozen=True)
class TraceOrigin:
    """Where traces come from. Traces that differ in any of this must not be mixed.

    Attributes:
        target: Name of the target.
        target_fingerprint: Hash of its weights.
        dtype: What it ran in.
        drafters: Hash of each drafter's weights, by name.
        lags: Committed positions that each drafter leaves to its next draft (`Drafter.lag`).
        arms: The arms that were asked.
        verification: `greedy` or `coupled`.
        temperature: Sampling temperature.
        seed: Seed of the run.
        max_new_tokens: Token limit of a text.
        cost_model: Costs on the host that collected; not part of the identity.
        host: Processor, versions, revision, command, what became of the prompts; the same.
        seeding: `PER_TEXT`, or `ONE_FOR_ALL` in old traces of sampled texts: those share their
            noise by position, so that intervals over them promise too much.
        states: How texts hold the target's hidden states: `float32` or `float16`; `none` where they
            were left out, `not published` where confidence is not known, either.
    """

    target: str
    target_fingerprint: str
    dtype: str
    drafters: dict[str, str]
    lags: dict[str, int]
    arms: tuple[str, ...]
    verification: str
    temperature: float
    seed: int
    max_new_tokens: int
    cost_model: CostModel = field(compare=False)
    host: dict[str, Any] = field(default_factory=dict, compare=False)
    seeding: str = PER_TEXT
    states: str = "float32"

    @property
    def holds_states(self) -> bool:
        """Whether texts hold the target's hidden states."""
        return self.states not in (NO_STATES, UNPUBLISHED)

    @property
    def name(self) -> str:
        """The target's name; with `fingerprint`, whom policies are for."""
        return self.target

    @property
    def fingerprint(self) -> str:
        """Hash of the target's weights."""
        return self.target_fingerprint

    def differences(self, other: TraceOrigin) -> list[str]:
        """What is not the same in two origins, as text."""
        names = [one.name for one in fields(self) if one.compare]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}: {mine} / {theirs}" for name, mine, theirs in pairs if mine != theirs]

    def to_json(self) -> dict[str, Any]:
        """As JSON types; that hidden states are float32 goes without saying."""
        body = asdict(replace(self, arms=tuple(self.arms)))
        if self.states == TraceOrigin.states:
            del body["states"]
        elif self.states == UNPUBLISHED:
            body["states"] = False  # as published traces have always said it
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TraceOrigin:
        """Reads what `to_json` made, after a way through a file.

        Raises:
            DraftgymError: Its costs are no cost model, or a fact is missing or of another kind.
        """
        states = UNPUBLISHED if body.get("states") is False else body.get("states", cls.states)
        if states not in (*get_args(States), UNPUBLISHED):
            raise DraftgymError(
                f"states of these traces are {reprlib.repr(states)}", "collect them again"
            )
        for name, kind in _FACTS.items():
            value = body.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DraftgymError(
                    f"{name} of these traces is {reprlib.repr(value)}", "collect them again"
                )
        if not all(isinstance(arm, str) for arm in body["arms"]):
            raise DraftgymError("arms of these traces are no text", "collect them again")
        costs = CostModel.from_json(json.dumps(body["cost_model"]))
        arms = tuple(body["arms"])
        return cls(**{**body, "arms": arms, "cost_model": costs, "states": states})

    def describe(self) -> dict[str, Any]:
        """What a file of figures says: instead of the costs, where they were measured."""
        body = self.to_json()
        body["costs_of"] = body.pop("cost_model")["host"]
        return body


_FACTS: dict[str, Any] = {
    **dict.fromkeys(("target", "target_fingerprint", "dtype", "verification"), str),
    **dict.fromkeys(("drafters", "lags", "cost_model"), dict),
    **{"arms": list | tuple, "temperature": int | float, "seed": int, "max_new_tokens": int},
}
"""What an origin says at least, and the kinds of it."""


@dataclass(frozen=True)
class TraceSet:
    """Traces of one origin.

    Attributes:
        origin: Where they come from.
        texts: The texts.
        scratch: Where what is made of them goes, if they are not to be held in memory.
    """

    origin: TraceOrigin
    texts: list[TextTrace]
    scratch: Path | None = None

    @property
    def positions(self) -> int:
        """Positions at which a round can begin, in all texts."""
        return sum(map(len, self.texts))

    @property
    def tells_drafts(self) -> bool:
        """Whether the drafted tokens of all arms are there.

        Traces of an older version hold none, published ones those of drafters that look up.
        """
        return all(self._hold_drafts_of(parse_arm(arm)) for arm in self.origin.arms)

    def only(self, categories: Iterable[str]) -> TraceSet:
        """The texts of some categories.

        Raises:
            DraftgymError: There is none.
        """
        wanted = set(categories)
        texts = [text for text in self.texts if text.category in wanted]
        if not texts:
            known = ", ".join(sorted({text.category for text in self.texts}))
            raise DraftgymError(
                f"no trace of category {', '.join(sorted(wanted))}", f"choose from {known}"
            )
        return replace(self, texts=texts)

    def mixed_with(self, others: Iterable[TraceSet]) -> TraceSet:
        """These texts and those of others, which may be of other temperatures; priced as these.

        Raises:
            DraftgymError: They differ in more than how texts were sampled.
        """
        texts = list(self.texts)
        for other in others:
            sampling = {name: getattr(self.origin, name) for name in SAMPLING}
            differences = self.origin.differences(replace(other.origin, **sampling))
            if differences:
                raise DraftgymError(
                    f"traces of other origins cannot be mixed ({'; '.join(differences)})",
                    "collect all of them with the same target, drafters, arms, token limit and "
                    "--states",
                )
            texts += other.texts
        return replace(self, texts=texts)

    def split(self, share: float) -> tuple[TraceSet, TraceSet]:
        """Most of the texts, and about `share` of them set aside.

        Which texts those are depends on their question ids alone, so every trainer sets the same
        ones aside. Both parts have a text at least.

        Raises:
            DraftgymError: There are fewer than two texts.
        """
        if len(self.texts) < 2:
            raise DraftgymError("these traces hold a single text", "collect more of them")
        order = sorted(self.texts, key=lambda text: _hash(text.question_id))
        count = min(max(1, round(share * len(order))), len(order) - 1)
        aside = {text.question_id for text in order[:count]}
        kept = [text for text in self.texts if text.question_id not in aside]
        others = [text for text in self.texts if text.question_id in aside]
        return replace(self, texts=kept), replace(self, texts=others)

    def check_arms(self, arms: Iterable[Arm]) -> None:
        """Raises `DraftgymError` for an arm that was not traced, or of which too little was."""
        for arm in arms:
            for part in arm.parts:
                if str(part.whole) not in self.origin.arms:
                    raise DraftgymError(
                        f"arm {str(arm)!r} is not in these traces",
                        f"choose from {', '.join(self.origin.arms)}, or collect it with "
                        "draftgym collect --arms ...",
                    )
                asks = isinstance(arm, Graft) or part != part.whole
                if asks and not self._hold_drafts_of(part):
                    raise DraftgymError(
                        f"arm {str(arm)!r} asks for the tokens that {part.drafter} drafted, which "
                        "these traces do not hold",
                        "leave it out, or collect traces of your own with draftgym collect",
                    )

    def tells(self, arm: Arm) -> bool:
        """Whether what rounds with an arm do follows from these traces."""
        try:
            self.check_arms([arm])
        except DraftgymError:
            return False
        return True

    def require_states(self, who: str) -> None:
        """Raises `DraftgymError` where the target's hidden states are not there.

        Args:
            who: Reads them, as the subject of a sentence.
        """
        if self.origin.states == NO_STATES:
            raise DraftgymError(
                f"{who} reads the target's hidden states, which these traces do not hold: they "
                "were collected with --states none",
                "leave it out, or collect traces with --states float16",
            )
        if not self.origin.holds_states:
            raise _untold(who, "the target's hidden states")

    def require_confidence(self, who: str) -> None:
        """Raises `DraftgymError` where nobody knows how sure the target was.

        Args:
            who: Reads it, as the subject of a sentence.
        """
        if self.origin.states == UNPUBLISHED:
            raise _untold(who, "how sure the target was")

    def _hold_drafts_of(self, arm: Arm) -> bool:
        """Whether the tokens that an arm of one drafter drafted are there."""
        return all(text.holds_drafts(draft_key(arm)) for text in self.texts)


def _untold(who: str, what: str) -> DraftgymError:
    return DraftgymError(
        f"{who} reads {what}, which these traces do not hold: who published them did not tell",
        "leave it out, or collect traces of your own with draftgym collect",
    )


def draft_key(arm: Arm) -> str:
    """What an arm's tokens are called in traces: chains begin their drafter's longest."""
    return arm.drafter if arm.nodes is None else str(arm.whole)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
