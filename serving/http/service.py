"""What the web side knows of the model behind it: whether it is there, and its limits."""

from __future__ import annotations

import enum
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass

from draftgym.decoding.model.target import Target
from draftgym.serving.batching.batcher import Batcher
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.http.encoding import Encoding
from draftgym.serving.http.errors import ApiError
from draftgym.serving.http.metrics import Metrics


class Phase(enum.Enum):
    """What a server is doing."""

    LOADING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the server is shutting down"
    DEAD = "the model has failed; its log says why"


@dataclass(frozen=True)
class Limits:
    """What requests may ask for.

    Attributes:
        most_new_tokens: Tokens per text; None for what the context holds.
        default_new_tokens: Tokens of a chat's answer that names no number.
        most_texts: Texts of one request, prompts times choices.
        most_bytes: Of a request's body.
        ping_seconds: After so much silence a stream carries a comment, so that nobody between here
            and the client takes the connection for dead.
        keys: API keys; none asks for none.
    """

    most_new_tokens: int | None = None
    default_new_tokens: int = 512
    most_texts: int = 128
    most_bytes: int = 8 << 20
    ping_seconds: float = 15.0
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        target: The target, under the name that it is served by.
        batcher: Who writes.
        policies: Who may choose.
        encoding: Text to tokens and back.
    """

    target: Target
    batcher: Batcher
    policies: PolicySet
    encoding: Encoding


class Service:
    """A model on its way up, or down.

    Args:
        name: What requests call the model.
        limits: What they may ask for.

    Attributes:
        phase: What it is doing.
        active: Requests that are being served.
        created: When the server started, seconds since 1970.
        metrics: What its batch has done; the batch's `Watch`.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.phase, self.active, self.created = Phase.LOADING, 0, int(time.time())
        self.metrics = Metrics(name)
        self._model: Model | None = None

    def serve(self, model: Model) -> None:
        """Begins to serve; a server that was told to end meanwhile stays at that."""
        self._model = model
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            ApiError: It is not there yet.
        """
        if self._model is None:
            raise unavailable(Phase.LOADING)
        return self._model

    def close(self) -> None:
        """Ends the batch."""
        if self._model is not None:
            self._model.batcher.close()

    def check_open(self) -> None:
        """Raises `ApiError` unless new requests are taken."""
        if self.phase is Phase.READY:
            self.check_alive()
        if self.phase is not Phase.READY:
            raise unavailable(self.phase)

    def check_alive(self) -> None:
        """Raises `ApiError` where the batch's thread has ended: nothing more will be written."""
        if not self.model.batcher.is_alive:
            if self.phase is Phase.READY:  # a server that ends goes on ending
                self.phase = Phase.DEAD
            raise unavailable(Phase.DEAD)

    def check_key(self, given: str) -> None:
        """Raises `ApiError` unless an `Authorization` header has one of the keys.

        The time that this takes tells nothing about them.
        """
        keys = [f"Bearer {key}".encode() for key in self.limits.keys]
        fitting = [hmac.compare_digest(given.encode(), key) for key in keys]
        if keys and not any(fitting):
            message = "no such API key; send one in the header Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` for a request to another model."""
        if name not in (None, self.name):
            message = f"model {name!r} is not served here; this is {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")


def unavailable(phase: Phase) -> ApiError:
    """The answer of a server that takes nothing now."""
    headers = {"Retry-After": "2"}
    if phase is Phase.DRAINING:
        headers["Connection"] = "close"
    return ApiError(503, phase.value, code=phase.name.lower(), headers=headers)
