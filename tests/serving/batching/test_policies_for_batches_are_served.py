"""Policies for batches choose on a running server, from their folders, and change no text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.host_costs import HostCosts, make_server_costs
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import drafter_names
from draftgym.policies.serving.adaptive import AdaptiveLength, AdaptiveSize
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.observation import OF_THE_SERVER, request_features
from draftgym.policies.serving.rule import Batch, FixedRule, Ints, Ladder, Outcome, ServingRule
from draftgym.policies.serving.servers import RowFacts, Servers
from draftgym.policies.serving.stored import save_rule
from draftgym.policies.serving.tokens import (
    NetworkSize,
    TokenForecast,
    TokenNetwork,
    draft_kinds,
    save_forecast,
)
from draftgym.serving.batching.batcher import Batcher, BatchSettings
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.batching.requests import Finished, TextRequest
from draftgym.serving.batching.watching import NoWatch, RoundFacts
from draftgym.serving.http.main import ServeArgs
from draftgym.serving.http.metrics import Metrics
from draftgym.serving.planning.folders import load_for_batch
from draftgym.serving.planning.policies import PlannedForBatch, RuleForBatch
from draftgym.serving.planning.predicted import RoundPrices
from tests.serving.batches import alone, play, prompt_of, submit
from tests.serving.writings import play as play_texts
from tests.serving.writings import some_writings

COSTS = partial(make_server_costs, "llama3.1-8b-h100")
ARMS = [parse_arm(arm) for arm in ("plain", "eagle3:1", "eagle3:3", "dflash:3", "ngram:4")]
CASCADES = Ladder.of("eagle3", (1, 3), parse_arm("ngram:4@2"))


def some_forecast(arms: Sequence[Arm] = ARMS, seed: int = 0) -> TokenForecast:
    """One that was never fitted: it has an opinion on everything."""
    torch.manual_seed(seed)
    lookups = [name for name in drafter_names(arms) if name == "ngram"]
    features = request_features(arms, lookups)
    kinds = draft_kinds(arms)
    longest = max(part.length for part in kinds.values())
    sizes = len(features) - len(OF_THE_SERVER), 2 + len(lookups), 1, len(kinds), longest
    network = TokenNetwork(NetworkSize(*sizes, width=16))
    with torch.no_grad():
        for weights in network.parameters():
            weights.normal_(std=0.5)
    return TokenForecast(network, arms, features)


@pytest.fixture
def folders(tmp_path: Path, target: Target) -> dict[str, str]:
    """A folder of each kind, by name."""
    sizes = {1: AdaptiveSize((1, 3), interval=2, warmup=1), 4: AdaptiveSize((0, 1), interval=2)}
    names = tuple(drafter_names(tuple(CASCADES.arms.values())))
    rules: dict[str, ServingRule] = {
        "fixed": FixedRule(parse_arm("eagle3:3x6")),
        "table": LengthBySize(CASCADES, {2: 3, 5: 1}),
        "adaptive": AdaptiveLength(CASCADES, names, sizes),
        "goodput": GoodputLength(CASCADES, COSTS(names)),
    }
    for name, rule in rules.items():
        save_rule(rule, target, tmp_path / name, {})
    save_forecast(some_forecast(), target, tmp_path / "forecast", {})
    return {name: str(tmp_path / name) for name in (*rules, "forecast")}


def server(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str], guard: bool = False
) -> Batcher:
    policies = PolicySet(target, drafters, {**folders, "plain": "plain"}, costs=COSTS)
    return Batcher(target, drafters, policies, BatchSettings(6, prompt_rows=8, guard=guard))


def some_requests(target: Target, names: Sequence[str], count: int, seed: int) -> list[TextRequest]:
    rng = random.Random(seed)
    return [
        TextRequest(
            prompt_of(target, rng.randrange(2, 30), 100 * seed + index),
            rng.randrange(1, 30),
            temperature=rng.choice([0.0, 0.7]),
            seed=index,
            policy=rng.choice(names),
            max_draft=rng.choice([None, None, 0, 2]),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(("seed", "guard"), [(0, False), (1, True), (2, False)])
def test_whatever_is_chosen_every_text_is_plain_decodings(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str], seed: int, guard: bool
) -> None:
    batch = server(target, drafters, folders, guard)
    requests = some_requests(target, list(folders), 30, seed)
    heard, rng = submit(batch, requests[:8]), random.Random(seed)
    for request in requests[8:]:  # others come and go meanwhile
        for _ in range(rng.randrange(3)):
            batch.step()
        heard += submit(batch, [request])
    play(batch)
    for request, one in zip(requests, heard, strict=True):
        assert one.tokens == alone(target, request)
        assert isinstance(one.last, Finished)


def test_texts_that_leave_do_not_confuse_who_chooses(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    batch = server(target, drafters, folders)
    requests = some_requests(target, ["forecast", "goodput"], 12, 9)
    heard = submit(batch, requests)
    for number in (0, 3, 4):
        batch.step()
        batch.cancel(number)
    play(batch)
    for number, (request, one) in enumerate(zip(requests, heard, strict=True)):
        if number not in (0, 3, 4):
            assert one.tokens == alone(target, request)


def test_predictions_go_before_a_folder_as_before_any_default(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    batch = server(target, drafters, {"forecast": folders["forecast"]})
    requests = [TextRequest(prompt_of(target, 9, n), 20, prediction=(5, 6, 7)) for n in range(3)]
    heard = submit(batch, [*requests, TextRequest(prompt_of(target, 9, 5), 20)])
    play(batch)
    for request, one in zip(requests, heard, strict=False):
        assert one.tokens == alone(target, request)


def test_a_table_goes_by_the_whole_batch(target: Target, drafters: dict[str, Drafter]) -> None:
    texts = some_writings(target, drafters, 6)
    policy = RuleForBatch(LengthBySize(Ladder.of("eagle3", (1, 3)), {2: 3, 5: 1}))
    for size, arm in ((1, "eagle3:3"), (2, "eagle3:3"), (3, "eagle3:1"), (6, "plain")):
        assert {str(one) for one in policy.choose(texts[:1], texts[:size])} == {arm}


def test_a_rule_learns_what_its_rounds_did(target: Target, drafters: dict[str, Drafter]) -> None:
    class Told(FixedRule):
        rounds: list[tuple[Batch, Outcome]]

        def learn(self, batch: Batch, arms: Ints, outcome: Outcome) -> None:
            self.rounds.append((batch, outcome))

    rule = Told(parse_arm("ngram:4>eagle3:3"))
    rule.rounds = []
    policy, texts = RuleForBatch(rule), some_writings(target, drafters, 4)
    records = play_texts(policy, texts)
    assert not rule.rounds
    policy.choose(texts[:2], texts[:2])
    ((batch, outcome),) = rule.rounds
    assert batch.size == 4
    assert outcome.drafted[0].tolist() == [len(one.drafted) for one in records]
    assert outcome.accepted[0].tolist() == [len(one.committed) - 1 for one in records]
    verified = [[name in one.drafters for name in ("ngram", "eagle3")] for one in records]
    assert outcome.verified[0].tolist() == verified


def test_who_has_no_say_is_still_counted(target: Target, drafters: dict[str, Drafter]) -> None:
    forecast = some_forecast()
    policy = PlannedForBatch("mine", forecast, COSTS(drafter_names(ARMS)))
    texts = some_writings(target, drafters, 5)
    chosen = policy.choose([texts[3], texts[1]], texts)
    assert len(chosen) == 2 and all(arm in ARMS for arm in chosen)
    play_texts(policy, texts)
    assert len(policy.choose(texts[:1], texts[:1])) == 1


def test_every_request_may_get_another_arm(target: Target, drafters: dict[str, Drafter]) -> None:
    class Opinion:
        """That another arm commits much for each text."""

        arms = tuple(ARMS)

        def tokens(self, servers: Servers, facts: RowFacts) -> np.ndarray:
            tokens = np.ones((*servers.shape, len(ARMS)))
            tokens[0, [0, 1, 2], [2, 0, 4]] = 9.0
            return tokens

    policy = PlannedForBatch("mine", Opinion(), COSTS(drafter_names(ARMS)))
    texts = some_writings(target, drafters, 3)
    assert list(map(str, policy.choose(texts, texts))) == ["eagle3:3", "plain", "ngram:4"]


def test_costs_that_are_needed_are_asked_for(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    for name in ("forecast", "goodput"):
        with pytest.raises(DraftgymError, match="costs") as refused:
            load_for_batch(folders[name], drafters, target, None)
        assert "--costs" in refused.value.remedy
    load_for_batch(folders["table"], drafters, target, None)


def test_folders_with_arms_that_nobody_serves_are_refused(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    few = {name: one for name, one in drafters.items() if name != "eagle3"}
    with pytest.raises(DraftgymError, match="eagle3"):
        load_for_batch(folders["table"], few, target, None)


def test_a_request_names_no_folder(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    batch = server(target, drafters, {"table": folders["table"]})
    with pytest.raises(DraftgymError, match="no policy"):
        batch.submit(TextRequest(torch.tensor([5, 6]), 3, policy=folders["forecast"]), print)


def test_predictions_stand_beside_what_rounds_took(
    target: Target, drafters: dict[str, Drafter], folders: dict[str, str]
) -> None:
    class Told(NoWatch):
        def __init__(self) -> None:
            self.rounds: list[RoundFacts] = []

        def round(self, facts: RoundFacts) -> None:
            self.rounds.append(facts)

    told, policies = Told(), PolicySet(target, drafters, folders, costs=COSTS)
    prices = RoundPrices(COSTS, drafters)
    settings = BatchSettings(6, guard=False)
    batch = Batcher(target, drafters, policies, settings, told, prices=prices)
    submit(batch, some_requests(target, list(folders), 8, 3))
    play(batch)
    costs = COSTS(tuple(drafters))
    for facts in told.rounds:
        assert facts.predicted is not None
        draft, verify = facts.predicted
        rows = sum(1 + len(one.drafted) for one in facts.records) + facts.prompt_rows
        cached = sum(one.context for one in facts.records)
        assert verify == pytest.approx(float(costs.pass_seconds(1, rows, cached)))
        assert (draft > 0) == any(one.asked for one in facts.records)
    metrics = Metrics("tiny")
    metrics.round(told.rounds[0])
    for phase in ("draft", "verify"):
        assert f'draftgym_predicted_seconds_total{{model_name="tiny",phase="{phase}"}}' in (
            metrics.exposition()[0].decode()
        )


def test_costs_of_a_server_are_read_before_it_starts(tmp_path: Path) -> None:
    assert ServeArgs().server_costs() is None
    known = ServeArgs(costs="llama3.1-8b-h100").server_costs()
    assert known is not None and known(["eagle3"]).pass_seconds(1, 1, 0) > 0
    rows = ((0.01, 0.02), (0.02, 0.03))
    batches = BatchCost({}, (8,), (1, 4), (1, 9), (rows,))
    path = tmp_path / "host.json"
    path.write_text(HostCosts(batches, CostModel({}, {}, {}, {}), {}).to_json())
    for changes in ({"max_running": 5}, {"costs": "an abacus"}, {"costs": str(tmp_path)}):
        with pytest.raises(DraftgymError) as refused:
            ServeArgs(**{"costs": str(path), "max_running": 4, **changes}).check()  # type: ignore[arg-type]
        assert refused.value.remedy
    ServeArgs(costs=str(path), max_running=4).check()
