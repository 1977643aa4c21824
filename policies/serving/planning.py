"""The arms of a round that is worth most, given what every arm is expected to commit.

    tokens committed  -  price * seconds of the round   ->   as much as possible

Everything a text adds to a round it adds whoever else is there, but for one thing: texts draft
together, and where a network drafts for one, its start is paid for all. So the best arms are found
with and without each network, each text for itself, and the best of these rounds is taken. That is
exact where a pass is linear in its rows, but for the little that lookups take for all; a measured
server is taken as linear around the batch.

Positions that a drafter has missed are not counted: whoever drafts later must encode them as well.
Who counts them in the round that does it never begins: a long prompt costs more than its first
draft brings, and the next round finds more of them.

Notation: n = servers, K = places, A = arms, D = drafters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from draftgym.decoding.costs.server_costs import BatchDrafts
from draftgym.decoding.drafting import LOOKUPS
from draftgym.policies.serving.servers import Floats, Ints, Mask, RowFacts, Servers


def best_arms(servers: Servers, facts: RowFacts, tokens: Floats, price: Floats | float) -> Ints:
    """The arms that earn most in the next round `[n, K]`.

    Args:
        servers: The servers.
        facts: Their `options`.
        tokens: What each arm is expected to commit in each place `[n, K, A]`.
        price: What a second is worth, in tokens, on each server `[n]` or on all.
    """
    copies, deciding = servers.copies, servers.deciding
    price = np.broadcast_to(np.asarray(price, float), (servers.shape[0],))
    values = tokens - price[:, None, None] * _own_seconds(servers, facts)
    best, most = np.zeros(servers.shape, np.int64), np.full(servers.shape[0], -np.inf)
    for allowed in _with_and_without(servers, facts):
        arms = np.where(allowed, values, -np.inf).argmax(-1)
        expected = np.take_along_axis(tokens, arms[..., None], -1)[..., 0]
        seconds = servers.round_seconds(arms, caught_up=True)
        earned = copies * (expected * deciding).sum(-1) - price * seconds
        better = earned > most
        best, most = np.where(better[:, None], arms, best), np.where(better, earned, most)
    return best


def _own_seconds(servers: Servers, facts: RowFacts) -> Floats:
    """What each arm adds to a round in each place, drafting and rows `[n, K, A]`."""
    shape, flat = facts.committed.shape, (servers.shape[0], -1)
    of_drafters = (*flat, len(servers.drafters))
    context = np.broadcast_to(servers.context[..., None], shape)
    drafts = BatchDrafts(
        facts.asked.reshape(of_drafters),
        facts.steps.reshape(of_drafters),
        facts.tokens.reshape(of_drafters),
        np.zeros_like(facts.steps).reshape(of_drafters),
        context.reshape(flat),
        servers.alone.reshape(flat),
    )
    drafting = servers.costs.own_seconds(drafts).reshape(shape)
    return np.asarray(drafting + _row_seconds(servers)[:, None, None] * facts.drafted)


def _row_seconds(servers: Servers) -> Floats:
    """Seconds of a further row, around a batch in which everybody drafts one token `[n]`."""
    copies, deciding = servers.copies, servers.deciding
    size = np.maximum(copies * deciding.sum(-1), 1)
    cached = copies * (servers.context * deciding).sum(-1)
    ends = (servers.costs.pass_seconds(size, rows * size, cached) for rows in (2, 1))
    return np.asarray(np.subtract(*ends) / size)


def _with_and_without(servers: Servers, facts: RowFacts) -> Iterator[Mask]:
    """Which arms may be taken, for every choice of the networks that draft at all `[n, K, A]`."""
    networks = [i for i, name in enumerate(servers.drafters) if name not in LOOKUPS]
    for asleep in itertools.product((False, True), repeat=len(networks)):
        columns = [column for column, its in zip(networks, asleep, strict=True) if its]
        yield np.asarray((facts.steps[..., columns] == 0).all(-1))
