"""Promise: the host waits for the device as seldom as it can.

A chain's round reads the verdict. A tree is drawn on the host: a block drafter's costs one read, an
autoregressive one's a read for each level.
"""

from __future__ import annotations

import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.observers.observation import RouterObserver
from draftgym.decoding.round import play_round, play_rounds
from tests.device.places import PRETENDED, reads_of, there, without
from tests.device.test_texts_are_those_of_the_processor import PROMPT, session_of

READS = {
    "plain": 1,
    "ngram:4": 1,
    "eagle3:3": 1,
    "dflash:4": 1,
    "small:3": 1,
    "dflash:4x8": 2,
    "eagle3:3x30": 4,
    "small:3x30": 4,
}


@without
@pytest.mark.parametrize("arm", READS)
def test_a_round_reads_what_it_must(arm: str) -> None:
    with there(PRETENDED) as reads:
        session = session_of(PRETENDED)
        play_round(session, parse_arm(arm))
        assert reads_of(reads, lambda: play_round(session, parse_arm(arm))) == READS[arm]


@without
def test_texts_of_one_pass_share_the_read() -> None:
    with there(PRETENDED) as reads:
        sessions = [session_of(PRETENDED, PROMPT[: 6 + i]) for i in range(3)]
        arms = [parse_arm("eagle3:3")] * 3
        assert reads_of(reads, lambda: play_rounds(sessions, arms)) == 1


@without
def test_an_observation_is_one_read_more() -> None:
    with there(PRETENDED) as reads:
        session, observer = session_of(PRETENDED), RouterObserver([parse_arm("plain")])
        assert reads_of(reads, lambda: observer.observe(session)) == 1


@without
def test_a_misplaced_tensor_is_found() -> None:
    with there(PRETENDED):
        far = torch.ones(3, device=PRETENDED)
        with pytest.raises(RuntimeError, match="one device"):
            far + torch.ones(3)
