"""Files that are read again appear whole or not at all; damage is refused with a remedy."""

from __future__ import annotations

import json
import os
import reprlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes the name `path` when the block ends without error.

    A process that is killed leaves the old file as it was.

    Args:
        path: What is replaced; its folder exists.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `path` as UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def keep_text(path: Path, text: str) -> None:
    """Writes a file of a cache, whole or not at all; makes its folder.

    Where that is impossible (an image, a shared mount) it says so in a line, and the run goes on
    without it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        print(
            f"note: cannot write {path}: {error.strerror}; it is made anew each time. Set "
            "DRAFTGYM_CACHE to a folder that you may write",
            file=sys.stderr,
        )


def write_json(path: Path, body: Any, indent: int | None = 2) -> None:
    """Writes `body` as JSON, whole or not at all."""
    write_text(path, json.dumps(body, indent=indent) + "\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: The file.
        remedy: What the user can do when it is missing or damaged.

    Raises:
        DraftgymError: It cannot be read, or `parse_json` refuses it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DraftgymError(f"cannot read {path}: {reason}", remedy) from error
    return parse_json(text, str(path), remedy)


def parse_json(text: str, name: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a text from outside.

    Args:
        text: The text.
        name: What it is called in the message.
        remedy: What the user can do when it is damaged.

    Raises:
        DraftgymError: It is no JSON object, says a key twice, is nested too deeply or has a number
            with thousands of digits.
    """
    try:
        body = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise DraftgymError(f"{name} is nested too deeply to be read", remedy) from error
    except ValueError as error:  # also a number of more digits than Python converts
        reason: object = error
        if isinstance(error, json.JSONDecodeError) and "\n" not in text:
            reason = f"{error.msg} at column {error.colno}"
        raise DraftgymError(f"{name} is not JSON that can be read: {reason}", remedy) from error
    if not isinstance(body, dict):
        raise DraftgymError(f"{name} is JSON, but not an object {{...}}", remedy)
    return body


def user_path(text: str | Path) -> Path:
    """A path as users write it, `~` included; there need be nothing.

    Raises:
        DraftgymError: The system cannot look it up: too long, nobody's home, a closed folder.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DraftgymError(
            f"there is no getting at {reprlib.repr(str(text))}: {reason}", "check the path"
        ) from error
    return path


def check_unicode(text: str, name: str) -> None:
    """Raises `DraftgymError` for half a character (a lone surrogate), which no file can hold.

    Args:
        text: Text from outside.
        name: What it is called in the message.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise DraftgymError(
            f"{name} has half a character ({half}, character {error.start + 1})",
            "write it as UTF-8 text; in JSON a character beyond \\uffff is a pair of escapes",
        ) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands in it twice")
    return body


def _umask() -> int:
    """The mask of new files; the system tells it only by setting another one."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
