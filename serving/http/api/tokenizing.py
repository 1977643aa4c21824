"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them."""

from __future__ import annotations

from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.http.api.schema import DetokenizeBody, TokenizeBody
from draftgym.serving.http.errors import ApiError
from draftgym.serving.http.service import Service


async def tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """The tokens of a prompt, or of a chat.

    Raises:
        ApiError: There is neither, or it cannot be read.
    """
    service.check_model(body.model or None)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", "prompt")
    encoding = service.model.encoding
    if body.prompt == "":
        tokens = []
    elif body.prompt is not None:
        special = body.add_special_tokens is not False
        tokens = (await encoding.text(body.prompt, special)).tolist()
    else:
        messages = [one.told(number) for number, one in enumerate(body.messages or ())]
        tokens = (await encoding.messages(messages, body.chat_template_kwargs or {})).tolist()
    limit = encoding.target.context_limit
    told: dict[str, Any] = {"count": len(tokens), "max_model_len": limit, "tokens": tokens}
    if body.return_token_strs:
        told["token_strs"] = [encoding.token(token).text for token in tokens]
    return told


def detokenize(service: Service, body: DetokenizeBody) -> dict[str, Any]:
    """The text of tokens, special ones included."""
    service.check_model(body.model or None)
    encoding = service.model.encoding
    try:
        encoding.tokens(body.tokens)
    except DraftgymError as error:
        raise ApiError(400, error.problem, "tokens") from error
    return {"prompt": encoding.decode(body.tokens, special=True)}


def tokenizer_info(service: Service) -> dict[str, Any]:
    """What clients that write chats themselves read of a tokenizer."""
    tokenizer = service.model.target.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "chat_template": template if isinstance(template, str) else None,
        "model_max_length": service.model.target.context_limit,
        "vocab_size": service.model.target.vocab_size,
    }
