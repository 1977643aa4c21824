"""Draft lengths by batch size, chosen on traces: the table that an operator would make.

For each size a server that is never short of work plays every length, with as many places; the
length that writes most tokens a second is taken. Shorter or longer ones are tried for all sizes
alike, so that a table is no better than its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.policies.serving.rule import FixedRule, Ladder

SIZES = (1, 2, 4, 8, 16, 32, 64)


def best_lengths(
    texts: ServedTexts,
    settings: ServerSettings,
    ladder: Ladder,
    sizes: Sequence[int] = SIZES,
    requests_each: int = 4,
    seeds: Sequence[int] = (0,),
) -> dict[int, int]:
    """The best length of each size: a schedule for `draftgym.policies.serving.by_size`.

    Args:
        texts: What is asked for; training texts.
        settings: The server; its places, arrivals and requests are not read.
        ladder: An arm for every length.
        sizes: Largest batch of each entry, ascending.
        requests_each: Requests for each place.
        seeds: Which requests, one episode each.
    """
    schedule = {}
    for size in sizes:
        full = replace(
            settings,
            places=-(-size // settings.copies),
            requests=-(-size // settings.copies) * requests_each,
            arrivals=AtOnce(),
        )
        rates = {}
        for length, arm in ladder.arms.items():
            load = Load(texts, full, full.make_costs(texts.drafters), len(seeds))
            rates[length] = play(load, RulePlayer(FixedRule(arm), load), seeds).goodput
        schedule[size] = max(rates, key=lambda length: rates[length])
    return schedule
