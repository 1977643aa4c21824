"""Whoever does not belong among the devices: says what no device says, and tells what came of it.

    $ python -m draftgym.serving.edge.lab.strangers garbage '{"server": "10.77.0.1:50071", ...}'

Its last line on standard output is a JSON object: `said`, and `text` where one was written.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.protocol import METHOD, require

TOO_LARGE = 2**20
"""Bytes of a message, beyond what servers take."""
ROUNDS = 4
"""Verdicts that a stranger takes part in."""
SLOWLY = 5.0
"""Seconds that a slow reader takes for a message."""


@dataclass(frozen=True)
class Facts:
    """What a stranger knows.

    Attributes:
        server: Host and port.
        tokenizer: Fingerprint of the vocabulary.
        prompt: Token ids.
        max_new_tokens: Of its text.
        temperature, seed: Of its sampling noise.
    """

    server: str
    tokenizer: str
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    seed: int


class Talk:
    """A stream of which every message is said; a context manager's worth of closing is `close`."""

    def __init__(self, facts: Facts) -> None:
        self.grpc = require("grpc")
        self._channel = self.grpc.insecure_channel(facts.server)
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = self._channel.stream_stream(
            METHOD, request_serializer=_bytes, response_deserializer=wire.FromServer.FromString
        )
        self.messages = call(iter(self._out.get, None))

    def say(self, message: Any) -> None:
        """Sends a message, or any bytes."""
        self._out.put(message)

    def verdicts(self) -> Iterator[Any]:
        """Verdicts as they come."""
        for message in self.messages:
            if message.WhichOneof("what") == "verdict":
                yield message.verdict

    def ending(self) -> str:
        """How the stream ends: a status and the reason."""
        try:
            for _ in self.messages:
                pass
        except self.grpc.RpcError as error:
            return f"{error.code().name} ({error.details()})"
        return "OK"

    def close(self) -> None:
        """Ends the connection without a word."""
        self._out.put(None)
        self._channel.close()


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


def opening(facts: Facts, session: str, **changes: Any) -> Any:
    """What opens a text."""
    said: dict[str, Any] = {
        "session": session,
        "prompt": facts.prompt,
        "max_new_tokens": facts.max_new_tokens,
        "temperature": facts.temperature,
        "seed": facts.seed,
        "drafter": "ngram",
        "tokenizer": facts.tokenizer,
        "report": wire.Report(snr_db=20.0),
    }
    return wire.FromDevice(open=wire.Open(**(said | changes)))


def _refused(message: Callable[[Facts], Any]) -> Callable[[Facts], dict[str, Any]]:
    def play(facts: Facts) -> dict[str, Any]:
        talk = Talk(facts)
        talk.say(message(facts))
        return {"said": f"refused: {talk.ending()}"}

    return play


def _takes_part(facts: Facts, session: str, pause: float, **changes: Any) -> dict[str, Any]:
    """Writes a while, with drafts that nobody could want: the prompt's own tokens."""
    talk, tokens, drafted, accepted = Talk(facts), list[int](), 0, 0
    draft: list[int] = []
    talk.say(opening(facts, session, **changes))
    said = ""
    try:
        for number, verdict in enumerate(talk.verdicts()):
            tokens += [*draft[: verdict.accepted], *verdict.tokens]
            accepted += verdict.accepted
            if verdict.ending or number == ROUNDS:
                break
            time.sleep(pause)
            draft = facts.prompt[: verdict.next.length]
            if draft:
                drafted += len(draft)
                report = wire.Report(snr_db=20.0)
                one = wire.Draft(position=len(tokens), tokens=draft, report=report)
                talk.say(wire.FromDevice(draft=one))
    except talk.grpc.RpcError as error:
        said = f"; then {error.code().name} ({error.details()})"
    talk.close()
    said = f"wrote {len(tokens)} tokens; {accepted} of {drafted} drafted ones were accepted{said}"
    text = {
        "question_id": session,
        "session": session,
        "prompt": facts.prompt,
        "tokens": tokens,
        "finish_reason": "",
        "max_new_tokens": facts.max_new_tokens,
        "temperature": facts.temperature,
        "seed": facts.seed,
    }
    return {"said": said, "text": text}


def _twins(facts: Facts) -> dict[str, Any]:
    """Two devices with one session's name, and a third with another text of that name."""
    first, second, third = Talk(facts), Talk(facts), Talk(facts)
    first.say(opening(facts, "twin"))
    next(first.verdicts())
    second.say(opening(facts, "twin"))
    next(second.verdicts())
    third.say(opening(facts, "twin", prompt=facts.prompt[::-1]))
    endings = first.ending(), third.ending()
    second.close()
    return {"said": f"the first: {endings[0]}; the second goes on; another text: {endings[1]}"}


STRANGERS: Mapping[str, Callable[[Facts], dict[str, Any]]] = {
    "garbage": _refused(lambda facts: b"\xff" * 300),
    "oversize": _refused(lambda facts: bytes(TOO_LARGE)),
    "tokenizer": _refused(lambda facts: opening(facts, "other", tokenizer="of another model")),
    "drafter": lambda facts: _takes_part(facts, "drafter", 0.0, drafter_fingerprint="0.0.1"),
    "slow": lambda facts: _takes_part(facts, "slow", SLOWLY),
    "twins": _twins,
}


def main(arguments: list[str]) -> None:
    """Runs one as a process."""
    print(json.dumps(STRANGERS[arguments[0]](Facts(**json.loads(arguments[1])))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
