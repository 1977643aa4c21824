"""Promise: a target over two devices writes its text, and every tensor is where it is used."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import accelerate
import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import wrap_model
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.policies.routers.rules import FixedPolicy
from tests.device.places import without
from tests.pretend_device import NAME, pretending
from tests.tiny import ONE_THREAD, tiny_dflash, tiny_eagle3, tiny_model, tiny_target

PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31])
NEW = 12
PLACES = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
PLACES |= {f"model.layers.{i}": i // 3 for i in range(6)}


@pytest.mark.slow
@without
def test_text_and_trees_are_those_of_one() -> None:
    plain = SpeculativeDecoder(tiny_target(), {}, FixedPolicy(parse_arm("plain")))
    text = plain.generate(PROMPT, NEW)
    with pretending(), redirect_stderr(io.StringIO()):
        model = tiny_model()
        accelerate.dispatch_model(model, {key: f"{NAME}:{i}" for key, i in PLACES.items()})
        target = wrap_model(model, None, "two", ONE_THREAD)
        assert target.precision.spread == f"layers: 3 on {NAME}:0, 3 on {NAME}:1"
        assert target.precision.device == str(target.device) == f"{NAME}:0"
        assert target.decoder.draws_trees
        head, block = tiny_eagle3(target), tiny_dflash(target)
        drafters: dict[str, Drafter] = {"eagle3": head, "dflash": block, "ngram": NgramDrafter()}
        for arm in ("plain", "ngram:4", "eagle3:3", "eagle3:3x6", "dflash:4x8"):
            decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
            assert decoder.generate(PROMPT, NEW).tokens == text.tokens, arm


@without
def test_a_model_that_lies_on_a_device_already_is_read_there() -> None:
    with pretending(), redirect_stderr(io.StringIO()) as notes:
        model = tiny_model("llama").to(f"{NAME}:1")
        wrap_model(model, None, "there", ONE_THREAD)
    assert not notes.getvalue()
