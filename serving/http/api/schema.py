"""What requests may say. Fields that are not here are ignored, as others' servers do."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from draftgym.decoding.verify.rules import LEAST_TEMPERATURE
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.serving.http.errors import ApiError

MOST_CHOICES = 16
MOST_ALTERNATIVES = 20
MOST_STOPS = 16
MOST_ITEMS = 1024
MOST_TOKENS = 1 << 20


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("halves of characters (lone surrogates) are no text") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Token = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]

# Of lists the first wrong item is enough: millions of them would cost millions of errors.
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_ITEMS)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1, max_length=MOST_TOKENS)]
Prompts = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=MOST_ITEMS)]


class Given(BaseModel):
    """An object of a request."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Given):
    """What a stream tells beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OwnOptions(Given):
    """What no other server knows."""

    policy: str | None = Field(
        default=None,
        pattern="^[ -~]{1,200}$",
        description="Who chooses the drafts of this text's rounds.",
    )
    max_draft: Count | None = Field(
        default=None, description="Most tokens a round drafts; 0 for none."
    )
    details: bool = Field(default=False, description="Whether every token tells who drafted it.")


class TextBody(Given):
    """What completions and chats have in common."""

    model: Text | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[Token], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    user: Any = None
    draftgym: OwnOptions | None = None

    unsupported: ClassVar[dict[str, str]] = {
        "presence_penalty": "use repetition_penalty, or leave it out",
        "frequency_penalty": "use repetition_penalty, or leave it out",
        "logit_bias": "leave it out",
    }
    """Fields that would change the text and are not served, each with what to do instead."""

    @property
    def choices(self) -> int:
        """Texts per prompt."""
        return self.n or 1

    @property
    def own(self) -> OwnOptions:
        """Options of draftgym alone."""
        return self.draftgym or OwnOptions()

    @property
    def heat(self) -> float:
        """The temperature; one too small to sample at is greedy, which is its limit."""
        asked = 1.0 if self.temperature is None else self.temperature
        return asked if asked >= LEAST_TEMPERATURE else 0.0

    @property
    def sampling(self) -> SamplingSettings:
        """What narrows or bends the distribution."""
        return SamplingSettings(
            top_k=max(self.top_k or 0, 0),
            top_p=self.top_p or 1.0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Raises `ApiError` for what is understood, but not served."""
        for field, remedy in self.unsupported.items():
            if getattr(self, field) not in NEUTRAL.get(field, (None, 0, "", [], {}, False)):
                raise ApiError(400, f"{field} is not supported; {remedy}", field, "unsupported")


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, [], ["text"]),
}
"""Values of unsupported fields that ask for nothing, where they are not the empty ones."""


class CompletionBody(TextBody):
    """`POST /v1/completions`."""

    prompt: Text | Texts | Tokens | Prompts
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    best_of: int | None = Field(default=None, ge=0)
    suffix: str | None = None

    unsupported: ClassVar[dict[str, str]] = TextBody.unsupported | {"suffix": "leave it out"}

    def check(self) -> None:
        """Raises `ApiError` for what is understood, but not served."""
        super().check()
        if self.best_of not in (None, 0, self.choices):
            remedy = "ask for n texts and choose among them"
            raise ApiError(400, f"best_of other than n is not supported; {remedy}", "best_of")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one at least."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


class Part(Given):
    """A part of a message."""

    type: Text
    text: Text | None = None


Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MOST_ITEMS)]


class ChatMessage(Given):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Parts | None = None
    name: Text | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: Text | None = None

    def told(self, number: int) -> dict[str, Any]:
        """The message as templates read it.

        Raises:
            ApiError: It holds something else than text.
        """
        _refuse_other_parts(self.content, f"messages.{number}.content")
        return self.model_dump(exclude_none=True)


TemplateOptions = Annotated[dict[str, Any], Field(max_length=64)]
Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MOST_ITEMS)]


class Prediction(Given):
    """Text that the answer is expected to contain."""

    type: Literal["content"] = "content"
    content: Text | Parts

    @property
    def text(self) -> str:
        """The expected text.

        Raises:
            ApiError: It holds something else than text.
        """
        _refuse_other_parts(self.content, "prediction.content")
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content)


def _refuse_other_parts(content: str | list[Part] | None, where: str) -> None:
    for part in content if isinstance(content, list) else ():
        if part.type != "text" or part.text is None:
            message = f"{where} has a part of type {part.type!r}, and texts alone are read"
            raise ApiError(400, message, where.partition(".")[0], "unsupported")


class ChatBody(TextBody):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    prediction: Prediction | None = None
    chat_template_kwargs: TemplateOptions | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = None
    audio: Any = None

    unsupported: ClassVar[dict[str, str]] = TextBody.unsupported | {
        "tools": "describe them in a message, or leave them out",
        "tool_choice": "leave it out",
        "functions": "describe them in a message, or leave them out",
        "function_call": "leave it out",
        "response_format": 'leave it out, or say {"type": "text"}',
        "modalities": 'leave it out, or say ["text"]',
        "audio": "leave it out",
    }

    def check(self) -> None:
        """Raises `ApiError` for what is understood, but not served."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        for name in self.chat_template_kwargs or {}:
            if name in ("chat_template", "tools", "documents"):
                where = "chat_template_kwargs"
                raise ApiError(400, f"{where} may not bring {name}; leave it out", where)


class TokenizeBody(Given):
    """`POST /tokenize`: a prompt, or the messages of a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None


class DetokenizeBody(Given):
    """`POST /detokenize`."""

    model: Text | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True, max_length=MOST_TOKENS)]
