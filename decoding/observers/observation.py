"""What a router may know before it chooses: cheap facts of the text and of its own choices.

Live sessions, the environment and the replay of traces build observations with this module alone,
so a policy meets in deployment exactly what it met in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.model.device import read_together
from draftgym.decoding.round import RoundRecord
from draftgym.decoding.session import Session, confidence

LONGEST_REPEAT = 16
"""Longest repeat that is told apart."""


class Repeats:
    """Follows a text and measures its repeats.

    The repeat at a token is the length of the longest run of tokens that ends there and also
    occurred earlier. Inside a copied passage it grows by one with every token.
    """

    def __init__(self) -> None:
        self._tokens = np.empty(0, dtype=np.int64)
        # Entry j: tokens that agree when the text so far is laid over the text up to j.
        self._runs = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> NDArray[np.int64]:
        """Takes in more of the text.

        Returns:
            The repeat at each new token, at most `LONGEST_REPEAT`.
        """
        lengths = []
        for token in tokens:
            longer = np.append(1, self._runs[:-1] + 1)[: len(self._tokens)]
            agree = np.where(self._tokens == token, longer, 0)
            lengths.append(min(LONGEST_REPEAT, int(agree.max(initial=0))))
            # A text laid over itself agrees all the way; that entry never counts.
            self._runs = np.append(agree, 0)
            self._tokens = np.append(self._tokens, token)
        return np.array(lengths, dtype=np.int64)


Observation = dict[str, NDArray[np.float32]]

TEXT_SIGNALS = ("entropy", "margin", "top1", "repeat")
"""Facts of the newest token. They depend on the text alone, so a trace can store them."""
PROGRESS_SIGNALS = ("context", "remaining", "last_committed")
ACCEPTANCE_DECAY = 0.8
"""Weight of the past in the running acceptance of a drafter."""


def drafter_names(arms: Sequence[Arm]) -> list[str]:
    """Drafters that the arms use, in order of first appearance."""
    return list(dict.fromkeys(part.drafter for arm in arms for part in arm.parts))


def signal_names(arms: Sequence[Arm]) -> list[str]:
    """Name of each entry of `signals`, in order."""
    names = [*TEXT_SIGNALS, *PROGRESS_SIGNALS]
    for drafter in drafter_names(arms):
        names += [f"acceptance_{drafter}", f"backlog_{drafter}"]
    return names + [f"last_arm_{arm}" for arm in arms]


def text_signals(
    confidence: NDArray[np.float32], repeats: NDArray[np.int64]
) -> NDArray[np.float32]:
    """`TEXT_SIGNALS` of some tokens.

    Args:
        confidence: Entropy, margin and top-1 of the distributions they were chosen from `[n, 3]`
            (`draftgym.decoding.session.confidence`).
        repeats: Their repeats `[n]` (`draftgym.decoding.observers.observation`).

    Returns:
        float32 `[n, 4]`; a repeat of 16 tokens becomes 4.
    """
    return np.column_stack([confidence, repeats / 4]).astype(np.float32)


class RouterMemory:
    """What routers remember of their own rounds, for several episodes at once.

    Args:
        arms: Arms of the policy, in its order.
        count: Episodes.
    """

    def __init__(self, arms: Sequence[Arm], count: int = 1) -> None:
        names = drafter_names(arms)
        parts = [[part.drafter for part in arm.parts] for arm in arms]
        # The row behind the last arm is that of rounds without any of them.
        self._uses = np.array([[name in one for name in names] for one in [*parts, []]], bool)
        self._one_hot = np.eye(len(arms) + 1, len(arms))  # the row behind the last is all zeros
        self._acceptance = np.empty((count, len(names)))
        self._covered = np.empty((count, len(names)))
        self._last_arm = np.empty(count, dtype=np.int64)
        self._last_committed = np.empty(count)
        self.forget(np.arange(count))

    def forget(self, episodes: NDArray[np.int64]) -> None:
        """Starts these episodes anew."""
        self._acceptance[episodes] = 1.0
        self._covered[episodes] = 0
        self._last_arm[episodes] = len(self._one_hot) - 1
        self._last_committed[episodes] = 1

    def keep(self, episodes: NDArray[np.int64]) -> None:
        """Goes on with these episodes (indices) alone."""
        self._acceptance, self._covered = self._acceptance[episodes], self._covered[episodes]
        self._last_arm = self._last_arm[episodes]
        self._last_committed = self._last_committed[episodes]

    def update(
        self,
        actions: NDArray[np.int64],
        committed: NDArray[np.int64],
        context: NDArray[np.int64],
        asked: NDArray[np.bool_] | None = None,
        verified: NDArray[np.bool_] | None = None,
        played: NDArray[np.bool_] | None = None,
    ) -> None:
        """Takes in a round of every episode.

        Args:
            actions: Arms that were chosen `[n]`; one past the last for none of them.
            committed: Tokens committed `[n]`.
            context: Positions in the target's cache when the round began `[n]`.
            asked: Which drafters were asked `[n, D]`, in the order of `drafter_names`; None: all of
                the arm's.
            verified: Whose proposals were verified `[n, D]`; None: theirs.
            played: Which episodes played a round at all `[n]`; None: all.
        """
        asked = self._uses[actions] if asked is None else asked
        verified = asked if verified is None else verified
        if played is not None:
            asked, verified = asked & played[:, None], verified & played[:, None]
        played = np.ones(len(actions), np.bool_) if played is None else played
        np.copyto(self._last_arm, actions, where=played)
        np.copyto(self._last_committed, committed, where=played)
        fresh = (1 - ACCEPTANCE_DECAY) * (committed - 1)
        self._acceptance *= np.where(verified, ACCEPTANCE_DECAY, 1.0)
        self._acceptance += np.where(verified, fresh[:, None], 0.0)
        np.copyto(self._covered, context[:, None], where=asked)

    def signals(
        self,
        text: NDArray[np.float32],
        context: NDArray[np.int64],
        remaining: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """`signals` of every episode: float32 `[n, len(signal_names(arms))]`.

        Args:
            text: `TEXT_SIGNALS` of the newest token `[n, 4]`.
            context: Positions in the target's cache `[n]`.
            remaining: Share of the token limit that is still open `[n]`.
        """
        backlog = np.log1p(context[:, None] - self._covered) / 4
        drafters = np.stack([self._acceptance, backlog], axis=2).reshape(len(context), -1)
        progress = [np.log1p(context) / 4, remaining, self._last_committed / 4]
        parts = [text, np.column_stack(progress), drafters, self._one_hot[self._last_arm]]
        return np.concatenate(parts, axis=1, dtype=np.float32)


class RouterObserver:
    """Follows one session and describes it.

    Args:
        arms: Arms of the policy, in its order.

    Attributes:
        memory: What it remembers of its rounds.
        seen: What it described last: `signals` and `hidden`.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = tuple(arms)
        self.memory, self._names = RouterMemory(arms), drafter_names(arms)
        self._repeats = Repeats()
        self._repeat = np.zeros(1, dtype=np.int64)
        self.seen = np.zeros(0, np.float32), np.zeros(0, np.float32)

    def arm(self, policy: Any, action: int) -> Arm:
        """The arm that an action of a policy means."""
        return self.arms[action]

    def update(self, action: int | None, record: RoundRecord) -> None:
        """Takes in what a round did.

        Args:
            action: The arm that was chosen; None where it is none of them, as before the first
                round: then only what was committed is remembered.
            record: What happened.
        """
        known, asked, verified = len(self.arms), list[str](), list[str]()
        if action is not None:
            known, verified = action, record.drafters
            asked = [one.arm.drafter for one in record.asked]
        facts = (np.array([fact]) for fact in (known, len(record.committed), record.context))
        chosen, committed, context = facts
        self.memory.update(chosen, committed, context, self._marks(asked), self._marks(verified))

    def observe(self, session: Session) -> Observation:
        """The observation at the session's current position.

        Returns:
            `signals`: float32 `[len(signal_names(arms))]`, every entry roughly within 0 to 4;
            `hidden`: the target's last hidden state, float32 `[d]`.
        """
        return {key: rows[0] for key, rows in observe_together([self], [session]).items()}

    def _marks(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Which drafters these are `[1, D]`."""
        return np.array([[name in names for name in self._names]], dtype=np.bool_)

    def _read(self, session: Session) -> NDArray[np.int64]:
        """Follows the text; the repeat at its newest token `[1]`."""
        known = len(self._repeats)
        unread = session.token_ids[known:]
        if unread:
            # Every image is made of the same placeholder: none repeats another.
            images = session.target.image_tokens
            told = [-i if one in images else one for i, one in enumerate(unread, start=known + 1)]
            self._repeat = self._repeats.extend(told)[-1:]
        return self._repeat

    def _signals(self, session: Session, sure: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.memory.signals(
            text_signals(sure[None], self._read(session)),
            np.array([session.cache.length]),
            np.array([session.remaining / session.max_new_tokens]),
        )


def observe_together(
    observers: Sequence[RouterObserver], sessions: Sequence[Session]
) -> Observation:
    """What each observer sees of its session, read from the device at once.

    Args:
        observers: One per session, all of the same arms.
        sessions: One at least, all of one target.

    Returns:
        `signals` and `hidden` of `RouterObserver.observe`, stacked: `[n, s]` and `[n, d]`.
    """
    logits = torch.stack([session.last_logits for session in sessions])
    hiddens = torch.stack([session.last_hidden for session in sessions])
    sure, hidden = (one.numpy() for one in read_together([confidence(logits), hiddens.float()]))
    triples = zip(observers, sessions, sure, strict=True)
    signals = [observer._signals(session, row) for observer, session, row in triples]
    for observer, *seen in zip(observers, signals, hidden, strict=True):
        observer.seen = seen[0][0], seen[1]
    return {"signals": np.concatenate(signals), "hidden": hidden}
