"""Messages of a chat: checked, written by the model's chat template, and read as token ids.

Messages are dicts of the shape that OpenAI's API and transformers share: a `role` (`ROLES`), the
`content`, and where an assistant called tools its `tool_calls`. A lone text is one user message.
For a model that sees, contents are lists of parts, texts and images; for others they are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode
from draftgym.decoding.model.prompts.images import IMAGE_PARTS, image_of, open_image
from draftgym.decoding.model.prompts.text import one_line

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


@dataclass(frozen=True)
class Written:
    """Messages as one text.

    Attributes:
        text: What the model reads, images as their marks.
        templated: Whether a chat template wrote it, with all special tokens.
        messages: The messages, checked.
    """

    text: str
    templated: bool
    messages: list[dict[str, Any]]


def encode_messages(
    tokenizer: Any, prompt: str | Sequence[Message], name: str, options: Mapping[str, Any]
) -> Tensor:
    """Token ids `[n]` of a text or of messages, in the chat template where there is one.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: One user's text, or messages.
        name: What the user called the target.
        options: Of the template; see `write_messages`.

    Raises:
        DraftgymError: As `write_messages`, or there are no tokens.
    """
    written = write_messages(tokenizer, prompt, name, options)
    return encode_text(tokenizer, written.text, name, special=not written.templated)


def write_messages(
    writer: Any,
    prompt: str | Sequence[Message],
    name: str,
    options: Mapping[str, Any],
    image_mark: str | None = None,
) -> Written:
    """A text or messages as the model reads them, in the chat template where there is one.

    Where the last message is the assistant's, its text is left open for the model to go on.

    Args:
        writer: A transformers tokenizer, or the processor of a model that sees.
        prompt: One user's text, or messages.
        name: What the user called the target.
        options: Of the template: `tools`, `documents`, and any keyword that it reads. Also
            `chat_template` (another template than the model's), `add_generation_prompt` and
            `continue_final_message`.
        image_mark: What stands for an image in texts without a template; None where the model reads
            text alone.

    Raises:
        DraftgymError: Messages or options that the template cannot write, or a template that fails
            or leaves a message out.
    """
    messages = checked_messages(prompt, sees=image_mark is not None)
    if getattr(writer, "chat_template", None) or options.get("chat_template"):
        _check_options(writer, options, name)
        said = "the prompt" if isinstance(prompt, str) else None
        return Written(in_template(writer, messages, name, options, said), True, messages)
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
    return Written(_text_of(messages[0]["content"], image_mark or ""), False, messages)


def as_messages(prompt: str | Sequence[Message], images: Sequence[Any] = ()) -> list[Message]:
    """A text as one user's message, behind the images that are shown with it.

    Args:
        prompt: A text; messages stay as they are.
        images: Paths, or images of Pillow.

    Raises:
        DraftgymError: Images beside messages, or one that cannot be read.
    """
    if not isinstance(prompt, str):
        if images:
            raise DraftgymError(
                "images were given beside messages",
                'put each into its message: "content": [{"type": "image", "image": "cat.png"}, '
                '{"type": "text", "text": "What is it?"}]',
            )
        return [*prompt]
    if not images:
        return [{"role": "user", "content": prompt}]
    parts = [{"type": "image", "image": open_image(image)} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def checked_messages(prompt: str | Sequence[Message], sees: bool = False) -> list[dict[str, Any]]:
    """Messages in transformers' shape; of a text its one user message.

    Args:
        prompt: A text, or messages.
        sees: Whether contents become lists of parts (images opened), as the templates of
            multimodal models read them; else they become texts.

    Raises:
        DraftgymError: There is none, or one is no message: unknown role, no content, an empty last
            message of the assistant, an image where none is read.
    """
    if isinstance(prompt, str):
        check_unicode(prompt, "the prompt")
        prompt = [{"role": "user", "content": prompt}]
    if not prompt:
        raise DraftgymError("there is no message", 'give one: {"role": "user", "content": "Hi!"}')
    messages = [_checked(one, index, sees) for index, one in enumerate(prompt, start=1)]
    last = messages[-1]
    if last["role"] == "assistant" and (
        last.get("tool_calls") or not _text_of(last.get("content") or "").strip()
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
        content = message.get("content") or ""
        texts = [part for part in _texts(content) if part.strip()]
        # Templates may trim or escape; one that writes the same for another text has left it out.
        # Beside tool calls many leave out what an assistant says.
        if message.get("tool_calls") or all(part.strip() in text for part in texts):
            continue
        other = [*messages]
        other[index] = {**message, "content": _lengthened(content)}
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


def encode_text(tokenizer: Any, text: str, name: str, special: bool = False) -> Tensor:
    """Token ids `[n]` of a text as it stands.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        name: What the user called the target.
        special: Whether the tokenizer adds the special tokens that it puts around texts.

    Raises:
        DraftgymError: It cannot be read, or there are no tokens.
    """
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
            "it does not belong to this prompt's writing; name another target, or give token ids"
            if text
            else "it is empty; write something into it",
        )
    return tokens


def _check_options(writer: Any, options: Mapping[str, Any], name: str) -> None:
    """Raises `DraftgymError` for options that would change nothing: the template reads others."""
    if not options:
        return
    wrong = [key for key in options if key in WITHOUT_MEANING]
    if wrong:
        raise DraftgymError(
            f"{', '.join(wrong)} is no option of a chat template",
            "prompts are always read as one row of token ids; leave it out",
        )
    tokenizer = writer if hasattr(writer, "get_chat_template") else writer.tokenizer
    own = getattr(writer, "chat_template", None)
    given = options.get("chat_template") or (own if isinstance(own, str) else None)
    try:
        source = str(tokenizer.get_chat_template(given, options.get("tools")))
    except Exception:
        return  # writing will say what is wrong with it
    asked = [key for key in options if key not in (*HOW_WRITTEN, "chat_template")]
    unread = [key for key in asked if not re.search(rf"\b{re.escape(key)}\b", source)]
    if unread:
        raise DraftgymError(
            f"the chat template of target {name!r} does not read {', '.join(unread)}",
            "check the spelling, or leave it out: it would change nothing",
        )


def _checked(message: Any, number: int, sees: bool) -> dict[str, Any]:
    """A message with its content and its tool calls as transformers' templates read them.

    Args:
        message: What was given.
        number: Its place, from 1, for errors.
        sees: See `checked_messages`.
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
    parts = _parts(checked.get("content"), where, sees)
    text = "".join(part.get("text", "") for part in parts)
    checked["content"] = parts if sees else text
    seen = any(part["type"] == "image" for part in parts)
    if role not in ("assistant", "tool") and not text.strip() and not seen:
        raise DraftgymError(f"{where} has no content", "give it some text, or leave it out")
    return checked


def _parts(content: Any, where: str, sees: bool) -> list[dict[str, Any]]:
    """A content as parts, of type `text` or `image` (opened)."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise DraftgymError(f"{where} has no content", 'give it text: "content": "..."')
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            check_unicode(part["text"], where)
            parts.append({"type": "text", "text": part["text"]})
        elif sees and kind in IMAGE_PARTS:
            parts.append({"type": "image", "image": image_of(part, where)})
        else:
            reads = "texts and images" if sees else "text alone"
            raise DraftgymError(
                f"{where} has a part of type {kind!r}, and this target reads {reads}",
                'give parts of the form {"type": "text", "text": "..."}, or a string',
            )
    return parts


def _texts(content: Any) -> list[str]:
    """The texts of a checked content."""
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _text_of(content: Any, image_mark: str = "") -> str:
    """A checked content as one text."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", image_mark) for part in content)


def _lengthened(content: Any) -> Any:
    """The same content with more text in every part."""
    if isinstance(content, str):
        return f"{content} x"
    return [{**part, "text": f"{part['text']} x"} if "text" in part else part for part in content]


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
