"""What a text's drafts came to is set against what of them was judged, by drafter."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.policies.serving.memory import DECAYS, EACH, FIRST, AcceptanceMemory, acceptance_names


def numbers(memory: AcceptanceMemory, text: int = 0) -> dict[str, float]:
    names = acceptance_names(["a", "b"])
    return dict(zip(names, memory.numbers()[text].tolist(), strict=True))


def update(memory: AcceptanceMemory, committed: int, depth: int, drafter: int | None) -> None:
    verified = np.array([[drafter == 0, drafter == 1]])
    memory.update(np.array([committed]), np.array([[depth, depth]]), verified)


def test_accepted_tokens_are_set_against_judged_ones() -> None:
    memory = AcceptanceMemory(2)
    update(memory, committed=3, depth=5, drafter=0)  # two accepted, a third one judged
    for span, decay in zip(("lately", "overall"), DECAYS, strict=True):
        share = (decay * FIRST[0] + 2) / (decay * FIRST[1] + 3)
        assert numbers(memory)[f"accepted_{span}_a"] == pytest.approx(share)
    update(memory, committed=6, depth=5, drafter=0)  # all of them, and no other was judged
    assert numbers(memory)["last_whole_a"] == 1
    assert numbers(memory)["last_accepted_a"] == 5 / 4


def test_only_whose_draft_was_verified_learns_of_it() -> None:
    memory = AcceptanceMemory(2)
    before = numbers(memory)
    for committed, depth, drafter in ((1, 3, None), (1, 0, 1), (4, 3, 0)):
        update(memory, committed, depth, drafter)
    after = numbers(memory)
    assert {name for name in after if after[name] != before[name]} <= {f"{it}_a" for it in EACH}


def test_texts_are_remembered_apart_and_forgotten_apart() -> None:
    memory, alone = AcceptanceMemory(2, 3), AcceptanceMemory(2)
    fresh = numbers(memory)
    rng = np.random.default_rng(0)
    for _ in range(20):
        committed, depth = rng.integers(1, 5, 3), np.full((3, 2), 4)
        verified = rng.uniform(size=(3, 2)) < 0.5
        memory.update(committed, depth, verified)
        alone.update(committed[1:2], depth[1:2], verified[1:2])
    assert numbers(memory, 1) == numbers(alone)
    assert all(0 <= value < 4 for value in numbers(memory, 1).values())
    memory.forget(np.array([1]))
    assert numbers(memory, 1) == fresh != numbers(memory, 0)
