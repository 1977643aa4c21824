"""Split GGUF files: the parts that a large model is published in, read as the one file they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.gguf.header import unreadable
from draftgym.decoding.model.prompts.text import one_line

NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How llama.cpp names parts, from 1 on."""


def parts_of(path: Path) -> list[Path]:
    """All parts of the model that `path` is a part of, in order; `path` alone where it is whole.

    Raises:
        DraftgymError: A part does not lie beside it.
    """
    named = NAME.fullmatch(path.name)
    count = int(named["count"]) if named else 1
    if named is None or count < 2:
        return [path]
    parts = [
        path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise DraftgymError(
            f"{path.name} is one of {count} parts, and {missing[0]} does not lie beside it",
            "put all parts into one folder under the names they were published with",
        )
    return parts


def join(parts: Sequence[Path], whole: Path) -> None:
    """Writes the parts of a split file as one.

    Args:
        parts: All of them, in order; the first has the metadata.
        whole: The file to write.

    Raises:
        DraftgymError: A part cannot be read, or they do not belong together.
    """
    import gguf

    try:
        readers = [gguf.GGUFReader(part) for part in parts]
        numbers = [_number(reader, "split.no") for reader in readers]
        first = readers[0]
        writer = gguf.GGUFWriter(
            whole, first.fields["general.architecture"].contents(), endianess=first.endianess
        )
        copy_metadata(first, writer)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        for one in tensors:
            data = one.data
            writer.add_tensor_info(one.name, data.shape, data.dtype, data.nbytes, one.tensor_type)
        expected = _number(first, "split.tensors.count")
    except Exception as error:  # the reader raises nearly anything on a damaged file
        raise unreadable(parts[0], one_line(error)) from error
    if numbers != list(range(len(parts))) or len(tensors) != expected:
        raise unreadable(
            parts[0],
            f"its parts call themselves {numbers} and hold {len(tensors)} tensors of {expected}",
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in tensors:
        writer.write_tensor_data(one.data, tensor_endianess=first.endianess)
    writer.close()


def copy_metadata(reader: Any, writer: Any, *but: str) -> None:
    """Writes a file's metadata into another one, without what is said of its parts.

    Args:
        reader: A `GGUFReader`.
        writer: A `GGUFWriter`, which has the architecture already.
        *but: Keys that are left out.
    """
    import gguf

    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "split.")) or key in ("general.architecture", *but):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, inner)


def _number(reader: object, key: str) -> int:
    return int(reader.fields[key].contents())  # type: ignore[attr-defined]
