"""Traces that others published, without a model at hand.

Some benchmarks tell, for every position of texts that a large target wrote, how many tokens a round
of a drafter would have committed there. That is a trace of this drafter's chains: a chain of K
tokens is the beginning of a longer one. What drafters that look up would have drafted follows from
the text alone, so ours are asked. The rest of an ordinary trace nobody told, and it is not made up:
hidden states and how sure the target was, and the tokens that the network drafted.

A reader of a format is a function from a folder to `PublishedTraces`
(`draftgym.rollouts.traces.specdecode_bench` is one); `trace_published` does the rest.

Notation: m = new tokens of a text, n = m - 1 = positions at which a round can begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from draftgym.decoding.arms import Arm, check_arms, parse_arm, single_arms
from draftgym.decoding.costs.published import named_cost_model
from draftgym.decoding.drafting import Drafter, Place
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Repeats, text_signals
from draftgym.decoding.provenance import describe_host, sole_writer
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.rollouts.traces.counterfactual import hash_prompt, trace_arms
from draftgym.rollouts.traces.file import trace_table
from draftgym.rollouts.traces.shards import ShardWriter, shards_in
from draftgym.rollouts.traces.trace import (
    UNPUBLISHED,
    ArmTrace,
    TextTrace,
    TraceOrigin,
    TraceSet,
)

UNKNOWN = "not published"
"""Stands where a trace names hashes of weights; nothing that is loaded has it."""
SHARD_TEXTS = 64


@dataclass(frozen=True)
class PublishedText:
    """A text with what rounds of the published drafters would have committed.

    Attributes:
        question_id: Which prompt; unlike all others.
        category: What kind; the data set, where there are several.
        prompt: Its token ids.
        tokens: Token ids that the target wrote, m of them.
        commits: By drafter, what a round would commit whose anchor is the i-th of these, at least
            1, with a draft as long as was measured; n numbers.
    """

    question_id: str
    category: str
    prompt: Sequence[int]
    tokens: Sequence[int]
    commits: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class PublishedTraces:
    """All texts of a folder, and what they come from.

    Attributes:
        source: Who published them, and where.
        target: Name of the target.
        longest: By drafter, the longest draft that its numbers were measured with.
        arms: What is traced unless something else is asked for.
        costs: Name of published costs (`draftgym.decoding.costs.published`), or the file of a cost
            model.
        max_new_tokens: Tokens that a text could have had.
        texts: The texts.
        left_out: Texts that are no counterfactuals, by why.
    """

    source: str
    target: str
    longest: Mapping[str, int]
    arms: tuple[str, ...]
    costs: str
    max_new_tokens: int
    texts: Sequence[PublishedText]
    left_out: Mapping[str, int] = field(default_factory=dict)


Reader = Callable[[Path], PublishedTraces]
"""Reads a folder of one format; raises `DraftgymError` for one that it cannot read."""


def trace_published(published: PublishedTraces, arms: Sequence[str] = ()) -> TraceSet:
    """Published traces as ordinary ones.

    Args:
        published: What was read.
        arms: Chains of the published drafters, and any arms of `ngram` and `suffix`; default:
            `PublishedTraces.arms`.

    Raises:
        DraftgymError: An arm that cannot be known, a text whose numbers are not one for each of its
            positions, or no text at all.
    """
    if not published.texts:
        raise DraftgymError(
            f"no text of {published.source} is a counterfactual one",
            "name the folder that holds all of it",
        )
    chosen = single_arms(map(parse_arm, arms or published.arms))
    lookups = _lookups(chosen)
    networks = [arm for arm in chosen if arm.drafter not in lookups]
    _check_arms(networks, published)
    check_arms([arm for arm in chosen if arm.drafter in lookups], lookups)
    names = dict.fromkeys(arm.drafter for arm in chosen)
    prints = {name: lookups[name].fingerprint if name in lookups else UNKNOWN for name in names}
    origin = TraceOrigin(
        target=published.target,
        target_fingerprint=UNKNOWN,
        dtype=UNKNOWN,
        drafters=prints,
        lags=dict.fromkeys(names, 1),
        arms=tuple(map(str, chosen)),
        verification=GreedyRule.name,
        temperature=0.0,
        seed=0,
        max_new_tokens=published.max_new_tokens,
        cost_model=named_cost_model(published.costs, names),
        host={"published": published.source, "left_out": dict(published.left_out)}
        | describe_host(),
        states=UNPUBLISHED,
    )
    texts = [_trace(one, published, chosen, lookups) for one in published.texts]
    return TraceSet(origin, texts)


def split_by_category(traces: TraceSet, share: float) -> tuple[TraceSet, TraceSet]:
    """Most of the texts, and about `share` of each category set aside, chosen by their ids alone.

    Raises:
        DraftgymError: The share is not between 0 and 1, or a category has a single text.
    """
    if not 0 < share < 1:
        raise DraftgymError(f"a share of {share:g} cannot be set aside", "give one between 0 and 1")
    kept: list[TextTrace] = []
    aside: list[TextTrace] = []
    for category in dict.fromkeys(text.category for text in traces.texts):
        most, others = traces.only([category]).split(share)
        kept += most.texts
        aside += others.texts
    return replace(traces, texts=kept), replace(traces, texts=aside)


def write_traces(traces: TraceSet, folder: Path) -> None:
    """Writes traces into a new folder.

    Raises:
        DraftgymError: There are traces in it, or it cannot be written to.
    """
    with sole_writer(folder):
        if shards_in(folder):
            raise DraftgymError(
                f"there are traces in {folder}", "name another folder with --out, or delete it"
            )
        to_table = partial(trace_table, origin=traces.origin)
        with ShardWriter(folder, to_table, SHARD_TEXTS) as writer:
            for text in traces.texts:
                writer.add(text)


def _lookups(arms: Sequence[Arm]) -> dict[str, Drafter]:
    """The drafters that look up, of those that arms name."""
    ours: list[Drafter] = [NgramDrafter(), SuffixDrafter()]
    named = {arm.drafter for arm in arms}
    return {drafter.name: drafter for drafter in ours if drafter.name in named}


def _check_arms(arms: Sequence[Arm], published: PublishedTraces) -> None:
    """Raises `DraftgymError` for an arm of a network that published numbers say nothing of."""
    for arm in arms:
        longest = published.longest.get(arm.drafter)
        if longest is None:
            raise DraftgymError(
                f"nobody published what arm {str(arm)!r} would do",
                f"choose from {', '.join([*published.longest, 'ngram', 'suffix'])}",
            )
        if arm.nodes is not None or arm.length > longest:
            raise DraftgymError(
                f"what was published does not say what arm {str(arm)!r} would do",
                f"write a chain of at most {longest} tokens, such as {arm.drafter}:{longest}",
            )


def _trace(
    text: PublishedText,
    published: PublishedTraces,
    arms: Sequence[Arm],
    lookups: Mapping[str, Drafter],
) -> TextTrace:
    """The trace of one text."""
    prompt, count = torch.tensor(text.prompt), len(text.tokens)
    whole = torch.cat([prompt, torch.tensor(text.tokens)])
    limit = published.max_new_tokens
    read = RecordedText(whole, len(prompt), torch.zeros(0), (), GreedyRule(), limit)
    places = read.places()
    traced = trace_arms(read, places, lookups, arms)
    networks = {str(a): _chain(text, a, places) for a in arms if a.drafter not in lookups}
    made = traced.arms | networks
    repeats = Repeats().extend(read.token_ids)[len(prompt) :]
    unknown = np.full((count, 3), np.nan, np.float32)
    return TextTrace(
        text.question_id,
        text.category,
        hash_prompt(prompt),
        len(prompt),
        np.array(text.tokens, dtype=np.int64),
        text_signals(unknown, repeats),
        np.zeros((count, 0), np.float32),
        {str(arm): made[str(arm)] for arm in arms},
        traced.logprobs,
        traced.drafts,
        traced.matches,
    )


def _chain(text: PublishedText, arm: Arm, places: Sequence[Place]) -> ArmTrace:
    """A chain of a published drafter: as its longest draft, which begins with it, but cut."""
    commits = np.array(text.commits.get(arm.drafter, ()), dtype=np.int64)
    if len(commits) != len(places) or (commits < 1).any():
        raise DraftgymError(
            f"text {text.question_id!r} has {len(commits)} numbers of {arm.drafter} for "
            f"{len(places)} positions, or some below 1",
            "give one number for each token but the last: what a round behind it commits",
        )
    drafted = np.minimum(np.array([place.room for place in places], dtype=np.int64), arm.length)
    drafted = np.maximum(drafted, 0)
    left = len(places) - np.arange(len(places))
    return ArmTrace(np.minimum(np.minimum(commits, drafted + 1), left), drafted, drafted)


def texts_by_category(traces: TraceSet) -> Iterator[tuple[str, int, int]]:
    """Each category with its texts and its positions."""
    for category in dict.fromkeys(text.category for text in traces.texts):
        mine: list[TextTrace] = traces.only([category]).texts
        yield category, len(mine), sum(map(len, mine))
