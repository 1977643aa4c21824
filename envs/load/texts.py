"""Traced texts, laid out for a server: what a round of any arm does at any row.

Notation: R = rows of all texts, one per token, A = arms, D = drafters, L = drafters that look up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.policies.serving.observation import found_by
from draftgym.policies.serving.servers import Ints, RowFacts
from draftgym.rollouts.replay.pricing import drafting_seconds, worked
from draftgym.rollouts.traces.joint import asked_of, made_by
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace, TraceSet


class ServedTexts:
    """Texts that requests may ask for.

    Args:
        traces: The texts; those of a single token have no round and are left out.
        arms: What can be chosen.
        model: What drafts of one text cost; None where texts draft together.
        look_up: Whether drafters that look up are asked for every text in every round, so that
            what they found can be observed; the time is counted.

    Attributes:
        arms: The arms, A.
        drafters: Their drafters, D.
        lookups: Those of them whose matches can be observed, L.
        texts: The texts.
        first, last: Rows of each text's first and last token.
        prompt: Tokens of each text's prompt.
        context: Tokens before a row, prompt included: the target's cache `[R]`.
        remaining: Tokens that may follow a row `[R]`.
        limit: Tokens of a text at most.
        signals: `draftgym.decoding.observers.observation.TEXT_SIGNALS`, float32 `[R, 4]`; 0 where
            nobody knows them.
        found: What lookups found, float32 `[R, 6 L]` (`policies.serving.observation.found_by`).
        ids: Ids of the newest token, the one before, and the first that each lookup found
            `[R, 2 + L]`; -1 where there is none.
        alone: Seconds of drafting by `model` `[R, A]`; 0 without one.
        lags: See `TraceOrigin` `[D]`.

    Raises:
        DraftgymError: An arm was not traced, or no text has a round to play.
    """

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        model: CostModel | None = None,
        look_up: bool = False,
    ) -> None:
        traces.check_arms(arms)
        self.texts = [text for text in traces.texts if len(text)]
        if not self.texts:
            raise DraftgymError(
                "no text of these traces has a round to play",
                "trace prompts that the target answers at length, with --max-new-tokens 2 or more",
            )
        self.arms, self.drafters = tuple(arms), tuple(drafter_names(arms))
        sizes = np.array([len(text.tokens) for text in self.texts])
        self.last = sizes.cumsum() - 1
        self.first = self.last + 1 - sizes
        self.prompt = np.array([text.prompt_tokens for text in self.texts])
        position = np.concatenate([np.arange(size) for size in sizes])
        self.context = position + np.repeat(self.prompt, sizes)
        self.limit = traces.origin.max_new_tokens
        self.remaining = self.limit - 1 - position
        signals = np.concatenate([text.signals for text in self.texts])
        self.signals = np.nan_to_num(signals)  # published traces do not know them
        self.lags = np.array([traces.origin.lags[name] for name in self.drafters], dtype=np.int64)
        self._looks = self._lookups() if look_up else {}
        self.lookups = tuple(self._looks)
        self.found = np.concatenate([self._found(text) for text in self.texts])
        self.ids = np.concatenate([self._ids(text) for text in self.texts])
        self._facts = np.concatenate([self._rows(text) for text in self.texts])
        self.alone = np.zeros((len(self._facts), len(self.arms)))
        if model is not None:
            self.alone = np.concatenate([self._alone(text, model) for text in self.texts])

    def facts(self, rows: Ints, arms: Ints | slice = slice(None)) -> RowFacts:
        """What rounds at some rows do.

        Args:
            rows: Rows, any shape.
            arms: An arm for each row, of the same shape; or all, which adds an axis `[A]`.
        """
        told = self._facts[rows, arms].astype(np.int64)
        each = told[..., 2:].reshape(*told.shape[:-1], 4, len(self.drafters))
        asked, verified = each[..., 0, :] > 0, each[..., 1, :] > 0
        return RowFacts(
            told[..., 0], told[..., 1], asked, verified, each[..., 2, :], each[..., 3, :]
        )

    def draw(
        self, rng: np.random.Generator, count: int, mixture: Mapping[str, float] | None = None
    ) -> Ints:
        """Texts of so many requests `[count]`: each of a kind once before any comes again.

        Args:
            rng: Draws them.
            count: How many.
            mixture: Weight of each category that is asked for; None takes all texts alike.

        Raises:
            DraftgymError: There is no such category, or no weight above 0.
        """
        if mixture is None:
            return _deal(rng, np.arange(len(self.texts)), count)
        names = np.array([text.category for text in self.texts])
        unknown = sorted(set(mixture) - set(names.tolist()))
        weights = np.array(list(mixture.values()), float)
        if unknown or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise DraftgymError(
                f"a mixture of {dict(mixture)}",
                f"give weights of some of {', '.join(sorted(set(names.tolist())))}",
            )
        drawn = rng.choice(len(weights), count, p=weights / weights.sum())
        chosen = np.zeros(count, np.int64)
        for index, name in enumerate(mixture):
            mine = drawn == index
            chosen[mine] = _deal(rng, np.flatnonzero(names == name), int(mine.sum()))
        return chosen

    def _lookups(self) -> dict[str, str]:
        """The longest traced chain of each drafter that looks up, by its name."""
        longest: dict[str, tuple[int, str]] = {}
        for part in (part for arm in self.arms for part in arm.parts):
            name, key = part.drafter, str(part.whole)
            traced = all(name in text.matches and name in text.drafts for text in self.texts)
            if name in LOOKUPS and traced and part.nodes is None:
                longest[name] = max(longest.get(name, (0, "")), (part.length, key))
        return {name: key for name, (_, key) in longest.items()}

    def _found(self, text: TextTrace) -> NDArray[np.float32]:
        told = np.zeros((len(text) + 1, 0), np.float32)  # the last row has no round
        for name, key in self._looks.items():
            unsaid = np.zeros((len(text), text.arms[key].drafted.max(initial=1)))
            logprobs = text.logprobs.get(name, unsaid).astype(np.float64)
            looked = found_by(text.matches[name], text.arms[key].drafted, logprobs)
            told = np.hstack([told, np.pad(looked, ((0, 1), (0, 0)))], dtype=np.float32)
        return told

    def _ids(self, text: TextTrace) -> Ints:
        columns = [text.tokens, np.append(-1, text.tokens[:-1])]
        for name, key in self._looks.items():
            first = np.where(text.arms[key].drafted > 0, text.drafts[name].tokens[:, 0], -1)
            columns.append(np.append(first, -1))
        return np.stack(columns, 1)

    def _rows(self, text: TextTrace) -> NDArray[np.int16]:
        """`RowFacts` of one text, packed `[rows, A, 2 + 4 D]`; its last row has no round."""
        packed = np.zeros((len(text.tokens), len(self.arms), 2 + 4 * len(self.drafters)), np.int16)
        looks = np.isin(self.drafters, self.lookups)
        for index, arm in enumerate(self.arms):
            made = made_by(text, arm)
            asked, verified = worked(text, arm, self.drafters)
            steps, tokens = np.zeros((2, *asked.shape), np.int64)
            for part in asked_of(text, arm):
                column = self.drafters.index(part.arm.drafter)
                told = _drafting(part.arm, part.drafted)
                steps[:, column], tokens[:, column] = np.where(part.where, told, 0)
            numbers = np.stack([made.committed, made.drafted], 1)
            packed[:-1, index] = np.hstack([numbers, asked | looks, verified, steps, tokens])
        return packed

    def _alone(self, text: TextTrace, model: CostModel) -> NDArray[np.float64]:
        """`alone` of one text `[rows, A]`."""
        seconds = np.zeros((len(text.tokens), len(self.arms)))
        for index, arm in enumerate(self.arms):
            seconds[:-1, index] = drafting_seconds(model, text, arm)
            asked = {part.arm.drafter: part.where for part in asked_of(text, arm)}
            for name, key in self._looks.items():
                lookup = Arm(name, int(key.partition(":")[2]))
                costs = drafting_seconds(model, text, lookup)
                seconds[:-1, index] += np.where(asked.get(name, False), 0.0, costs)
        return seconds


def _drafting(arm: Arm, made: ArmTrace) -> tuple[Ints, Ints]:
    """Levels and rows that a part drafts; a tree takes its whole budget wherever it drafts."""
    if arm.nodes is None:
        return made.drafted, made.drafted
    return made.depth, np.where(made.depth > 0, arm.nodes, 0)


def _deal(rng: np.random.Generator, texts: Ints, count: int) -> Ints:
    """So many of these, each once in a random order before any comes again."""
    rounds = [rng.permutation(texts) for _ in range(-(-count // len(texts)))]
    return np.concatenate([np.zeros(0, np.int64), *rounds])[:count]
