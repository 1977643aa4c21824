"""Policies that stop a chain while it is drafted: what they see and stop, and whose text it is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.routers.early_stop.acceptance import (
    PUBLISHED,
    SVIP,
    TOKEN,
    Examples,
    Signal,
    head_of,
)
from benchmarks.routers.early_stop.chains import Chains, collect_chains
from benchmarks.routers.early_stop.rules import BY_ROC, RULES, Setting
from benchmarks.routers.early_stop.scene import Scene, price_chains, uses
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.drafting import DraftedToken, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.acceptance import (
    AcceptancePolicy,
    load_acceptance_policy,
    save_acceptance_policy,
)
from draftgym.policies.routers.stopping import ConfidencePolicy, StoppingPolicy
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.replay.oracle import Walk
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.traces.trace import TraceSet
from draftgym.serving.batching.policies import EachText
from tests.serving.writings import play, some_writings
from tests.tiny import numbered_target
from tests.traces import tiny_traces

LENGTH, TOKENS = 5, 24
CASCADE = f"ngram:4>eagle3:{LENGTH}"
Tiny = tuple[TraceSet, Chains]


@pytest.fixture(scope="module")
def tiny(target: Target, drafters: dict[str, Drafter]) -> Tiny:
    """Traces of a few texts, and the whole chain at each of their positions."""
    some, drafter = [Prompt(f"p{i}", "chat", (f"{i}",)) for i in range(6)], drafters["eagle3"]
    assert isinstance(drafter, AutoregressiveDrafter)
    traces = tiny_traces(target, drafters, 0.0, ["eagle3:3", "ngram:4"], some, TOKENS)
    ids = {one.question_id: numbered_target(target).encode(one.text) for one in some}
    return traces, collect_chains(target, drafter, traces, ids, LENGTH)


def scene_of(tiny: Tiny, name: str, scores: Signal) -> Scene:
    return Scene.of(price_chains(*tiny, "eagle3", parse_arm("ngram:4")), tiny[1], {name: scores})


def live(target: Target, drafters: dict[str, Drafter], policy: Any, text: str) -> Generation:
    decoder = SpeculativeDecoder(numbered_target(target), drafters, policy)
    return decoder.generate(text[1:], TOKENS)


def chains_of(generation: Generation, walk: Walk) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Tokens drafted and verified of every chain, live and in replay.

    Replay also says what would be drafted where lookup has something to offer.
    """
    assert len(generation.rounds) == walk.rounds
    pairs, (drafted, verified) = [], uses(LENGTH)
    for one, use in zip(generation.rounds, walk.arms, strict=True):
        last = one.record.asked[-1]
        if last.arm.drafter == "eagle3":
            told = last.drafted, len(one.record.drafted)
            pairs.append((told, (int(drafted[use]), int(verified[use]))))
    return pairs


@pytest.mark.parametrize(
    ("rule", "least", "spec"),
    [
        (TOKEN, math.log(0.12), "confidence:0.12"),
        (TOKEN, math.log(0.09), "confidence:0.09"),
        (BY_ROC, math.log(0.1), "roc:0.1"),
        (SVIP, -3.35, "svip:3.35"),
        (SVIP, -3.25, "svip:3.25"),
    ],
)
def test_live_rules_play_the_rounds_that_replay_plays(
    target: Target, drafters: dict[str, Drafter], tiny: Tiny, rule: str, least: float, spec: str
) -> None:
    scores = tiny[1].logprobs if rule != SVIP else -tiny[1].entropies
    signal = Signal(scores.astype(np.float64))
    scene = scene_of(tiny, RULES[rule].signal, signal)
    walks = RULES[rule].play(scene, Setting(LENGTH, least, keeps=True))
    stopped = 0
    policy = make_policy(f"{spec}@{CASCADE}", drafters, target)
    for text, mine in zip(tiny[0].texts, walks, strict=True):
        found = live(target, drafters, policy, text.question_id)
        assert found.tokens == text.tokens.tolist()
        pairs = chains_of(found, mine)
        assert all(told == wanted for told, wanted in pairs)
        stopped += sum(0 < told[0] < LENGTH for told, _ in pairs)
    assert stopped > 9, "chains end early"


def test_a_head_stops_live_what_it_stops_in_replay(
    target: Target, drafters: dict[str, Drafter], tiny: Tiny, tmp_path: Path
) -> None:
    examples = Examples.of(tiny[1], late=True, knows_all=False)
    head = head_of(examples, np.ones(len(tiny[1]), np.bool_))
    with torch.inference_mode():
        logits = head(examples.facts.flatten(0, 1)).view(len(tiny[1]), LENGTH)
    signal = Signal(torch.nn.functional.logsigmoid(logits).double().numpy(), True, late=True)
    least = float(np.exp(np.median(signal.scores()[:, 1:3])))
    walks = RULES[PUBLISHED].play(
        scene_of(tiny, PUBLISHED, signal), Setting(LENGTH, math.log(least), keeps=True)
    )
    facts: Any = (drafters["eagle3"], target, tmp_path / "head", {})
    save_acceptance_policy(head, parse_arm(CASCADE), least, *facts)
    policy = make_policy(tmp_path / "head", drafters, target)
    assert isinstance(policy, AcceptancePolicy) and policy.name == "head"
    pairs = []
    for text, mine in zip(tiny[0].texts, walks, strict=True):
        found = live(target, drafters, policy, text.question_id)
        assert found.tokens == text.tokens.tolist()
        pairs += chains_of(found, mine)
    assert all(told == wanted for told, wanted in pairs)
    assert len({told for told, _ in pairs}) > 2


class Turns(StoppingPolicy):
    """Stops a text's chains at 2, 3 and 1 tokens, in turn."""

    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """See `StoppingPolicy`."""
        chains = (state or 0) + (token.depth == 1)
        return token.depth == 1 + chains % 3, chains


@pytest.mark.parametrize("drafter", ["eagle3", "small"])
@pytest.mark.parametrize("verification", ["greedy", "coupled"])
def test_where_a_chain_stops_never_changes_text(
    target: Target, drafters: dict[str, Drafter], drafter: str, verification: str
) -> None:
    policy = Turns(parse_arm(f"{drafter}:{LENGTH}"), "turns")
    temperature = 0.0 if verification == "greedy" else 0.8
    texts = [
        SpeculativeDecoder(target, drafters, one).generate(
            torch.tensor([5, 9, 5, 9, 7]), TOKENS, temperature, 3, verification
        )
        for one in (policy, make_policy("plain", drafters, target))
    ]
    assert texts[0].tokens == texts[1].tokens
    depths = [len(one.record.drafted) for one in texts[0].rounds[:4]]
    assert depths == [2, 3, 1, 2]


def test_every_text_has_a_memory_of_its_own(target: Target, drafters: dict[str, Drafter]) -> None:
    policy = Turns(parse_arm(f"eagle3:{LENGTH}"), "turns")
    texts = some_writings(target, drafters, 3)
    chooses = EachText(policy)
    for depth in (2, 3, 1):
        assert {len(one.drafted) for one in play(chooses, texts)} == {depth}


def test_states_are_told_where_the_drafter_has_one(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    widths = {}

    class Curious(ConfidencePolicy):
        def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
            widths[self.name] = token.state.shape
            assert token.logprob <= 0 <= token.entropy
            return super().stops(token, accepted, state)

    for name in ("eagle3", "small"):
        policy = Curious(parse_arm(f"{name}:3"), 0.01, name)
        SpeculativeDecoder(target, drafters, policy).generate(torch.tensor([5, 9, 7]), 8)
    assert widths == {"eagle3": (32,), "small": (0,)}


def test_mistakes_are_answered(
    target: Target, drafters: dict[str, Drafter], tiny: Tiny, tmp_path: Path
) -> None:
    for spec, problem in {
        "svip@eagle3:3x6": "ends in none",
        "svip@dflash:3": "drafts all of it at once",
        "roc@eagle3:3,eagle3:4": "not of 2",
        "confidence:2@eagle3:3": "probability of 2",
        "svip:-1@eagle3:3": "entropy of -1",
        "roc:x@eagle3:3": "no number after the colon",
    }.items():
        with pytest.raises(DraftgymError, match=problem):
            make_policy(spec, drafters, target)
    with pytest.raises(DraftgymError, match="traces do not hold that"):
        play_policy(tiny[0], make_policy("svip@eagle3:3", drafters, target))
    head = head_of(Examples.of(tiny[1], True, False), np.ones(len(tiny[1]), np.bool_))
    other: Any = type("Other", (), {"fingerprint": "0" * 16})()
    arm = parse_arm(CASCADE)
    save_acceptance_policy(head, arm, 0.5, other, target, tmp_path / "head", {})
    with pytest.raises(DraftgymError, match="states of another eagle3"):
        make_policy(tmp_path / "head", drafters, target)
    loaded = load_acceptance_policy(tmp_path / "head", target)
    assert replace(loaded.arms[0]) == arm
