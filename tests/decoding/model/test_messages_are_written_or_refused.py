"""Messages of a chat reach the model as its template writes them, or an error says why not."""

from __future__ import annotations

from typing import Any

import pytest

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, wrap_model
from tests.tiny import ONE_THREAD
from tests.tiny_text import byte_tokenizer, text_model

CHATTY = """\
{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}
{%- for m in messages %}<{{ m.role }}>{{ m.content | trim }}
{%- for call in m.tool_calls or [] %}[{{ call.function.name }}
{%- for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}]
{%- endfor %}</>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>{% endif %}{% endif %}"""
STRICT = """\
{%- for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}
{{- m.content }}{% endfor %}"""
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}


@pytest.fixture(scope="module")
def model() -> Any:
    return text_model()


def with_template(model: Any, template: str | None) -> Target:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return wrap_model(model, tokenizer, "chatty", ONE_THREAD)


def written(target: Target, messages: Any, **options: Any) -> str:
    return target.decode(target.encode(messages, **options).tolist())


def refused(target: Target, messages: Any, **options: Any) -> DraftgymError:
    with pytest.raises(DraftgymError) as caught:
        target.encode(messages, **options)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("Hi!", "<user>Hi!</><assistant>"),
        ([USER], "<user>Hi!</><assistant>"),
        ([SYSTEM, USER], "<system>Be brief.</><user>Hi!</><assistant>"),
        ([USER, ANSWER, USER], "<user>Hi!</><assistant>Hello</><user>Hi!</><assistant>"),
        ([USER, ANSWER], "<user>Hi!</><assistant>Hello"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}],
            "<user>ab</><assistant>",
        ),
        (
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "3", "tool_call_id": "x"},
            ],
            "<user>Hi!</><assistant>[sum a=1]</><tool>3</><assistant>",
        ),
    ],
)
def test_the_template_writes_every_message(model: Any, messages: Any, text: str) -> None:
    assert written(with_template(model, CHATTY), messages) == text


def test_options_reach_the_template(model: Any) -> None:
    target = with_template(model, CHATTY)
    assert written(target, [USER], enable_thinking=True).endswith("<assistant><think>")
    tool = {"type": "function", "function": {"name": "sum", "parameters": {}}}
    assert written(target, "Hi!", tools=[tool]).startswith('<tools>[{"type": "function"')
    assert written(target, [USER, ANSWER], continue_final_message=False).endswith("</><assistant>")
    assert written(target, "Hi!", chat_template="{{ messages[0].content }}?") == "Hi!?"


def test_ids_are_those_of_transformers(model: Any) -> None:
    target = with_template(model, CHATTY)
    ids = target.tokenizer.apply_chat_template(
        [SYSTEM, USER, ANSWER, USER], add_generation_prompt=True, return_dict=False
    )
    assert target.encode([SYSTEM, USER, ANSWER, USER]).tolist() == ids


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "wizard", "content": "Hi!"}], "message 1 .wizard. has an unknown role"),
        ([USER, {"role": "user"}], "message 2 .user. has no content"),
        ([{"role": "user", "content": "  "}], "no content"),
        ([{"role": "system", "content": ""}, USER], "message 1 .system. has no content"),
        ([USER, {"role": "assistant", "content": ""}], "is empty"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], "calls tools"),
        (["Hi!", USER], "message 1 is no message"),
        ([{"content": "Hi!"}], "message 1 is no message"),
        ([], "no message"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part of type 'image'"),
        ([{"role": "user", "content": "\ud800"}], "half a character"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}, USER], "function's name"),
    ],
)
def test_what_is_no_chat_is_refused(model: Any, messages: Any, problem: str) -> None:
    with pytest.raises(DraftgymError, match=problem) as caught:
        with_template(model, CHATTY).encode(messages)
    assert caught.value.remedy


def test_arguments_that_are_no_json_are_refused(model: Any) -> None:
    call = {"function": {"name": "sum", "arguments": "a=1"}}
    turns = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    assert "no JSON" in refused(with_template(model, CHATTY), turns).problem


def test_a_template_that_takes_no_system_message_says_so(model: Any) -> None:
    error = refused(with_template(model, STRICT), [SYSTEM, USER])
    assert "takes no system message: System role not supported" in error.problem
    assert "first user message" in error.remedy
    error = refused(with_template(model, STRICT), [USER, USER])
    assert "roles must alternate" in error.problem and "order" in error.remedy


def test_a_message_that_the_template_leaves_out_is_named(model: Any) -> None:
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    error = refused(with_template(model, users), [SYSTEM, USER])
    assert "leaves message 1 (system) out" in error.problem


@pytest.mark.parametrize("option", ["enable_thinkng", "tool", "tokenize", "padding"])
def test_options_that_would_change_nothing_are_refused(model: Any, option: str) -> None:
    assert option in refused(with_template(model, CHATTY), "Hi!", **{option: True}).problem


def test_without_a_template_one_text_is_all(model: Any) -> None:
    target = with_template(model, None)
    assert written(target, [USER]) == written(target, "Hi!") == "Hi!"
    for messages in ([SYSTEM, USER], [ANSWER]):
        error = refused(target, messages)
        assert "no chat template" in error.problem and "chat_template=" in error.remedy
    assert "enable_thinking" in refused(target, "Hi!", enable_thinking=True).problem
    given = target.encode([SYSTEM, USER], chat_template=CHATTY)
    assert given.tolist() == with_template(model, CHATTY).encode([SYSTEM, USER]).tolist()


def test_a_decoder_writes_behind_messages(model: Any) -> None:
    decoder = SpeculativeDecoder(with_template(model, CHATTY), {}, PlainPolicy())
    options = {"enable_thinking": True}
    ids = decoder.target.encode([SYSTEM, USER], **options)
    asked = decoder.generate([SYSTEM, USER], 8, template_options=options)
    assert asked.tokens == decoder.generate(ids, 8).tokens
    assert asked.prompt_tokens == len(ids) > len(decoder.target.encode([SYSTEM, USER]))
