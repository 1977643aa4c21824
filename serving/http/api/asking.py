"""Requests of the API as texts for the batch."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.seeds import derived_seed
from draftgym.serving.batching.requests import TextRequest
from draftgym.serving.http.api.schema import ChatBody, CompletionBody, TextBody
from draftgym.serving.http.encoding import too_long
from draftgym.serving.http.errors import ApiError, refusal
from draftgym.serving.http.service import Limits, Model, Service

DEFAULT_TOKENS = 16
"""Of a completion that names no number, as OpenAI has it."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A text that a request wants.

    Attributes:
        request: What the batch is told.
        first: Whether it is the first choice of its prompt.
        echo: The prompt's text where the answer begins with it.
    """

    request: TextRequest
    first: bool
    echo: str | None = None


async def asked_of_completion(service: Service, body: CompletionBody) -> list[Asked]:
    """The texts of `/v1/completions`: for each prompt so many as there are choices.

    Raises:
        ApiError: The request cannot be served.
    """
    _check(service, body, len(body.prompts))
    model, asked = service.model, []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            ids = await model.encoding.text(prompt, special=True)
        else:
            ids = model.encoding.tokens(prompt)
        wanted = body.max_tokens
        if wanted is None:
            wanted = min(DEFAULT_TOKENS, service.limits.most_new_tokens or DEFAULT_TOKENS)
        echo = None
        if body.echo:
            echo = prompt if isinstance(prompt, str) else model.encoding.decode(prompt)
        request = _request(
            model,
            body,
            ids,
            _new_tokens(service.limits, model, ids, wanted, "prompt"),
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        asked += _choices(request, body, echo)
    return asked


async def asked_of_chat(service: Service, body: ChatBody) -> list[Asked]:
    """The texts of `/v1/chat/completions`.

    Raises:
        ApiError: The request cannot be served.
    """
    _check(service, body, 1)
    model, limits = service.model, service.limits
    messages = [one.told(number) for number, one in enumerate(body.messages)]
    ids = await model.encoding.messages(messages, body.chat_template_kwargs or {})
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if wanted is None:
        room = model.target.context_limit - len(ids)
        wanted = max(min(limits.default_new_tokens, limits.most_new_tokens or room, room), 1)
    prediction: Sequence[int] = ()
    if body.prediction is not None and (text := body.prediction.text):
        prediction = (await model.encoding.text(text, False, "prediction")).tolist()
    request = _request(
        model,
        body,
        ids,
        _new_tokens(limits, model, ids, wanted, "messages"),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prediction=tuple(prediction),
    )
    return _choices(request, body)


def _check(service: Service, body: TextBody, prompts: int) -> None:
    service.check_model(body.model or None)
    body.check()
    texts, most = prompts * body.choices, service.limits.most_texts
    if texts > most:
        message = f"{texts} texts are more than the {most} that one request may ask for"
        raise ApiError(400, message, "prompt" if prompts > 1 else "n")


def _new_tokens(limits: Limits, model: Model, ids: Tensor, wanted: int, param: str) -> int:
    most, context = limits.most_new_tokens, model.target.context_limit
    if most is not None and wanted > most:
        message = f"{wanted} new tokens are more than the {most} that this server writes"
        raise ApiError(400, message, "max_tokens")
    if len(ids) + wanted > context:
        problem = f"the prompt is too long: it has {len(ids)}, and {wanted} new ones do not fit"
        raise too_long(context, f"{problem}; shorten it, or ask for fewer", param)
    if not model.batcher.fits(len(ids) + max(1, wanted)):
        message = (
            f"a prompt of {len(ids)} tokens and {wanted} new ones are more than the server's cache "
            "holds: shorten the prompt, or ask for fewer"
        )
        raise ApiError(400, message, param, "context_length_exceeded")
    return wanted


def _request(
    model: Model,
    body: TextBody,
    ids: Tensor,
    new_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    prediction: tuple[int, ...] = (),
) -> TextRequest:
    try:
        stops = Stops(tuple(body.stop_token_ids or ()), body.stop_strings, bool(body.ignore_eos))
        return TextRequest(
            ids,
            new_tokens,
            body.heat,
            0,
            body.sampling,
            stops,
            body.own.policy,
            body.own.max_draft,
            prediction,
            logprobs,
            prompt_logprobs,
        )
    except DraftgymError as error:
        raise refusal(error) from error


def _choices(request: TextRequest, body: TextBody, echo: str | None = None) -> list[Asked]:
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return [
        Asked(replace(request, seed=seed_of_choice(seed, choice)), choice == 0, echo)
        for choice in range(body.choices)
    ]


def seed_of_choice(seed: int, choice: int) -> int:
    """The seed of a choice: of the first one the request's own, so that `n` does not change it."""
    return seed if choice == 0 else derived_seed(seed, choice)
