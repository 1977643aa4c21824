"""The policies that a server offers, by name: those it was started with, and rules by their specs.

A request is a stranger's: it may name rules, never a folder of the host.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.batching.policies import make_batch_policy

MOST_MADE = 64
"""Rules that requests named and that are kept."""

PREDICTED = "ngram:16>"
"""In front of a policy: where lookup finds a match in the prediction, it is followed."""


class PolicySet:
    """Makes policies once, and finds them by name.

    Args:
        target: The target.
        drafters: Loaded drafters by name.
        default: Spec of the policy of requests that name none.
        named: Further policies by name: specs, and folders of trained ones.
        seed: Seed of those that throw dice.

    Attributes:
        default: As given.
        named: As given.

    Raises:
        DraftgymError: One of them cannot be made.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        default: str,
        named: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.default, self.named = default, dict(named or {})
        self._facts, self._seed, self._lock = (drafters, target), seed, threading.Lock()
        self._own = {name: self._make(spec) for name, spec in self.named.items()}
        self._own[default] = self._own.get(default) or self._make(default)
        self._made: OrderedDict[str, BatchPolicy] = OrderedDict()

    def find(self, name: str | None, predicts: bool = False) -> BatchPolicy:
        """A policy; any thread may ask.

        Args:
            name: A name, or the spec of a rule; None for the default.
            predicts: Whether the request brings a prediction, which is followed where no policy is
                named.

        Raises:
            DraftgymError: It is unknown, or a folder.
        """
        name, follows = (self.default, predicts) if name is None else (name.strip(), False)
        with self._lock:
            if not follows and name in self._own:
                return self._own[name]
            if follows:
                name = PREDICTED + self.named.get(name, name)
            elif "/" in name or "\\" in name or name.startswith((".", "~")):
                raise DraftgymError(
                    "a policy of a request is a rule or a name that the server was given, no path",
                    f"name a rule such as eagle3:3, or one of {', '.join(self._own)}",
                )
            if name not in self._made:
                self._made[name] = self._make(name)
                if len(self._made) > MOST_MADE:
                    self._made.popitem(last=False)
            self._made.move_to_end(name)
            return self._made[name]

    def _make(self, spec: str) -> BatchPolicy:
        return make_batch_policy(spec, *self._facts, self._seed)
