"""What a device has written, kept in a file: killed and started again, it goes on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, write_text
from draftgym.serving.edge.devices.writing import Text, Written, new_session

REMEDY = "remove the file: its texts are begun anew"


class Journal:
    """Texts in the order in which a device writes them.

    Args:
        path: The file; None keeps nothing. If it is there, texts go on where it ends.

    Attributes:
        done: Finished texts, as `record` tells them.
        current: The text under way; None between two.

    Raises:
        DraftgymError: The file is damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.done: list[dict[str, Any]] = []
        self.current: tuple[dict[str, Any], Written] | None = None
        self._lines: list[str] = []
        if path is not None and path.exists():
            self._read(path)

    def begin(self, text: Text, question_id: str) -> tuple[str, Written]:
        """The text under way if it is this one, else a new one.

        Args:
            text: What is to be written.
            question_id: What it is called.

        Returns:
            Its session, and what there is of it.

        Raises:
            DraftgymError: The file's text under way is another one.
        """
        if self.current is None:
            self.current = {"session": new_session(), **_facts(text, question_id)}, Written()
        known, written = self.current
        self._check(known, text, question_id)
        return str(known["session"]), written

    def check(self, index: int, text: Text, question_id: str) -> None:
        """Sees that a finished text is the one that is to be written.

        Raises:
            DraftgymError: It is another one.
        """
        self._check(self.done[index], text, question_id)

    def _check(self, known: dict[str, Any], text: Text, question_id: str) -> None:
        wanted = _facts(text, question_id)
        if {name: known.get(name) for name in wanted} != wanted:
            raise DraftgymError(f"{self._path} is of another text than {question_id!r}", REMEDY)

    def save(self) -> None:
        """Keeps what there is, whole or not at all."""
        if self.current is not None and self.current[1].finish_reason:
            self.done.append(record(*self.current))
            self._lines.append(json.dumps(self.done[-1]))
            self.current = None
        if self._path is not None:
            under_way, texts = json.dumps(self.unfinished), ",\n".join(self._lines)
            write_text(self._path, f'{{"unfinished": {under_way}, "texts": [\n{texts}\n]}}\n')

    @property
    def unfinished(self) -> dict[str, Any] | None:
        """The text under way as `record` tells it."""
        return None if self.current is None else record(*self.current)

    def _read(self, path: Path) -> None:
        body = read_json(path, REMEDY)
        try:
            self.done = list(body["texts"])
            self._lines = [json.dumps(one) for one in self.done]
            if body["unfinished"] is not None:
                self.current = _parted(body["unfinished"])
        except (AttributeError, KeyError, TypeError) as error:
            raise DraftgymError(f"{path} is not what a device keeps", REMEDY) from error


def _facts(text: Text, question_id: str) -> dict[str, Any]:
    """What is asked, as files tell it."""
    return {"question_id": question_id, **asdict(text), "prompt": list(text.prompt)}


def record(facts: dict[str, Any], written: Written) -> dict[str, Any]:
    """A text as files tell it: what was asked, and `Written`."""
    return facts | asdict(written)


def _parted(told: dict[str, Any]) -> tuple[dict[str, Any], Written]:
    names = set(asdict(Written()))
    facts = {name: value for name, value in told.items() if name not in names}
    return facts, Written(**{name: told[name] for name in names})


def texts_of(body: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """All texts that a device's file tells of, the unfinished one last."""
    last = body["unfinished"]
    return [*body["texts"], *([last] if last else [])]
