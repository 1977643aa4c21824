"""What a policy may know of a server: a row of numbers per place of its batch, and a few of it all.

A request's numbers are a router's (`draftgym.decoding.observation`), beside how long it has waited
and what lookups have found. A server knows all of it before it drafts. Times are in units of a
pass over all who are there without drafts, so that one policy fits slow and fast servers, and
numbers of the server are relative to that: an empty place changes nothing. Its row is 0.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from draftgym.decoding.observation import Observation, signal_names
from draftgym.envs.load.load import Load
from draftgym.envs.load.requests import Floats
from draftgym.envs.load.texts import ServedTexts

BOUND = 1e6
OF_THE_SERVER = ("active", "deciding", "unread", "waited", "pace")
"""Numbers of a request that say how it is served, and nothing of its text; they come first."""


def request_features(texts: ServedTexts) -> tuple[str, ...]:
    """Names of the numbers of a request, in order."""
    looked = [f"{what}_{name}" for name in texts.lookups for what in ("match", "found")]
    return (*OF_THE_SERVER, *looked, *signal_names(texts.arms))


def server_features(texts: ServedTexts) -> tuple[str, ...]:
    """Names of the numbers of the server, in order."""
    own = ("active", "deciding", "queue", "unread", "pass_seconds", "row_seconds")
    return (*own, *(f"draft_seconds_{name}" for name in texts.drafters))


def serving_observation_space(texts: ServedTexts, places: int) -> spaces.Dict:
    """Space of `observe_load` for one server.

    Args:
        texts: What is served.
        places: K.
    """
    numbers, whole = len(request_features(texts)), len(server_features(texts))
    return spaces.Dict(
        {
            "requests": spaces.Box(0.0, BOUND, (places, numbers), np.float32),
            "server": spaces.Box(-BOUND, BOUND, (whole,), np.float32),
        }
    )


def observe_load(load: Load) -> Observation:
    """Observations of n servers: `requests` `[n, K, F]` and `server` `[n, G]`, float32."""
    active, deciding, texts = load.active, load.deciding, load.texts
    unit = _unit(load)
    since = load.clock[:, None] - _time(load, load.requests.arrival)
    began = np.where(deciding, _time(load, load.requests.first_token), 0.0)
    pace = load.clock[:, None] - began
    written = load.row - texts.first[load.text]
    own = np.stack(
        [
            active,
            deciding,
            np.log1p(load.unread) / 8,
            np.log1p(np.maximum(since, 0.0) / unit[:, None]) / 8,
            np.log1p(pace / np.maximum(written, 1) / unit[:, None]) / 4 * (written > 0),
        ],
        -1,
        dtype=np.float32,
    )
    share = texts.remaining[load.row].ravel() / texts.limit
    context = texts.context[load.row].ravel()
    signals = load.memory.signals(texts.signals[load.row.ravel()], context, share)
    told = np.concatenate(
        [own, texts.found[load.row], signals.reshape(*load.shape, -1)], -1, dtype=np.float32
    )
    told[..., len(OF_THE_SERVER) :] *= deciding[..., None]  # the first token is not there yet
    told *= active[..., None]
    return {"requests": told, "server": _server(load, unit)}


def _server(load: Load, unit: Floats) -> NDArray[np.float32]:
    """Numbers of the server `[n, G]`."""
    costs, copies = load.costs, load.settings.copies
    deciding = copies * load.deciding.sum(-1)
    cached = copies * (load.context * load.deciding).sum(-1)
    some = np.maximum(deciding, 1)
    more = costs.pass_seconds(some, 2 * some, cached) - costs.pass_seconds(some, some, cached)
    drafts = [costs.chain_seconds(name, some, 1, cached) / unit for name in load.texts.drafters]
    unread = np.where(load.active, load.unread, 0).sum(-1)
    numbers = [
        np.log1p(copies * load.active.sum(-1)) / 4,
        np.log1p(deciding) / 4,
        np.log1p(load.waiting) / 4,
        np.log1p(unread) / 8,
        np.log(unit) / 4,
        more / unit,
        *drafts,
    ]
    return np.stack(numbers, -1, dtype=np.float32)


def _unit(load: Load) -> Floats:
    """Seconds of a pass over everybody without drafts `[n]`."""
    copies, active = load.settings.copies, load.active
    texts = copies * np.maximum(active.sum(-1), 1)
    return load.costs.pass_seconds(texts, texts, copies * load.context.sum(-1))


def _time(load: Load, times: Floats) -> Floats:
    """A time of the request in each place `[n, K]`; of the first one in empty places."""
    return np.take_along_axis(times, np.maximum(load.number, 0), -1)
