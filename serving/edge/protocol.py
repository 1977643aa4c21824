"""What devices and server agree on beside their messages: names, versions, limits, errors.

The messages are those of `edge_v1.proto`; `make proto` writes `edge_v1_pb2.py` from it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from draftgym.decoding.errors import DraftgymError

METHOD = "/draftgym.edge.v1.Edge/Talk"
"""The one call there is: a stream of messages both ways."""
LONGEST_NAME = 128
"""Characters of a session's name and of other texts that a device sends."""
TOKEN = "authorization"
"""Metadata that carries `Bearer TOKEN`."""
TOKEN_VARIABLE = "DRAFTGYM_EDGE_TOKEN"
"""Of the environment; other users of a host cannot see it, as they can see arguments."""


def require(name: str) -> Any:
    """A module of gRPC or protobuf.

    Raises:
        DraftgymError: It is not installed; the extra `edge` has it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "draftgym":
            raise
        raise DraftgymError(
            f"devices and servers talk through {error.name}, which is not installed",
            "pip install 'draftgym[edge]'",
        ) from error


def require_edge() -> Any:
    """gRPC, once it is sure that the messages can be read, too.

    Raises:
        DraftgymError: It is not installed, or protobuf is too old for `edge_v1_pb2.py`.
    """
    grpc, messages = require("grpc"), "draftgym.serving.edge.edge_v1_pb2"
    try:
        require(messages)
    except Exception as error:  # protobuf's own, of several kinds
        if isinstance(error, DraftgymError):
            raise
        raise DraftgymError(
            f"the installed protobuf cannot read our messages: {error}",
            "pip install --upgrade 'draftgym[edge]'",
        ) from error
    return grpc


@dataclass(frozen=True)
class Limits:
    """What a server lets devices do; nothing it keeps for them grows beyond these.

    Attributes:
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a text.
        message_bytes: Size of a message.
        open_seconds: Time until a connection has opened a text.
        idle_seconds: Time that a device may take for a draft, or between two texts.
        round_seconds: Time that a round waits for drafts; who is late is in the next one.
        waiting: Devices that are let in beyond those that have a place; more are refused.
    """

    prompt_tokens: int = 1024
    new_tokens: int = 1024
    message_bytes: int = 131072
    open_seconds: float = 10.0
    idle_seconds: float = 60.0
    round_seconds: float = 2.0
    waiting: int = 16


class Refused(Exception):
    """A device that the server does not serve, or no longer.

    Args:
        code: Name of a gRPC status.
        reason: What the device's user is told.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def bytes_of(path: Path) -> bytes:
    """What is in a file of TLS.

    Raises:
        DraftgymError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DraftgymError(f"{path}: {error.strerror}", "name a PEM file") from error


def key_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A certificate and its key, PEM.

    Raises:
        DraftgymError: They cannot be read, or used together.
    """
    pair = bytes_of(certificate), bytes_of(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise DraftgymError(
            f"{certificate} and {key} are no certificate and key: {_reason(error)}",
            "name PEM files that belong together, the key without a password",
        ) from error
    return pair


def authorities(path: Path) -> bytes:
    """Certificates of who may sign, PEM.

    Raises:
        DraftgymError: They cannot be read.
    """
    read = bytes_of(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise DraftgymError(f"{path}: {_reason(error)}", "name a PEM file") from error
    return read


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def token_of(given: str | None) -> str | None:
    """What devices must send: as an option gives it, or the environment; None for nothing.

    Raises:
        DraftgymError: No header can carry it.
    """
    token = given or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (
        token.isascii() and token.isprintable() and token == token.strip()
    ):
        raise DraftgymError(
            "the token has characters that no header can carry", "use letters, digits and - . _ ~"
        )
    return token


def address_of(host: str, port: int) -> str:
    """Host and port as gRPC reads them; addresses of IPv6 in brackets."""
    bare = ":" in host and not host.startswith("[")
    return f"[{host}]:{port}" if bare else f"{host}:{port}"


def host_of(peer: str) -> str:
    """The address in what gRPC calls a peer, such as `ipv4:10.0.0.7:50123`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def vocabulary_fingerprint(tokenizer: Any, size: int) -> str:
    """A short hash of what token ids mean; of a bare model, of how many there are.

    Args:
        tokenizer: The transformers tokenizer, or None.
        size: Rows of the language-model head, read only without a tokenizer.
    """
    said = size if tokenizer is None else sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
