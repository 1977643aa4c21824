"""Measures the cost model of this host, once, and keeps it in the user cache."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any

import torch

from draftgym.decoding.costs.cost_model import CostModel, Curve, read_cost_model
from draftgym.decoding.costs.timed_rounds import (
    Round,
    catching_up,
    drafting,
    median_seconds,
    verifying,
)
from draftgym.decoding.drafting import MAX_TREE_NODES, Drafter, DraftShape
from draftgym.decoding.files import write_text
from draftgym.decoding.model.embedded import cache_folder
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule

FORMAT = 4
"""Part of what names a host's file, so that what older versions measured is measured again."""
ROWS = (1, 2, 3, 4, 5, 9, 17, 33, MAX_TREE_NODES + 1)
"""Packed products begin at 4 rows, which may cost less than 3 (`decoding.model.products`)."""
ROOM = max(ROWS) + 1
CONTEXTS = (64, 256, 640)
BACKLOGS = (1, 8, 64, 256)
LENGTHS = (1, 2, 4, 8, 16)
TREE_NODES = (4, 5, 9, 16, MAX_TREE_NODES)
"""A step of a tree runs the square root of its budget, rounded up: costs jump behind 4 and 9."""


def calibrate(
    target: Target,
    drafters: Mapping[str, Drafter],
    repeats: int = 5,
    contexts: Sequence[int] = CONTEXTS,
) -> CostModel:
    """Measures the cost model on this host; takes one to three minutes.

    Args:
        target: The target.
        drafters: Drafters by name.
        repeats: Timings per point, after one warm-up; the median counts.
        contexts: Context lengths for the target's passes.
    """
    contexts = fitting_contexts(target, drafters, contexts)
    sessions = {context: random_session(target, drafters, context) for context in contexts}
    session = sessions[contexts[-1]]
    rows = [n for n in ROWS if n <= contexts[-1]]
    backlogs = [n for n in BACKLOGS if n < contexts[-1] - 4]
    rounds: dict[tuple[str | int, ...], Round] = {}
    for context, shorter in sessions.items():
        turns = cycle(drafters.values())
        for n in rows:
            drafter = next(turns, None) if n > 1 else None  # one row is plain decoding's
            rounds["verify", context, n] = verifying(shorter, n, drafter)
    for name, drafter in drafters.items():
        for depth in _lengths(drafter):
            rounds["draft", name, depth] = drafting(session, drafter, DraftShape(depth))
        for depth, nodes in product(_lengths(drafter), _budgets(drafter)):
            rounds["tree", name, depth, nodes] = drafting(
                session, drafter, DraftShape(depth, nodes)
            )
        for backlog in backlogs:
            rounds["catch up", name, backlog] = catching_up(session, drafter, backlog)
    seconds = median_seconds(rounds, repeats)

    def curve(points: Sequence[int], *piece: str | int) -> Curve:
        return Curve(tuple(map(float, points)), tuple(seconds[*piece, at] for at in points))

    def caught(name: str) -> Curve:
        missed = curve(backlogs, "catch up", name)
        return Curve((0.0, *missed.at), (0.0, *missed.seconds))

    return CostModel(
        measured_host(target, drafters),
        {context: curve(rows, "verify", context) for context in contexts},
        {name: curve(_lengths(drafter), "draft", name) for name, drafter in drafters.items()},
        {name: caught(name) for name in drafters},
        {
            name: {
                depth: curve(_budgets(drafter), "tree", name, depth) for depth in _lengths(drafter)
            }
            for name, drafter in drafters.items()
            if drafter.max_tree_nodes
        },
    )


def load_cost_model(target: Target, drafters: Mapping[str, Drafter]) -> CostModel:
    """The host's cost model from the user cache, measured when missing.

    Raises:
        DraftgymError: The cached file is damaged.
    """
    host = measured_host(target, drafters)
    key = hashlib.sha256(json.dumps(host, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "cost-models" / f"{key}.json"
    if path.is_file():
        return read_cost_model(path, "delete the file; it is measured again")
    print("measuring what rounds cost on this host: once, 1 to 3 minutes", file=sys.stderr)
    model = calibrate(target, drafters)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, model.to_json())
    return model


def measured_host(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """What a measurement depends on: machine, threads, dtype, sizes and versions."""
    shape = target.decoder.shape
    return {
        "format": FORMAT,
        "target": target.fingerprint,
        "layers": shape.layers,
        "dtype": target.precision.dtype,
        "threads": target.precision.threads,
        "packed": target.precision.packed,
        "drafters": {
            name: [drafter.max_draft_length, drafter.max_tree_nodes]
            for name, drafter in sorted(drafters.items())
        },
        "torch": torch.__version__,
    }


def fitting_contexts(
    target: Target, drafters: Mapping[str, Drafter], contexts: Sequence[int], room: int = ROOM
) -> list[int]:
    """The contexts in ascending order, shortened to what fits a `random_session`."""
    longest = max((drafter.max_draft_length for drafter in drafters.values()), default=0)
    limit = target.context_limit - room - longest - 1
    return sorted({min(context, limit) for context in contexts})


def random_session(
    target: Target, drafters: Mapping[str, Drafter], context: int, room: int = ROOM
) -> Session:
    """A prefilled session over `context` random tokens, with room for as many new ones.

    The arithmetic costs the same whatever the text says.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(target.vocab_size, (context,), generator=generator)
    session = Session(target, prompt, GreedyRule(), room, drafters)
    session.prefill()
    return session


def _lengths(drafter: Drafter) -> list[int]:
    """Draft lengths, and depths of trees, that are measured."""
    return _up_to(LENGTHS, drafter.max_draft_length)


def _budgets(drafter: Drafter) -> list[int]:
    """Node budgets that are measured; none where the drafter draws no trees."""
    return _up_to(TREE_NODES, drafter.max_tree_nodes) if drafter.max_tree_nodes else []


def _up_to(points: Sequence[int], largest: int) -> list[int]:
    """The points below `largest`, and `largest` itself."""
    return [point for point in points if point < largest] + [largest]
