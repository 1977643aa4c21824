"""The shipped drafters and router write the embedded target's own text, in float32."""

from __future__ import annotations

import pytest

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.policies.registry import make_policy, shipped_router
from draftgym.rollouts.decode.interleaved import DecodeSettings, write, write_together

PROMPT = "List three fruits as a JSON array, then say which one is the sweetest."
NEEDED = ("eagle3", "dflash", "small", "ngram", "suffix")


@pytest.mark.real_model
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_shipped_policies_write_the_targets_text(
    real: tuple[Target, dict[str, Drafter]], temperature: float
) -> None:
    target, drafters = real
    router = shipped_router(target)
    assert set(drafters) >= set(NEEDED) and router is not None
    settings = DecodeSettings(12, temperature, seed=5)
    ids = target.encode(PROMPT)
    expected = write(SpeculativeDecoder(target, {}, PlainPolicy()), ids, settings).tokens
    specs = [*NEEDED, "random", "entropy:1.5", str(router)]
    policies = {spec: make_policy(spec, drafters, target) for spec in specs}
    texts = write_together(target, drafters, policies, ids, settings)
    assert texts == dict.fromkeys(specs, expected)
    deployed = write(SpeculativeDecoder(target, drafters, policies[str(router)]), ids, settings)
    assert deployed.tokens == expected


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["eagle3", "dflash", "small"])
def test_a_shipped_checkpoint_drafts_what_the_target_says(
    real: tuple[Target, dict[str, Drafter]], name: str
) -> None:
    """A wrong tap or an off-by-one leaves texts right and acceptance near zero."""
    target, drafters = real
    decoder = SpeculativeDecoder(target, drafters, make_policy(name, drafters, target))
    assert decoder.generate(PROMPT, 32).acceptance_length > 1.5
