"""Batches of identical requests: the size stays what it is, and every text is written once.

So what a batch of a size is worth can be told text by text, without a queue and without the rounds
in which a server runs empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.requests import Ints
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.play import Player, play
from draftgym.rollouts.report.statistics import Work
from draftgym.rollouts.traces.trace import TraceSet

SERVERS = 32
"""Servers that share the texts; each writes its own one after the other."""


class TextsInTurn(ServedTexts):
    """Texts that servers deal out among them: together they ask for each once, a few twice.

    Args:
        traces: The texts.
        arms: What can be chosen.
        settings: The servers; `look_up` says whether what lookups found is observed.

    Attributes:
        servers: Among whom.
        each: Texts of each.
    """

    def __init__(self, traces: TraceSet, arms: Sequence[Arm], settings: ServerSettings) -> None:
        costs = replace(settings, places=1, copies=1).make_costs(drafter_names(arms))
        super().__init__(traces, arms, costs.model, settings.look_up)
        count = len(self.texts)
        self.servers = min(SERVERS, count)
        self.each = -(-count // self.servers)
        mixed = np.random.default_rng(0).permutation(count)  # kinds of texts are neighbours
        self._deals = itertools.cycle(np.resize(mixed, (self.servers, self.each)))

    def draw(
        self, rng: np.random.Generator, count: int, mixture: Mapping[str, float] | None = None
    ) -> Ints:
        """The next server's texts, again and again if there are not so many."""
        return np.resize(next(self._deals), count)


def identical_load(texts: TextsInTurn, settings: ServerSettings, size: int) -> Load:
    """Servers whose batch is so many copies of one request.

    Args:
        texts: What they write.
        settings: What they are made of; places, requests, arrivals and mixture are not read.
        size: Requests in the batch.

    Raises:
        DraftgymError: Batches of this size were not measured.
    """
    settings = replace(
        settings, places=1, copies=size, requests=texts.each, arrivals=AtOnce(), mixture=None
    )
    return Load(texts, settings, settings.make_costs(texts.drafters), texts.servers)


def play_identical(
    texts: TextsInTurn, settings: ServerSettings, size: int, make: Callable[[Load], Player]
) -> list[Work]:
    """Tokens of one request and seconds of each text, prompts left out.

    Args:
        texts: What is written.
        settings: See `identical_load`.
        size: Requests in the batch.
        make: Makes who chooses.
    """
    load = identical_load(texts, settings, size)
    play(load, make(load), range(load.count))
    return works_of(load)


def works_of(load: Load) -> list[Work]:
    """Tokens of one request and seconds of each text that was written, prompts left out."""
    requests = load.requests
    tokens, seconds = np.zeros((2, len(load.texts.texts)))
    np.add.at(tokens, requests.text, requests.tokens - 1)
    np.add.at(seconds, requests.text, requests.end - requests.first_token)
    return [Work(int(a), float(b)) for a, b in zip(tokens, seconds, strict=True)]
