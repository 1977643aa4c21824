"""Longrope: texts are `generate()`'s up to the length at which the angles change, and end there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.small_lm.network import load_small_lm
from draftgym.policies.routers.rules import FixedPolicy
from tests.tiny import ONE_THREAD, tiny_eagle3, tiny_model, tiny_target

REACH = 24
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 6.0, 8.0, 10.0],
}
PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31, 5, 9, 14])


def longrope_model(kind: str = "phi3") -> Any:
    return tiny_model(
        kind,
        rope_parameters=dict(ROPE),
        original_max_position_embeddings=REACH,
        num_key_value_heads=4,
        num_hidden_layers=3,
    )


@pytest.fixture(params=["auto", "transformers"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Both passes."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def target(backend: Backend) -> Target:
    """A tiny model whose angles change behind `REACH` positions."""
    return wrap_model(longrope_model(), None, "tiny-longrope", ONE_THREAD, backend=backend)


@pytest.mark.parametrize("arm", ["plain", "ngram:8", "eagle3:5", "eagle3:3x6"])
def test_texts_up_to_the_change_are_those_of_generate(target: Target, arm: str) -> None:
    """To the very last position: no draft reaches beyond it, so no pass takes the other angles."""
    drafters: dict[str, Drafter] = {
        "eagle3": tiny_eagle3(target, tap_layers=(0, 1, 2)),
        "ngram": NgramDrafter(shortest=1),
    }
    new = REACH - len(PROMPT)
    written = longrope_model().generate(PROMPT[None], max_new_tokens=new, do_sample=False)
    decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
    assert decoder.generate(PROMPT, new).tokens == written[0, len(PROMPT) :].tolist()


def test_longer_texts_are_refused_with_the_limit(target: Target, backend: Backend) -> None:
    assert isinstance(target.decoder, Decoder) == (backend == "auto")
    assert target.context_limit == REACH
    assert target.decoder.draws_trees
    with pytest.raises(DraftgymError, match=f"{REACH} positions") as caught:
        SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, REACH - len(PROMPT) + 1)
    assert "--max-new-tokens" in caught.value.remedy


def test_a_note_says_why_texts_end_there(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    wrap_model(longrope_model(), None, "tiny-longrope", ONE_THREAD, backend=backend)
    assert f"end at {REACH} positions" in capsys.readouterr().err


def test_the_other_angles_are_others() -> None:
    """Else these tests would show nothing."""
    rotary = longrope_model().model.rotary_emb
    short, long = (rotary(torch.zeros(1), torch.arange(n)[None])[0] for n in (REACH, REACH + 1))
    assert not torch.allclose(short, long[:, :REACH])


def test_a_small_lm_reaches_as_far_as_its_target(tmp_path: Path, target: Target) -> None:
    longrope_model().save_pretrained(tmp_path)
    drafter = load_small_lm(tmp_path, target)
    decoder = SpeculativeDecoder(target, {"small": drafter}, FixedPolicy(Arm("small", 4)))
    room = REACH - len(PROMPT)
    assert len(decoder.generate(PROMPT, room).rounds) < room
    with pytest.raises(DraftgymError, match=f"beyond {REACH} positions"):
        load_small_lm(tmp_path, tiny_target())
