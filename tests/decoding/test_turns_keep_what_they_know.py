"""A further turn writes what a new session would write, and runs only what is new to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import Memory, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.session import Session
from draftgym.decoding.text.chat import Chat
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.policies.registry import make_policy
from tests.tiny import ONE_THREAD, tiny_drafters
from tests.tiny_text import byte_tokenizer, text_model

TEMPLATE = """\
{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</>{% endfor %}<a>"""
ARMS = ("eagle3:3", "eagle3:3x6", "dflash:4", "small:4", "ngram:4", "plain")


@pytest.fixture(scope="module")
def target() -> Target:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)


@pytest.fixture(scope="module")
def drafters(target: Target) -> dict[str, Drafter]:
    return tiny_drafters(target)


def decoder(target: Target, drafters: dict[str, Drafter], spec: str) -> SpeculativeDecoder:
    return SpeculativeDecoder(target, drafters, make_policy(spec, drafters, target))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spec", ["plain", "eagle3:3x6", f"random@{','.join(ARMS)}"])
def test_every_turn_is_what_a_new_session_writes(
    target: Target, drafters: dict[str, Drafter], spec: str, temperature: float
) -> None:
    chat = Chat(decoder(target, drafters, spec), system="Be odd.")
    fresh = decoder(target, {}, "plain")
    known = 0
    for number, text in enumerate(("Hello", "Why?", "And then?")):
        how: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": number}
        asked = [*chat.messages, {"role": "user", "content": text}]
        result = chat.say(text, **how)
        assert result.tokens == fresh.generate(asked, **how).tokens
        assert (result.reused > 0) == (number > 0)
        assert result.reused >= known and result.reused < result.prompt_tokens
        known = result.prompt_tokens if target.decode(result.tokens).isascii() else 0
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 3]


def test_the_common_beginning_is_not_run_again(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Session(target, torch.arange(4, 24), GreedyRule(), 8, drafters)
    first.prefill()
    for drafter in drafters.values():
        first.catch_up(drafter)
    later = Session(
        target, torch.cat([torch.arange(4, 20), torch.arange(40, 50)]), GreedyRule(), 8, drafters
    )
    assert later.go_on_from(first) == 16
    rows = []
    whole = target.compact.forward
    monkeypatch.setattr(
        target.compact,
        "forward",
        lambda batch, *a: rows.append(len(batch[0].tokens)) or whole(batch, *a),
    )
    later.prefill()
    assert rows == [10]
    for name, lag in (("eagle3", 2), ("dflash", 1), ("small", 1)):
        assert later.catch_up(drafters[name]) == len(later.tokens) - lag - (16 - lag)


def test_what_was_taken_over_equals_what_would_be_run(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    """Cache, taps, signals and every drafter's next proposal; also where nothing is shared."""
    first = Session(target, torch.arange(4, 24), GreedyRule(), 8, drafters)
    first.prefill()
    for drafter in drafters.values():
        first.catch_up(drafter)
    for shared in (0, 1, 2, 19, 20):
        prompt = torch.cat([torch.arange(4, 4 + shared), torch.arange(40, 50)])
        kept, fresh = (Session(target, prompt, GreedyRule(), 8, drafters) for _ in range(2))
        assert kept.go_on_from(first) == shared
        kept.prefill()
        fresh.prefill()
        assert kept.tokens.tolist() == fresh.tokens.tolist()
        torch.testing.assert_close(kept.last_logits, fresh.last_logits, rtol=1e-4, atol=1e-4)
        end, layers = len(prompt), kept.tap_layers
        torch.testing.assert_close(
            kept.features(layers, 0, end), fresh.features(layers, 0, end), rtol=1e-4, atol=1e-4
        )
        for drafter in drafters.values():
            shape = parse_arm(f"{drafter.name}:4").shape
            proposals = []
            for session in (kept, fresh):
                session.catch_up(drafter)
                proposals.append(drafter.propose(session.state_of(drafter), session, shape))
            assert proposals[0].tokens.tolist() == proposals[1].tokens.tolist()


def test_a_prompt_that_was_there_before_runs_its_last_token(target: Target) -> None:
    memory, plain = Memory(), decoder(target, {}, "plain")
    ids = torch.arange(4, 24)
    first = plain.generate(ids, 6, memory=memory)
    again = plain.generate(ids, 6, memory=memory)
    assert again.tokens == first.tokens and (first.reused, again.reused) == (0, 19)


def test_a_refused_turn_leaves_the_talk_as_it_was(target: Target) -> None:
    chat = Chat(decoder(target, {}, "plain"))
    chat.say("Hello", max_new_tokens=6)
    before = list(chat.messages)
    with pytest.raises(DraftgymError):
        chat.say("x" * 300, max_new_tokens=6)
    assert chat.messages == before
    assert chat.say("Why?", max_new_tokens=6).reused > 0


def test_an_answer_ends_before_the_stop_string(target: Target) -> None:
    plain = decoder(target, {}, "plain")
    whole = target.decode(plain.generate([{"role": "user", "content": "Hello"}], 24).tokens)
    stop = whole[6:9]
    chat = Chat(plain)
    result = chat.say("Hello", Stops(strings=(stop,)), max_new_tokens=24)
    assert result.stop_reason == stop and result.finish_reason == "stop"
    assert chat.messages[-1]["content"] == whole[: whole.index(stop)]
