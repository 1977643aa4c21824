"""The policies that a server offers, by name: those it was started with, and rules by their specs.

A request is a stranger's: it may name rules, never a folder of the host.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.choosers import CHOOSERS
from draftgym.policies.registry import SHIPPED_ROUTER
from draftgym.policies.serving.stored import CostsOf
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.batching.policies import BY_BATCH, make_batch_policy

MOST_MADE = 64
"""Rules that requests named and that are kept."""

PREDICTED = "ngram:16>"
"""In front of a policy: where lookup finds a match in the prediction, it is followed."""


RULES = {PLAIN, SHIPPED_ROUTER, BY_BATCH, *CHOOSERS}
"""What a stranger may name beside drafters."""


class PolicySet:
    """Makes policies once, and finds them by name.

    Args:
        target: The target.
        drafters: Loaded drafters by name.
        specs: What the server offers by name: specs, and folders of trained policies. The first
            one is that of requests that name none.
        seed: Seed of those that throw dice.
        costs: What rounds of a batch cost; asked only by folders that plan with it.

    Attributes:
        names: Names that the server was given, the default first.

    Raises:
        DraftgymError: One of them cannot be made.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        specs: Mapping[str, str],
        seed: int = 0,
        costs: CostsOf | None = None,
    ) -> None:
        self._facts, self._seed, self._lock = (drafters, target), seed, threading.Lock()
        self._costs = costs
        self._specs, self.names = dict(specs), list(specs)
        self._own = {name: self._make(spec, name) for name, spec in specs.items()}
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
        if name is not None and name.strip() in self._own:
            return self._own[name.strip()]
        if name is None and not predicts:
            return self._own[self.names[0]]
        with self._lock:
            if name is None:
                default = self.names[0]
                return self._kept(PREDICTED + self._specs[default], PREDICTED + default)
            self._check_rule(name.strip())
            return self._kept(name.strip(), name.strip())

    def _check_rule(self, spec: str) -> None:
        """Raises `DraftgymError` for a stranger's spec that could name a folder of the host."""
        words = {re.split("[:@~]", part.strip())[0] for part in re.split("[>+]", spec)}
        if not words <= RULES | self._facts[0].keys():
            raise DraftgymError(
                f"no policy is called {spec[:80]!r} (a request names a rule, or a name that the "
                "server was given, no path)",
                f"name a rule such as eagle3:3, or one of {', '.join(self.names)}",
            )

    def _kept(self, spec: str, name: str) -> BatchPolicy:
        if name not in self._made:
            self._made[name] = self._make(spec, name)
        self._made.move_to_end(name)
        if len(self._made) > MOST_MADE:
            self._made.popitem(last=False)
        return self._made[name]

    def _make(self, spec: str, name: str) -> BatchPolicy:
        policy = make_batch_policy(spec, *self._facts, self._seed, None, self._costs)
        policy.name = name  # its own may tell a path of the host
        return policy
