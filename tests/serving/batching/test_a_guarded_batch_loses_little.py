"""The guard in a real batch: what it costs and keeps, in work that is counted instead of timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.serving.batching.requests import TextRequest
from draftgym.serving.batching.watching import NoWatch, RoundFacts
from tests.serving.batches import batcher, prompt_of, written
from tests.tiny import tiny_target

TEXTS, TOKENS = 4, 1200
PASS, ROW, DRAFT = 1.0, 0.1, 0.15
"""What a pass, each of its rows, and a draft take."""


class Foreseen(Drafter):
    """Knows what texts will say, and proposes it, or always something else.

    Attributes:
        said: The texts by their first tokens.
        honest: Whether it proposes what it knows.
        work: Told of every draft.
    """

    name, max_draft_length = "foreseen", 8

    def __init__(self, said: dict[tuple[int, ...], list[int]], work: Work) -> None:
        self.said, self.work, self.honest = said, work, True

    @property
    def fingerprint(self) -> str:
        """Of a test."""
        return "foreseen"

    def new_state(self, capacity: int) -> None:
        """It remembers nothing."""

    def catch_up(self, state: Any, context: DraftContext, full: bool = False) -> int:
        """Nothing to encode."""
        return 0

    def propose(self, state: Any, context: DraftContext, shape: DraftShape) -> Proposal:
        """The next tokens, each one off where it is not honest."""
        self.work.now += DRAFT
        known = len(context.token_ids)
        following = self.said[tuple(context.token_ids[:8])][known : known + shape.depth]
        wrong = [(one + (not self.honest)) % 61 for one in following]
        return Proposal.chain(torch.tensor(wrong, dtype=torch.long), torch.zeros(len(wrong)))


class Work:
    """A clock that goes on by work: passes with their rows, and drafts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds, as a batch asks for them."""
        return self.now

    def counted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A pass that takes its time."""

        def passes(rows: Sequence[Any], *given: Any) -> Any:
            self.now += PASS + ROW * sum(len(one.tokens) for one in rows)
            return forward(rows, *given)

        return passes


class Rounds(NoWatch):
    """Keeps what rounds were."""

    def __init__(self) -> None:
        self.facts: list[RoundFacts] = []

    def round(self, facts: RoundFacts) -> None:
        """Keeps it."""
        self.facts.append(facts)


@pytest.fixture(scope="module")
def target() -> Target:
    """So small that thousands of rounds take seconds."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    return tiny_target(**sizes)


@pytest.fixture
def work(target: Target, monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    monkeypatch.setattr(target.decoder, "forward", made.counted(target.decoder.forward))
    return made


@pytest.fixture(scope="module")
def requests(target: Target) -> list[TextRequest]:
    prompts = [prompt_of(target, 8, seed) for seed in range(TEXTS)]
    return [TextRequest(prompt, TOKENS) for prompt in prompts]


@pytest.fixture
def play(target: Target, work: Work, requests: list[TextRequest]) -> Callable[..., float]:
    """Plays a batch; the work that it took."""
    said: dict[tuple[int, ...], list[int]] = {}
    drafter = Foreseen(said, work)

    def played(policy: str, guard: bool, honest: bool = True, watch: Any = None) -> float:
        drafter.honest, before = honest, work.now
        drafters: dict[str, Drafter] = {"foreseen": drafter}
        batch = batcher(target, drafters, policy, work, watch, guard=guard, reuse=False)
        for request, heard in zip(requests, written(batch, requests), strict=True):
            prompt = tuple(request.prompt.tolist())
            text = said.setdefault(prompt, [*prompt, *heard.tokens])
            assert text == [*prompt, *heard.tokens]
        return work.now - before

    return played


@pytest.mark.slow
def test_a_useless_drafter_costs_a_batch_less_than_two_hundredths(
    play: Callable[..., float],
) -> None:
    plain = play("plain", guard=False)
    unguarded = play("foreseen:4", guard=False, honest=False)
    watch = Rounds()
    guarded = play("foreseen:4", guard=True, honest=False, watch=watch)
    assert unguarded > 1.5 * plain
    assert plain < guarded < 1.02 * plain
    assert sum(facts.held_back for facts in watch.facts) > 0.95 * TOKENS
    assert not any(record.accepted for facts in watch.facts for record in facts.records)
    (verdict,) = [facts.judged for facts in watch.facts if facts.judged]
    assert [(one.most, one.policies, one.speculates) for one in verdict] == [
        (TEXTS, ("foreseen:4",), False)
    ]


@pytest.mark.slow
def test_a_useful_drafter_keeps_its_gain_in_a_batch(play: Callable[..., float]) -> None:
    plain = play("plain", guard=False)
    unguarded = play("foreseen:4", guard=False)
    guarded = play("foreseen:4", guard=True)
    assert unguarded < plain / 1.3
    assert plain - guarded > 0.97 * (plain - unguarded)
