"""A rule for batches that was stored chooses what it chose before, and nothing else is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.policies.registry import make_policy
from draftgym.policies.serving.adaptive import SGLANG, AdaptiveLength
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.rule import Batch, FixedRule, Ints, Ladder, ServingRule
from draftgym.policies.serving.stored import load_rule, save_rule
from tests.handmade.served import LENGTHS, served_traces
from tests.tiny import tiny_drafters, tiny_target

TRACES = served_traces()
CHAINS = Ladder.of("small", LENGTHS)
CASCADES = Ladder.of("small", LENGTHS, parse_arm("ngram:8@3"))
SETTINGS = ServerSettings(4, 12, AtOnce(), look_up=False)


def servers(ladder: Ladder) -> Load:
    return make_load(TRACES, [str(arm) for arm in ladder.arms.values()], SETTINGS, 2)


def rules(ladder: Ladder, load: Load) -> list[ServingRule]:
    slow = {size: replace(one, alpha=0.1, interval=3) for size, one in SGLANG.items()}
    return [
        FixedRule(ladder.arms[3]),
        LengthBySize(ladder, {1: 7, 4: 3}, "mine"),
        AdaptiveLength(ladder, load.drafters, slow),
        GoodputLength(ladder, load.costs),
    ]


@pytest.mark.parametrize("ladder", [CHAINS, CASCADES])
def test_a_stored_rule_plays_as_before(ladder: Ladder, tmp_path: Path) -> None:
    load = servers(ladder)
    for rule in rules(ladder, load):
        save_rule(rule, TRACES.origin, tmp_path, {"by": "hand"})
        again = load_rule(tmp_path, TRACES.origin, load.drafters, SETTINGS.make_costs)
        assert (again.name, again.arms) == (rule.name, rule.arms)
        served = [play(load, RulePlayer(one, load), [3, 4]) for one in (rule, again)]
        np.testing.assert_array_equal(served[0].seconds, served[1].seconds)
        np.testing.assert_array_equal(served[0].played, served[1].played)


def test_rules_of_other_targets_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    save_rule(LengthBySize(CHAINS, {4: 3}), TRACES.origin, tmp_path, {})
    with pytest.raises(DraftgymError, match="target"):
        load_rule(tmp_path, replace(TRACES.origin, target_fingerprint="0" * 32))
    path = tmp_path / "policy.json"
    whole = json.loads(path.read_text())
    for broken in (
        {"kind": "by magic", "name": "x", "ladder": whole["rule"]["ladder"]},
        {"kind": "by size", "name": "x"},
        {**whole["rule"], "schedule": {"4": 2}},
        {**whole["rule"], "ladder": {"drafter": "small", "arms": {"0": "small:"}}},
        7,
    ):
        path.write_text(json.dumps({**whole, "rule": broken}))
        with pytest.raises(DraftgymError) as refused:
            load_rule(tmp_path, TRACES.origin)
        assert refused.value.remedy


def test_who_reckons_with_costs_is_not_made_without(tmp_path: Path) -> None:
    save_rule(GoodputLength(CHAINS, servers(CHAINS).costs), TRACES.origin, tmp_path, {})
    with pytest.raises(DraftgymError, match="costs"):
        load_rule(tmp_path, TRACES.origin)


def test_a_rule_of_another_kind_has_no_folder(tmp_path: Path) -> None:
    class Mine(ServingRule):
        name, arms = "mine", CHAINS.arms[3].parts

        def choose(self, batch: Batch) -> Ints:
            return np.zeros(batch.deciding.shape, np.int64)

    with pytest.raises(DraftgymError, match="Mine"):
        save_rule(Mine(), TRACES.origin, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_for_batches_is_no_router(tmp_path: Path) -> None:
    target = tiny_target()
    save_rule(FixedRule(parse_arm("ngram:4")), target, tmp_path, {})
    with pytest.raises(DraftgymError, match="batches"):
        make_policy(tmp_path, tiny_drafters(target), target)


def test_outcomes_follow_the_rules_own_drafters_unless_told(tmp_path: Path) -> None:
    arms = tuple(CASCADES.arms.values())
    save_rule(AdaptiveLength(CASCADES, tuple(drafter_names(arms))), TRACES.origin, tmp_path, {})
    assert isinstance(load_rule(tmp_path, TRACES.origin), AdaptiveLength)
