"""A forecast sees of a running batch what the environment showed of the same texts and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.host_costs import HostCosts
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.policies.serving.observation import OF_THE_SERVER, observe
from draftgym.policies.serving.planning import best_arms
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.traces.trace import TraceSet
from draftgym.serving.batching.choosing import Writing
from draftgym.serving.batching.requests import TextRequest, TextStatistics
from draftgym.serving.planning.live import Followed, LiveBatch
from draftgym.serving.planning.options import ArmOptions
from tests.tiny import numbered_target
from tests.traces import tiny_traces

TEXTS, NEW = 5, 30
ARMS = [
    "plain",
    "eagle3:1",
    "eagle3:3",
    "dflash:4",
    "ngram:4",
    "ngram:2@2>eagle3:3",
    "ngram:4>dflash:2",
]
PROMPTS = [Prompt(f"{i}", "chat", (f"{i}",)) for i in range(TEXTS)]


@dataclass
class Both:
    """The same texts, replayed and live."""

    load: Load
    texts: dict[str, Writing]
    options: ArmOptions
    followed: dict[str, Followed]

    def names(self) -> list[str]:
        """Which text is in each place of the replay, while it is being written."""
        ids = [self.load.texts.texts[text].question_id for text in self.load.text[0]]
        return [name for name, there in zip(ids, self.load.deciding[0], strict=True) if there]

    def live(self) -> LiveBatch:
        """The batch, in the order of the replay."""
        names = self.names()
        followed = {place: self.followed[name] for place, name in enumerate(names)}
        texts = [self.texts[name] for name in names]
        return LiveBatch(self.options, self.load.costs, texts, followed, 0.0)

    def play(self, arms: Sequence[int]) -> None:
        """A round of both, with an arm of each text that is being written."""
        names, deciding = self.names(), self.load.deciding
        chosen = np.zeros(self.load.shape, np.int64)
        chosen[deciding] = arms
        sessions = [self.texts[name].session for name in names]
        records = play_rounds(sessions, [self.load.arms[arm] for arm in arms])
        for name, arm, record in zip(names, arms, records, strict=True):
            self.followed[name].update(int(arm), record)
        played = self.load.step(chosen)
        assert played.committed[deciding].tolist() == [len(one.committed) for one in records]


@pytest.fixture(scope="module")
def traced(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    singles = list(dict.fromkeys(str(part.whole) for arm in ARMS for part in parse_arm(arm).parts))
    return tiny_traces(target, drafters, arms=singles, prompts=PROMPTS, max_new_tokens=NEW)


def measured(traces: TraceSet) -> HostCosts:
    seconds = [[[0.01 + 0.002 * u * r + c / 1e5 for r in (1, 9)] for u in (1, 8)] for c in (8, 64)]
    batches = BatchCost(
        {}, (8, 64), (1, 8), (1, 9), tuple(tuple(map(tuple, one)) for one in seconds)
    )
    return HostCosts(batches, traces.origin.cost_model, {})


@pytest.fixture(params=["measured", "published"])
def both(
    request: pytest.FixtureRequest,
    traced: TraceSet,
    target: Target,
    drafters: dict[str, Drafter],
) -> Both:
    costs = measured(traced) if request.param == "measured" else "llama3.1-8b-h100"
    load = make_load(traced, ARMS, ServerSettings(TEXTS, TEXTS, AtOnce(), costs=costs))
    load.reset([np.random.default_rng(0)])
    load.step(np.zeros(load.shape, np.int64))  # reads all prompts
    assert load.deciding.all()
    reader, texts = numbered_target(target), {}
    for prompt in PROMPTS:
        ids = reader.encode(prompt.text)
        session = Session(target, ids, GreedyRule(), NEW, drafters)
        session.prefill()
        texts[prompt.question_id] = Writing(TextRequest(ids, NEW), session, TextStatistics())
    options = ArmOptions(load.arms, load.costs.model)
    followed = {name: Followed(text.session, options) for name, text in texts.items()}
    return Both(load, texts, options, followed)


@pytest.mark.parametrize("seed", range(3))
def test_a_live_batch_is_the_replayed_one(both: Both, seed: int) -> None:
    rng, rounds = np.random.default_rng(seed), 0
    assert both.options.lookups == both.load.lookups
    while both.names():
        live, load, rounds = both.live(), both.load, rounds + 1
        there = load.deciding
        own = len(OF_THE_SERVER)
        seen, replayed = observe(live)["requests"], observe(load)["requests"]
        np.testing.assert_allclose(seen[0, :, own:], replayed[there][:, own:], atol=2e-5)
        np.testing.assert_array_equal(live.ids[0], load.ids[there])
        mine, theirs = live.options(), load.options()
        for name in ("drafted", "asked", "verified", "steps", "tokens"):
            told = getattr(theirs, name)[there]
            np.testing.assert_array_equal(getattr(mine, name)[0], told, err_msg=name)
        np.testing.assert_allclose(live.alone[0], load.alone[there])
        missed = load.missed(theirs.asked)[there]
        np.testing.assert_array_equal(live.missed(mine.asked)[0], missed)
        arms = rng.integers(len(ARMS), size=len(both.names()))
        whole = np.zeros(load.shape, np.int64)
        whole[there] = arms
        np.testing.assert_allclose(live.round_seconds(arms[None]), load.round_seconds(whole))
        both.play(arms.tolist())
    assert rounds > 10


def test_the_same_forecast_plans_the_same_round(both: Both) -> None:
    rng = np.random.default_rng(5)
    while both.names():
        live, load = both.live(), both.load
        tokens = np.ones((*load.shape, len(ARMS)))
        tokens[load.deciding] += rng.uniform(0, 3, size=(len(both.names()), len(ARMS)))
        price = rng.choice([1.0, 20.0, 200.0])
        planned = best_arms(load, load.options(), tokens, price)[load.deciding]
        mine = best_arms(live, live.options(), tokens[load.deciding][None], price)[0]
        assert mine.tolist() == planned.tolist()
        both.play(mine.tolist())


def test_others_in_the_pass_have_a_row_and_no_arm(both: Both) -> None:
    names, texts = both.names(), both.texts
    followed = {1: both.followed[names[1]]}
    batch = [texts[name] for name in names]
    live = LiveBatch(both.options, both.load.costs, batch, followed, 0.0)
    assert live.deciding.tolist() == [[False, True, False, False, False]]
    arms = np.full((1, TEXTS), 2)
    alone = LiveBatch(both.options, both.load.costs, batch[1:2], {0: followed[1]}, 0.0)
    more = live.round_seconds(arms) - alone.round_seconds(arms[:, :1])
    assert more > 0
    arms[0, 0] = 1  # nobody reads that
    np.testing.assert_array_equal(
        live.round_seconds(arms), live.round_seconds(np.full((1, TEXTS), 2))
    )
