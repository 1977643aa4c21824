"""A session that was rolled back is as if it had never written more, whatever it did before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from tests.tiny import tiny_drafters, tiny_target

TARGET = tiny_target(eos_token_id=11)
DRAFTERS = tiny_drafters(TARGET)
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])
ARMS = [*map(parse_arm, ("plain", "ngram:16", "eagle3:3", "eagle3:3x9", "dflash:4", "small:3"))]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

ROUND = st.sampled_from(ARMS)
FORGET = st.integers(1, 20)
"""How many tokens to forget, prompt tokens too, as far as they go."""


def new_session(target: Target, temperature: float) -> Session:
    """A prefilled session."""
    rule = make_rule(None, temperature, 3, target.vocab_size)
    session = Session(target, PROMPT, rule, 12, DRAFTERS)
    session.prefill()
    return session


def check_what_it_knows(session: Session) -> None:
    """Compares what the newest token was chosen from with a pass over the text."""
    rows = Session(TARGET, session.tokens, session.rule, 1, {})
    rows.prefill()
    rows.roll_back(len(session.tokens))
    torch.testing.assert_close(session.last_logits, rows.last_logits, **CLOSE)
    torch.testing.assert_close(session.last_hidden, rows.last_hidden, **CLOSE)
    assert session.confidence().isfinite().all()


@pytest.mark.slow
@given(st.lists(ROUND | FORGET, min_size=1, max_size=5), st.sampled_from([0.0, 1.0]))
def test_rolling_back_changes_nothing_that_comes_after(
    steps: list[Arm | int], temperature: float
) -> None:
    session = new_session(TARGET, temperature)
    while not session.finished:
        play_round(session, ARMS[0])
    expected, reason = session.tokens.tolist(), session.finish_reason
    session = new_session(TARGET, temperature)
    for step in steps:
        if isinstance(step, int):
            session.roll_back(max(2, len(session.tokens) - step))
            check_what_it_knows(session)
            # Inside the prompt a round goes on with the target's own words; begin it again.
            if len(session.tokens) <= len(PROMPT):
                session = new_session(TARGET, temperature)
        elif not session.finished:
            record = play_round(session, step)
            assert record.caught_up >= 0
        assert session.tokens.tolist() == expected[: len(session.tokens)]
        assert session.finished == (len(session.tokens) == len(expected))
    while not session.finished:
        play_round(session, ARMS[0])
    assert session.finish_reason == reason


@given(st.lists(st.integers(2, 24), min_size=1, max_size=4), st.sampled_from([*DRAFTERS]))
def test_counts_of_missed_positions_are_never_negative(lengths: list[int], name: str) -> None:
    """A state that is ahead of its text forgets; what it proposes is a fresh state's proposal."""
    session, drafter = new_session(TARGET, 0.0), DRAFTERS[name]
    while not session.finished:
        play_round(session, ARMS[0])
    state = drafter.new_state(session.capacity)
    for length in lengths:
        session.roll_back(min(length, len(session.tokens)))
        assert drafter.catch_up(state, session) >= 0
        fresh = session.state_of(drafter)
        drafter.catch_up(fresh, session)
        drawn = [drafter.propose(one, session, ARMS[2].shape) for one in (state, fresh)]
        assert drawn[0].tokens.tolist() == drawn[1].tokens.tolist()
