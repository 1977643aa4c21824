"""What a policy may know of a server: a row of numbers per place of its batch, and a few of it all.

A request's numbers are a router's (`draftgym.decoding.observers.observation`), beside how long it
has waited and what lookups have found. A server knows all of it before it drafts. Times are in
units of a pass over all who are there without drafts, so that one policy fits slow and fast
servers, and numbers of the server are relative to that: an empty place changes nothing. Its row
is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.observers.observation import Observation, drafter_names, signal_names
from draftgym.policies.serving.memory import acceptance_names
from draftgym.policies.serving.servers import Floats, Servers

OF_THE_SERVER = ("active", "deciding", "unread", "waited", "pace")
"""Numbers of a request that say how it is served, and nothing of its text; they come first."""
MOST_FOUND = 16
"""Tokens that agree, or that were found, beyond which no more are told apart."""
LOOKED = ("match", "found", "sure_1", "sure_2", "sure_4", "expected")
"""What is told of each lookup."""


def request_features(arms: Sequence[Arm], lookups: Sequence[str]) -> tuple[str, ...]:
    """Names of the numbers of a request, in order."""
    looked = [f"{what}_{name}" for name in lookups for what in LOOKED]
    accepted = acceptance_names(drafter_names(arms))
    return (*OF_THE_SERVER, *looked, *accepted, *signal_names(arms))


def server_features(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Names of the numbers of the server, in order."""
    own = ("active", "deciding", "queue", "unread", "pass_seconds", "row_seconds")
    return (*own, *(f"draft_seconds_{name}" for name in drafter_names(arms)))


def found_by(match: ArrayLike, found: ArrayLike, logprobs: Floats) -> Floats:
    """What is told of one lookup, `LOOKED`, for any shape S of texts: S and `[6]`.

    Args:
        match: Newest tokens that agree with where it would copy from, S.
        found: Tokens that it found, S.
        logprobs: How likely it thinks that each goes on behind those before it, S and `[budget]`.

    Returns:
        The first two over 4; how likely it thinks that its first 1, 2 and 4 tokens are right; and
        how many should be, over 4.
    """
    there = np.arange(logprobs.shape[-1]) < np.asarray(found)[..., None]
    sure = np.exp(logprobs.cumsum(-1)) * there
    firsts = [sure[..., i : i + 1].sum(-1) for i in (0, 1, 3)]
    sizes = [np.minimum(number, MOST_FOUND) / 4 for number in (match, found)]
    return np.stack([*sizes, *firsts, sure[..., :MOST_FOUND].sum(-1) / 4], -1)


def observe(servers: Servers) -> Observation:
    """Observations of n servers: `requests` `[n, K, F]` and `server` `[n, G]`, float32."""
    unit = _unit(servers)
    return {"requests": _requests(servers, unit), "server": _server(servers, unit)}


def observe_requests(servers: Servers) -> NDArray[np.float32]:
    """The `requests` of `observe` alone, which is what forecasts read."""
    return _requests(servers, _unit(servers))


def _requests(servers: Servers, unit: Floats) -> NDArray[np.float32]:
    """Numbers of the requests `[n, K, F]`."""
    active, deciding = servers.active, servers.deciding
    own = np.stack(
        [
            active,
            deciding,
            np.log1p(servers.unread) / 8,
            np.log1p(np.maximum(servers.waited, 0.0) / unit[:, None]) / 8,
            np.log1p(servers.pace / unit[:, None]) / 4,
        ],
        -1,
        dtype=np.float32,
    )
    told = np.concatenate(
        [own, servers.found, servers.acceptance, servers.signals], -1, dtype=np.float32
    )
    told[..., len(OF_THE_SERVER) :] *= deciding[..., None]  # the first token is not there yet
    told *= active[..., None]
    return told


def _server(servers: Servers, unit: Floats) -> NDArray[np.float32]:
    """Numbers of the server `[n, G]`."""
    costs, copies = servers.costs, servers.copies
    deciding = copies * servers.deciding.sum(-1)
    cached = copies * (servers.context * servers.deciding).sum(-1)
    some = np.maximum(deciding, 1)
    more = costs.pass_seconds(some, 2 * some, cached) - costs.pass_seconds(some, some, cached)
    drafts = [costs.chain_seconds(name, some, 1, cached) / unit for name in servers.drafters]
    unread = np.where(servers.active, servers.unread, 0).sum(-1)
    numbers = [
        np.log1p(copies * servers.active.sum(-1)) / 4,
        np.log1p(deciding) / 4,
        np.log1p(servers.waiting) / 4,
        np.log1p(unread) / 8,
        np.log(unit) / 4,
        more / unit,
        *drafts,
    ]
    return np.stack(numbers, -1, dtype=np.float32)


def _unit(servers: Servers) -> Floats:
    """Seconds of a pass over everybody without drafts `[n]`."""
    copies, active = servers.copies, servers.active
    texts = copies * np.maximum(active.sum(-1), 1)
    return servers.costs.pass_seconds(texts, texts, copies * servers.context.sum(-1))
