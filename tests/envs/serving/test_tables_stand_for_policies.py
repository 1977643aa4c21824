"""A table says of a policy what lengths can say, and what is lost is measured text by text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import (
    BatchPolicy,
    batch_sizes,
    distil,
    drafter_of,
    traced_ladder,
    tuned,
)
from draftgym.envs.serving.identical import TextsInTurn, play_identical
from draftgym.envs.serving.kept import measure_kept, rule_policy
from draftgym.envs.serving.play import RulePlayer
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.engines.table import LengthTable
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule, Ladder
from tests.handmade.host import handmade_host
from tests.handmade.served import ARMS, LENGTHS, served_traces

TRACES = served_traces(9)
SETTINGS = ServerSettings(look_up=False)
SIZES = (1, 4, 16, 64)


def test_every_text_is_written_once_whatever_the_size() -> None:
    texts = TextsInTurn(TRACES, [parse_arm("small:3")], SETTINGS)
    for size in SIZES:
        works = play_identical(texts, SETTINGS, size, lambda load: fixed("small:3", load))
        assert [work.tokens for work in works] == [len(text) for text in TRACES.texts]


def test_servers_may_draft_nothing_at_all() -> None:
    texts = TextsInTurn(TRACES, [parse_arm("plain")], SETTINGS)
    works = play_identical(texts, SETTINGS, 4, lambda load: fixed("plain", load))
    assert all(work.seconds > 0 for work in works)


def fixed(arm: str, load: Load) -> RulePlayer:
    return RulePlayer(FixedRule(parse_arm(arm)), load)


@pytest.mark.parametrize("schedule", [{64: 5}, {1: 7, 4: 3, 64: 1}, {4: 1, 16: 5, 64: 0}])
def test_a_policy_that_goes_by_size_becomes_itself(schedule: dict[int, int]) -> None:
    for first in (None, parse_arm("ngram:8")):
        rule = LengthBySize(Ladder.of("small", LENGTHS, first), schedule)
        table = distil(rule_policy(rule), TRACES, SETTINGS, SIZES)
        assert table == LengthTable("small", schedule)


def test_lookups_rounds_say_nothing_of_the_network() -> None:
    cascade = rule_policy(FixedRule(parse_arm("ngram:8>small:5")))
    assert distil(cascade, TRACES, SETTINGS, (8,)).schedule == {8: 5}
    lookup = rule_policy(FixedRule(parse_arm("ngram:8")))
    assert distil(lookup, TRACES, SETTINGS, (8,)) == LengthTable("ngram", {8: 8})


def test_tuned_lengths_are_the_fastest_of_each_size() -> None:
    table = tuned(TRACES, SETTINGS, SIZES, "small")
    texts = TextsInTurn(TRACES, [parse_arm(arm) for arm in ARMS], SETTINGS)
    ladder = Ladder.of("small", LENGTHS)
    for size, found in zip(SIZES, chosen(table), strict=True):
        speeds = {}
        for length, arm in ladder.arms.items():
            works = play_identical(
                texts, SETTINGS, size, lambda load, arm=arm: fixed(str(arm), load)
            )
            speeds[length] = sum(one.tokens for one in works) / sum(one.seconds for one in works)
        assert speeds[found] == pytest.approx(max(speeds.values()), rel=0.01)
    assert tuned(TRACES, SETTINGS, SIZES) == table, "one network was traced"


def chosen(table: LengthTable) -> list[int]:
    return [next(k for a, b, k in table.ranges if a <= size <= b) for size in SIZES]


def test_what_is_kept_is_all_of_itself_and_less_of_the_oracle() -> None:
    table = rule_policy(LengthTable("small", {4: 5, 64: 3}).rule())
    for again in (table, rule_policy(LengthTable("small", {4: 5, 64: 3}).rule())):
        found = measure_kept(table, again, TRACES, SETTINGS, SIZES)
        assert [one.size for one in found] == [*SIZES, None]
        for one in found:
            assert one.share is not None and one.policy == one.export
            assert one.against.value == one.share.value == 1
    arms = tuple(parse_arm(arm) for arm in ARMS)
    oracle = BatchPolicy("oracle", arms, lambda load: PlannedPlayer(None, load), looks=True)
    for one in measure_kept(oracle, table, TRACES, SETTINGS, SIZES):
        assert one.share is not None and one.share.high < 1 and one.policy.low > 1
        assert one.against.value == pytest.approx(one.export.value / one.policy.value)


def test_where_nothing_is_gained_nothing_can_be_kept() -> None:
    plain = rule_policy(FixedRule(parse_arm("plain")))
    for one in measure_kept(plain, plain, TRACES, SETTINGS, (4,)):
        assert one.share is None and one.policy.value == one.export.value == 1


def test_a_host_that_was_measured_prices_only_what_it_measured() -> None:
    host = handmade_host()
    settings = replace(SETTINGS, costs=host, places=1)
    costs = settings.make_costs([])
    assert batch_sizes((), costs) == (1, 2, 4, 8, 16)
    with pytest.raises(DraftgymError, match="up to 16 texts were measured"):
        batch_sizes((1, 32), costs)
    with pytest.raises(DraftgymError, match="sizes"):
        batch_sizes((4, 2), costs)
    with pytest.raises(DraftgymError, match="no costs of small"):
        tuned(TRACES, settings, (1, 4))


@pytest.mark.parametrize(
    ("arms", "problem"),
    [
        (["eagle3:2", "dflash:4"], "eagle3, dflash drafts"),
        (["ngram:8", "suffix:8"], "ngram, suffix drafts"),
        (["plain"], "nobody drafts"),
        (["eagle3:3x6"], "is a tree"),
        (["eagle3:3~0.5"], "stops where it is not sure"),
        (["eagle3:3+ngram:8"], "verifies what several drafted"),
    ],
)
def test_policies_that_no_table_can_tell_of_are_refused(arms: list[str], problem: str) -> None:
    with pytest.raises(DraftgymError, match=problem) as refused:
        drafter_of([parse_arm(arm) for arm in arms])
    assert refused.value.remedy


def test_a_lookup_in_front_must_have_been_traced() -> None:
    with pytest.raises(DraftgymError, match="suffix:1, suffix:3") as refused:
        tuned(TRACES, SETTINGS, (4,), match=3)
    assert "--arms" in (refused.value.remedy or "")
    with pytest.raises(DraftgymError, match="no chain of 'eagle3'"):
        traced_ladder(TRACES, "eagle3")


def test_means_are_of_all_requests() -> None:
    """Half of the rounds with drafts of 7 and half with none: the mean is between 3 and 5."""

    class Turns(FixedRule):
        def __init__(self) -> None:
            super().__init__(parse_arm("small:7"))
            self.arms, self._turn = (parse_arm("small:7"), parse_arm("plain")), 0

        def choose(self, batch: object) -> np.ndarray:
            self._turn += 1
            return np.full(batch.deciding.shape, self._turn % 2)  # type: ignore[attr-defined]

    policy = rule_policy(Turns())
    assert drafter_names(policy.arms) == ["small"]
    table = distil(policy, TRACES, SETTINGS, (4,))
    assert table.schedule[4] in (3, 5)
