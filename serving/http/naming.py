"""The names that a server and its policies have outside: none of them is a path of this host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.few_bits import form_of
from draftgym.policies.registry import SHIPPED_ROUTER
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.batching.policies import BEFORE, BY_BATCH

MADE = (PLAIN, SHIPPED_ROUTER, "random", "entropy", "ucb", BY_BATCH)
"""What a request may name beside drafters; `ucb-time` measures this machine first, so it needs a
name of the server's."""

LONGEST_SPEC = 200
MOST_MADE = 64
"""Policies that requests brought and that are kept."""


def public_name(name: str) -> str:
    """What a target is called outside: the last part of its name, with its form."""
    base, form = form_of(name)
    last = Path(base).expanduser().resolve().name if base.startswith((".", "~")) else Path(base).name
    return f"{last}:{form}" if form else last


def policy_name(spec: str) -> str:
    """What a policy of the command line is called outside: itself, or its folder's last part."""
    return spec.strip() if not re.search(r"[/\\~]", spec) else Path(spec.strip()).name


class Policies(Mapping[str, BatchPolicy]):
    """Policies by the names that requests know; those that are made of a text appear when asked.

    Args:
        named: The server's own, the first for requests that name none.
        make: Makes one of a text such as `eagle3:3`.
        drafters: The loaded drafters.
    """

    def __init__(
        self,
        named: Mapping[str, BatchPolicy],
        make: Callable[[str], BatchPolicy],
        drafters: Mapping[str, Drafter],
    ) -> None:
        self._named, self._make = dict(named), make
        self._first_words = {*MADE, *drafters}
        self._made: dict[str, BatchPolicy] = {}

    def __getitem__(self, name: str) -> BatchPolicy:
        """The policy of a name; KeyError where it is neither the server's nor asked for yet."""
        return self._named[name] if name in self._named else self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._named, *self._made])

    def __len__(self) -> int:
        return len(self._named) + len(self._made)

    @property
    def default(self) -> str:
        """Who chooses where a request names nobody."""
        return next(iter(self._named))

    @property
    def offered(self) -> list[str]:
        """The server's own."""
        return list(self._named)

    def ask_for(self, name: str) -> str:
        """Makes a policy that a request names, where it is not there yet; its name.

        Raises:
            DraftgymError: It is none, or the text names a folder.
        """
        name = name.strip()
        if name in self:
            return name
        words = {re.split("[:@]", part.strip())[0] for part in name.split(BEFORE)}
        if len(name) > LONGEST_SPEC or not words <= self._first_words:
            raise DraftgymError(
                f"unknown policy {name[:LONGEST_SPEC]!r}",
                f"choose from {', '.join(self._named)}, or write one of "
                f"{', '.join(sorted(self._first_words))} as in eagle3:3 or random@ngram:8,plain",
            )
        made = self._make(name)
        while len(self._made) >= MOST_MADE:
            del self._made[next(iter(self._made))]
        self._made[name] = made
        return name
