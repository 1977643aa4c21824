"""Between the text of requests and token ids; long texts never stop the web side."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.messages import encode_text
from draftgym.decoding.model.target import Target
from draftgym.decoding.text.stream import UNFINISHED
from draftgym.serving.http.errors import ApiError

BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""What byte a letter stands for in the vocabulary of a byte-level tokenizer."""

CHARACTERS_OF_A_TOKEN = 64
"""A text of more than so many characters for every position of the context is refused unread."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TokenText:
    r"""A token by itself.

    Attributes:
        text: What it says; of a part of a character its bytes, as in `bytes:\xf0\x9f`.
        data: Its bytes.
    """

    text: str
    data: bytes


@dataclass(eq=False)
class Encoding:
    """Text to tokens and back, for one target.

    Encoding is done on a thread of its own, one text after the other: tokenizers may not be used
    by two threads while they encode. Decoding changes nothing in them, and is short.

    Attributes:
        target: The target, which has a tokenizer.
    """

    target: Target
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "draftgym-encoding"), init=False
    )

    def __post_init__(self) -> None:
        self.target.tokenizer("a")  # what the first call changes in a tokenizer is changed now
        self.token = lru_cache(maxsize=1 << 16)(self._token)

    async def text(self, text: str, special: bool, param: str = "prompt") -> Tensor:
        """Token ids `[n]` of a text as it stands.

        Args:
            text: The text.
            special: Whether the tokenizer adds its special tokens.
            param: Which field of the request it is.

        Raises:
            DraftgymError: It makes no tokens.
            ApiError: It is far too long.
        """
        self._check_length([text], param)
        call = partial(encode_text, self.target.tokenizer, text, self.target.name, special)
        return self._known(await self._encode(call))

    async def messages(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Tensor:
        """Token ids `[n]` of a chat.

        Args:
            messages: As `Target.encode`.
            options: Of the chat template.

        Raises:
            DraftgymError: The template cannot write them.
            ApiError: They are far too long.
        """
        contents = [one.get("content") or "" for one in messages]
        parts = [[{"text": one}] if isinstance(one, str) else one for one in contents]
        self._check_length([part["text"] for one in parts for part in one], "messages")
        return await self._encode(partial(self.target.encode, messages, **options))

    def tokens(self, ids: Sequence[int]) -> Tensor:
        """Token ids of a request.

        Raises:
            DraftgymError: The target lacks one.
        """
        return self._known(torch.tensor(ids, dtype=torch.long))

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of tokens, with or without special ones."""
        text = self.target.tokenizer.decode([*ids], skip_special_tokens=not special)
        return str(text)

    def _known(self, ids: Tensor) -> Tensor:
        self.target.check_tokens(ids)
        return ids

    async def _encode(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _check_length(self, texts: Sequence[str], param: str) -> None:
        limit = self.target.context_limit
        if sum(map(len, texts)) > CHARACTERS_OF_A_TOKEN * limit:
            what = "prompt" if param == "messages" else param
            raise too_long(limit, f"the {what} is too long by far, shorten it", param)

    def _token(self, token: int) -> TokenText:
        text, data = self.decode([token], special=True), None
        word = self.target.tokenizer.convert_ids_to_tokens(token)
        if isinstance(word, str):
            if UNFINISHED in text:
                data = _bytes_in(word)
            elif word.startswith("▁") and not text.startswith(" "):
                text = f" {text}"  # which is dropped from the beginning of a text
        if data is None:
            return TokenText(text, text.encode())
        return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)


def too_long(limit: int, problem: str, param: str) -> ApiError:
    """The answer to what does not fit the context; litellm and LangChain tell it by its words."""
    message = f"this model's maximum context length is {limit} tokens; {problem}"
    return ApiError(400, message, param, "context_length_exceeded")


def _bytes_in(word: str) -> bytes | None:
    """The bytes of a token of the vocabulary that is no whole character."""
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", word):
        return bytes.fromhex(match[1])
    if all(letter in BYTE_OF for letter in word):
        return bytes(BYTE_OF[letter] for letter in word)
    return None


def check_tokenizer(target: Target) -> None:
    """Raises `DraftgymError` for a target that reads token ids alone."""
    if target.tokenizer is None:
        raise DraftgymError(
            f"target {target.name!r} has no tokenizer, so it cannot answer in text",
            "put tokenizer.json and tokenizer_config.json beside its weights",
        )
