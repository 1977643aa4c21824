"""Who does not belong among the devices is refused with a reason, or writes the target's text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from draftgym.decoding.model.target import Target
from draftgym.serving.edge.lab import strangers
from draftgym.serving.edge.protocol import vocabulary_fingerprint
from tests.serving.edge.edges import LENGTH, PATIENT, plain, serving, text

SAID = {
    "garbage": "INVALID_ARGUMENT",
    "oversize": "RESOURCE_EXHAUSTED",
    "tokenizer": "FAILED_PRECONDITION",
    "drafter": "wrote",
    "slow": "wrote",
    "twins": "ABORTED.*the second goes on; another text: ALREADY_EXISTS",
}


@pytest.mark.parametrize("name", strangers.STRANGERS)
def test_every_stranger_hears_the_reason(
    target: Target, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "SLOWLY", 0.01)
    asked = text(0)
    with serving(target, "fixed", 2, replace(PATIENT, message_bytes=2**16)) as edge:
        fingerprint = vocabulary_fingerprint(None, target.vocab_size)
        facts = strangers.Facts(edge.address, fingerprint, list(asked.prompt), LENGTH, 0.0, 0)
        found = strangers.STRANGERS[name](facts)
    assert re.search(SAID[name], found["said"]), found["said"]
    if "text" in found:
        tokens = found["text"]["tokens"]
        assert tokens and tokens == plain(target, asked)[: len(tokens)]
