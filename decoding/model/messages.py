"""Messages of a chat: checked, written by the model's chat template, and read as token ids.

Messages are dicts of the shape that OpenAI's API and transformers share: a `role` (`ROLES`), the
`content`, and where an assistant called tools its `tool_calls`. A lone text is one user message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode
from draftgym.decoding.model.text import one_line

ROLES = ("system", "developer", "user", "assistant", "tool")
INSTRUCTING = ("system", "developer")
MEND = (
    "mend chat_template (in chat_template.jinja or tokenizer_config.json), or delete it to write "
    "without one"
)
HOW_WRITTEN = ("add_generation_prompt", "continue_final_message")
WITHOUT_MEANING = (
    *("tokenize", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("padding", "truncation", "max_length", "tokenizer_kwargs", "conversation", "messages"),
)
"""Arguments of transformers' `apply_chat_template` that are no options of a template."""

Message = Mapping[str, Any]


def encode_messages(
    tokenizer: Any, prompt: str | Sequence[Message], name: str, options: Mapping[str, Any]
) -> Tensor:
    """Token ids `[n]` of a text or of messages, in the chat template where there is one.

    Where the last message is the assistant's, its text is left open for the model to go on.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: One user's text, or messages.
        name: What the user called the target.
        options: Of the template: `tools`, `documents`, and any keyword that it reads. Also
            `chat_template` (another template than the model's), `add_generation_prompt` and
            `continue_final_message`.

    Raises:
        DraftgymError: Messages or options that the template cannot write, a template that fails or
            leaves a message out, or there are no tokens.
    """
    messages = checked_messages(prompt)
    if getattr(tokenizer, "chat_template", None) or options.get("chat_template"):
        _check_options(tokenizer, options, name)
        said = "the prompt" if isinstance(prompt, str) else None
        return _tokens(tokenizer, in_template(tokenizer, messages, name, options, said), name)
    if len(messages) > 1 or messages[0]["role"] != "user":
        raise DraftgymError(
            f"target {name!r} has no chat template, so it takes one user's text and no other "
            "messages (it may be a base model)",
            "give one text, name a target that was trained to chat, or pass chat_template=...",
        )
    if options:
        raise DraftgymError(
            f"target {name!r} has no chat template, so there is nothing that reads "
            f"{', '.join(options)}",
            "leave the options out, or name a target that was trained to chat",
        )
    return _tokens(tokenizer, messages[0]["content"], name, special=True)


def checked_messages(prompt: str | Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in transformers' shape, contents as text; of a text its one user message.

    Raises:
        DraftgymError: There is none, or one is no message: unknown role, no content, an empty last
            message of the assistant.
    """
    if isinstance(prompt, str):
        check_unicode(prompt, "the prompt")
        return [{"role": "user", "content": prompt}]
    if not prompt:
        raise DraftgymError("there is no message", 'give one: {"role": "user", "content": "Hi!"}')
    messages = [_checked(one, index) for index, one in enumerate(prompt, start=1)]
    last = messages[-1]
    if last["role"] == "assistant" and (
        last.get("tool_calls") or not str(last.get("content") or "").strip()
    ):
        lacks = "calls tools" if last.get("tool_calls") else "is empty"
        raise DraftgymError(
            f"the last message is the assistant's and {lacks}: there is nothing to go on with",
            "append the tool's result (role 'tool') or the user's next message, or leave it out",
        )
    return messages


def in_template(
    tokenizer: Any,
    messages: Sequence[Message],
    name: str,
    options: Mapping[str, Any],
    said: str | None = None,
) -> str:
    """What the chat template writes of messages.

    Args:
        tokenizer: The tokenizer.
        messages: As `checked_messages` gives them.
        name: What the user called the target.
        options: As `encode_messages`.
        said: What errors call a message that is left out; by default its number and role.

    Raises:
        DraftgymError: The template fails, or it leaves a message out.
    """
    text = _write(tokenizer, messages, name, options)
    for index, message in enumerate(messages):
        content = message.get("content")
        # Templates may trim or escape; one that writes the same for another text has left it out.
        # Beside tool calls many leave out what an assistant says.
        if not content or message.get("tool_calls") or content.strip() in text:
            continue
        other = [*messages]
        other[index] = {**message, "content": f"{content} x"}
        if text == _write(tokenizer, other, name, options):
            what = said or f"message {index + 1} ({message['role']})"
            raise DraftgymError(
                f"the chat template of target {name!r} leaves {what} out",
                f"it must write messages[...]['content'] of the role {message['role']!r}; {MEND}",
            )
    return text


def _write(
    tokenizer: Any, messages: Sequence[Message], name: str, options: Mapping[str, Any]
) -> str:
    try:
        return _apply(tokenizer, messages, options)
    except Exception as error:  # the template's own code raises whatever it likes
        if messages[0]["role"] in INSTRUCTING and _works(tokenizer, messages[1:], options):
            raise DraftgymError(
                f"the chat template of target {name!r} takes no {messages[0]['role']} message: "
                f"{one_line(error)}",
                "leave it out, and put its text at the beginning of the first user message",
            ) from error
        order = "" if len(messages) == 1 else "order the messages as it says; otherwise "
        raise DraftgymError(
            f"the chat template of target {name!r} fails: {one_line(error)}", order + MEND
        ) from error


def _works(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> bool:
    try:
        return bool(messages) and bool(_apply(tokenizer, messages, options))
    except Exception:
        return False


def _apply(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    go_on = options.get("continue_final_message", messages[-1]["role"] == "assistant")
    how = {"continue_final_message": go_on, "add_generation_prompt": not go_on, **options}
    return str(tokenizer.apply_chat_template([*messages], tokenize=False, **how))


def _tokens(tokenizer: Any, text: str, name: str, special: bool = False) -> Tensor:
    try:
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        tokens = torch.tensor(ids, dtype=torch.long)
    except Exception as error:  # also of text that is no Unicode, such as lone surrogates
        raise DraftgymError(
            f"the tokenizer of target {name!r} cannot read the prompt: {one_line(error)}",
            "write it as ordinary Unicode text",
        ) from error
    if not len(tokens):
        raise DraftgymError(
            f"the tokenizer of target {name!r} makes no tokens of the prompt",
            "it does not belong to this prompt's writing; name another target, or give token ids",
        )
    return tokens


def _check_options(tokenizer: Any, options: Mapping[str, Any], name: str) -> None:
    """Raises `DraftgymError` for options that would change nothing: the template reads others."""
    if not options:
        return
    wrong = [key for key in options if key in WITHOUT_MEANING]
    if wrong:
        raise DraftgymError(
            f"{', '.join(wrong)} is no option of a chat template",
            "prompts are always read as one row of token ids; leave it out",
        )
    try:
        source = str(
            tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))
        )
    except Exception:
        return  # writing will say what is wrong with it
    asked = [key for key in options if key not in (*HOW_WRITTEN, "chat_template")]
    unread = [key for key in asked if not re.search(rf"\b{re.escape(key)}\b", source)]
    if unread:
        raise DraftgymError(
            f"the chat template of target {name!r} does not read {', '.join(unread)}",
            "check the spelling, or leave it out: it would change nothing",
        )


def _checked(message: Any, number: int) -> dict[str, Any]:
    """A message with its content as text and its tool calls as transformers' templates read them.

    Args:
        message: What was given.
        number: Its place, from 1, for errors.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DraftgymError(
            f"message {number} is no message: {str(message)[:80]!r}",
            'write it as a dict with role and content, as in {"role": "user", "content": "Hi!"}',
        )
    role, where = message["role"], f"message {number} ({message['role']})"
    if role not in ROLES:
        raise DraftgymError(f"{where} has an unknown role", f"choose from {', '.join(ROLES)}")
    checked = {key: value for key, value in message.items() if value is not None}
    if calls := checked.get("tool_calls"):
        checked["tool_calls"] = [_tool_call(call, where) for call in calls]
        if "content" not in checked:
            return checked
    checked["content"] = _text_of(checked.get("content"), where)
    if role not in ("assistant", "tool") and not checked["content"].strip():
        raise DraftgymError(f"{where} has no content", "give it some text, or leave it out")
    return checked


def _text_of(content: Any, where: str) -> str:
    """A content as text: a string, or the texts of its parts."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise DraftgymError(
                    f"{where} has a part of type {kind!r}, and this target reads text alone",
                    'give parts of the form {"type": "text", "text": "..."}, or a string',
                )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DraftgymError(f"{where} has no content", 'give it text: "content": "..."')
    check_unicode(content, where)
    return content


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A call whose arguments are an object: OpenAI's API has them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DraftgymError(
            f"{where} has a tool call without a function's name",
            'write it as {"type": "function", "function": {"name": ..., "arguments": {...}}}',
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DraftgymError(
                f"{where} calls {function['name']!r} with arguments that are no JSON",
                "give them as an object, or as its JSON text",
            ) from error
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}
