"""What is written about images is what transformers' `generate()` writes, whatever drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.text.chat import Chat
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.policies.registry import make_policy
from tests.tiny import tiny_eagle3
from tests.tiny_images import picture

ARMS = ("plain", "ngram:4", "eagle3:3", "eagle3:3x6")
LENGTH = 16
SHOWN = ([picture(1)], [picture(1), picture(2, 16, 40)])
ASKED = "What is it?"


def decoder_of(target: Target, arm: str) -> SpeculativeDecoder:
    """A decoder with one arm; EAGLE-3 is random, but for a copy of the target's opinion."""
    made = (tiny_eagle3(target), NgramDrafter(shortest=1, never=target.image_tokens))
    drafters = {drafter.name: drafter for drafter in made}
    return SpeculativeDecoder(target, drafters, make_policy(arm, drafters, target))


def generated(target: Target, messages: Sequence[Any], length: int = LENGTH) -> list[int]:
    """What transformers writes of the processor's own preparation."""
    assert target.processor is not None
    given = target.processor.inner.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    model = target.decoder.parts.model  # type: ignore[attr-defined]
    out = model.generate(**given, max_new_tokens=length, do_sample=False)
    new: list[int] = out[0, given["input_ids"].shape[1] :].tolist()
    return new


def message(text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": one} for one in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


class Told(Drafter):
    """Knows the text, and gets every fourth token wrong: most drafts are accepted in part."""

    name, max_draft_length, fingerprint = "told", 3, "told"

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def new_state(self, capacity: int) -> None:
        """Nothing."""

    def catch_up(self, state: None, context: DraftContext, full: bool = False) -> int:
        """Nothing."""
        return 0

    def propose(self, state: None, context: Any, shape: DraftShape) -> Proposal:
        """What comes next."""
        written = len(context.new_tokens)
        places = range(written, min(written + shape.depth, len(self.text)))
        chain = torch.tensor([1 if i % 4 == 2 else self.text[i] for i in places], dtype=torch.long)
        return Proposal.chain(chain, torch.zeros(len(chain)))


@pytest.mark.parametrize("images", SHOWN, ids=("one", "two"))
def test_greedy_text_is_that_of_generate(target: Target, images: list[Image.Image]) -> None:
    expected = generated(target, [message(ASKED, images)])
    assert len(set(expected)) > 3  # a text that could be anybody's would prove little
    for arm in ARMS:
        result = decoder_of(target, arm).generate(ASKED, LENGTH, images=images)
        assert result.tokens == expected, arm
    told: dict[str, Drafter] = {"told": Told(expected)}
    decoder = SpeculativeDecoder(target, told, make_policy("told:3", told, target))
    result = decoder.generate(ASKED, LENGTH, images=images)
    assert result.tokens == expected
    assert any(0 < one.record.accepted < len(one.record.drafted) for one in result.rounds)


def test_another_image_is_another_text(target: Target) -> None:
    if "fast_vlm" in target.name:
        pytest.skip("behind random convolutions all images look alike")
    plain = decoder_of(target, "plain")
    texts = [plain.generate(ASKED, LENGTH, images=[picture(i)]).tokens for i in (1, 9)]
    assert texts[0] != texts[1]


def test_text_alone_is_that_of_generate(target: Target) -> None:
    expected = generated(target, [message(ASKED, [])])
    for arm in ARMS:
        assert decoder_of(target, arm).generate(ASKED, LENGTH).tokens == expected, arm


def test_images_stand_where_their_message_places_them(target: Target) -> None:
    parts = [
        {"type": "text", "text": "Between "},
        {"type": "image", "image": picture(3)},
        {"type": "text", "text": " and "},
        {"type": "image", "image": picture(4)},
        {"type": "text", "text": ", which?"},
    ]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    seen = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, said[1]]
    assert decoder_of(target, "ngram:4").generate(said, LENGTH).tokens == generated(target, seen)


def test_sampled_text_is_one_for_every_arm(target: Target) -> None:
    texts = [
        decoder_of(target, arm).generate(
            ASKED, LENGTH, images=[picture(1)], temperature=0.8, seed=5
        )
        for arm in ARMS
    ]
    assert len({tuple(text.tokens) for text in texts}) == 1


@pytest.mark.parametrize("arm", ARMS[:3])
def test_a_talk_reads_its_images_once(target: Target, arm: str) -> None:
    chat, images = Chat(decoder_of(target, arm)), [picture(5)]
    answers = [chat.say(ASKED, images=images, max_new_tokens=4)]
    answers.append(chat.say("Why?", max_new_tokens=4))
    said = [message(ASKED, images)]
    assert answers[0].tokens == generated(target, said, 4)
    written = target.decode(answers[0].tokens)
    said += [{"role": "assistant", "content": [{"type": "text", "text": written}]}]
    assert answers[1].tokens == generated(target, [*said, message("Why?", [])], 4)
    assert answers[1].reused > answers[0].prompt_tokens - 3

    # With another image the talk is another one: nothing of the first is known.
    answers.append(chat.say("This?", images=[picture(6)], max_new_tokens=4))
    assert answers[2].reused == 0


def test_two_sequences_at_once_keep_their_own_positions(target: Target) -> None:
    """Qwen2.5-VL keeps the offset of text behind images in the model: here it is the cache's."""
    plain = PlainPolicy.arms[0]
    sessions = []
    for images in SHOWN:
        ids, inputs = target.encode_with_images(ASKED, images)
        rule = make_rule(None, 0.0, 0, target.vocab_size)
        sessions.append(Session(target, ids, rule, LENGTH, {}, inputs=inputs))
        sessions[-1].prefill()
    copy = Session(
        *(target, sessions[1].tokens[: sessions[1].prompt_length], sessions[1].rule, LENGTH, {})
    )
    copy.start_like(sessions[1])
    sessions.append(copy)
    while not sessions[0].finished:
        play_rounds(sessions, [plain] * len(sessions))
    for session, images in zip(sessions, (*SHOWN, SHOWN[1]), strict=True):
        assert session.new_tokens == generated(target, [message(ASKED, images)])


def test_what_belongs_to_images_goes_where_and_in_what_the_target_computes(
    target: Target,
) -> None:
    _, inputs = target.encode_with_images(ASKED, SHOWN[1])
    assert inputs is not None
    assert {value.device for value in inputs.values()} == {target.device}
    floats = {value.dtype for value in inputs.values() if value.is_floating_point()}
    assert floats == {target.decoder.dtype}
    assert all(value.dtype == torch.int64 for value in inputs.values() if value.dtype not in floats)
