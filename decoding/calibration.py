"""Measures the cost model of this host, once, and keeps it in the user cache."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from decoding.drafting import MAX_TREE_NODES, Drafter, DraftShape, PrefixView
from decoding.embedded import cache_folder
from decoding.latency import CostModel, Curve, read_cost_model
from decoding.proposal import Proposal
from decoding.round import verify_batch
from decoding.session import Session
from decoding.target import Target
from decoding.verification import Candidates, GreedyRule

FORMAT = 3
"""Part of what names a host's file, so that what older versions measured is measured again."""
ROWS = (1, 2, 3, 5, 9, 17, 33, MAX_TREE_NODES + 1)
ROOM = max(ROWS) + 1
CONTEXTS = (64, 256, 640)
BACKLOGS = (1, 8, 64, 256)
LENGTHS = (1, 2, 4, 8, 16)
TREE_DEPTHS = (1, 2, 4, 8, 16)
TREE_NODES = (4, 16, MAX_TREE_NODES)


class _FullTrees(GreedyRule):
    """Scores that make every tree as deep as it may be, however sure its drafter is."""

    def candidates(
        self, logits: Tensor, positions: Sequence[int], count: int, vocab: Tensor | None = None
    ) -> Candidates:
        """The usual tokens; each costs its rank, so that the best path has no end."""
        usual = super().candidates(logits, positions, count, vocab)
        ranks = torch.arange(usual.tokens.shape[1], dtype=torch.float32)
        return replace(usual, scores=-ranks.expand_as(usual.scores))


def calibrate(
    target: Target,
    drafters: Mapping[str, Drafter],
    repeats: int = 7,
    contexts: Sequence[int] = CONTEXTS,
) -> CostModel:
    """Measures the cost model on this host; takes some seconds.

    Args:
        target: The target.
        drafters: Drafters by name.
        repeats: Timings per point, after one warm-up; the median counts.
        contexts: Context lengths for the target's passes.
    """
    contexts = fitting_contexts(target, drafters, contexts)
    session = random_session(target, drafters, contexts[-1])
    draft, catch_up, trees = {}, {}, {}
    for name, drafter in drafters.items():
        drafter.catch_up(session.state_of(drafter), session)
        lengths = _up_to(LENGTHS, drafter.max_draft_length)
        runs = {n: _draft(session, drafter, DraftShape(n)) for n in lengths}
        draft[name] = time_runs(runs, repeats)
        if drafter.max_tree_nodes:
            trees[name] = _tree_curves(session, drafter, repeats)
        backlogs = [n for n in BACKLOGS if n < contexts[-1] - 4]
        catch_up[name] = _catch_up_curve(session, drafter, backlogs, repeats)
    passes, rows = {}, [n for n in ROWS if n <= contexts[-1]]
    for context in reversed(contexts):  # rolling back only ever shortens the text
        session.roll_back(context + 1)
        passes[context] = time_runs({n: verification_run([session], [n]) for n in rows}, repeats)
    return CostModel(measured_host(target, drafters), passes, draft, catch_up, trees)


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
    print("measuring the cost model of this host (once)", file=sys.stderr)
    model = calibrate(target, drafters)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(model.to_json())
    partial.replace(path)
    return model


def measured_host(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """What a measurement holds for: weights, dtype, threads, drafters, versions."""
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


def time_runs(runs: Mapping[int, Callable[[], object]], repeats: int) -> Curve:
    """Times each run `repeats` times, interleaved, after one warm-up of each."""
    seconds: dict[int, list[float]] = {at: [] for at in runs}
    for repeat in range(repeats + 1):
        for at, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[at].append(time.perf_counter() - start)
    return Curve(
        tuple(float(at) for at in runs), tuple(median(times) for times in seconds.values())
    )


def verification_run(sessions: Sequence[Session], rows: Sequence[int]) -> Callable[[], object]:
    """A run of everything a round does but drafting: one pass, then verdicts and commits.

    Args:
        sessions: Prefilled sessions that share a target; the run leaves them as they are.
        rows: Rows of each in the pass: one more than its draft.
    """
    lengths = [len(session.tokens) for session in sessions]
    proposals = [
        Proposal.chain(session.tokens[0].repeat(count - 1), torch.zeros(count - 1))
        for session, count in zip(sessions, rows, strict=True)
    ]

    def run() -> None:
        verified = verify_batch(sessions, proposals)
        for session, proposal, length, (output, verdict) in zip(
            sessions, proposals, lengths, verified, strict=True
        ):
            session.commit(proposal, verdict, output)
            session.roll_back(length)

    return run


def _draft(session: Session, drafter: Drafter, shape: DraftShape) -> Callable[[], object]:
    context = PrefixView(session, len(session.tokens), _FullTrees())
    return lambda: drafter.propose(session.state_of(drafter), context, shape)


def _tree_curves(session: Session, drafter: Drafter, repeats: int) -> dict[int, Curve]:
    budgets = _up_to(TREE_NODES, drafter.max_tree_nodes)
    return {
        depth: time_runs(
            {nodes: _draft(session, drafter, DraftShape(depth, nodes)) for nodes in budgets},
            repeats,
        )
        for depth in _up_to(TREE_DEPTHS, drafter.max_draft_length)
    }


def _up_to(points: Sequence[int], largest: int) -> list[int]:
    """The points below `largest`, and `largest` itself."""
    return [point for point in points if point < largest] + [largest]


def _catch_up_curve(
    session: Session, drafter: Drafter, backlogs: Sequence[int], repeats: int
) -> Curve:
    seconds: dict[int, list[float]] = {backlog: [] for backlog in backlogs}
    for repeat in range(repeats + 1):
        for backlog in backlogs:
            state = drafter.new_state(session.capacity)
            drafter.catch_up(state, PrefixView(session, len(session.tokens) - backlog))
            start = time.perf_counter()
            drafter.catch_up(state, session)
            if repeat:
                seconds[backlog].append(time.perf_counter() - start)
    at = (0.0, *(float(backlog) for backlog in backlogs))
    return Curve(at, (0.0, *(median(times) for times in seconds.values())))
