"""GGUF files of a target's weights, for engines that read nothing else.

Beside the file as it was published stand copies with the numbers that it stands for, each made once
in the user's cache. They are rounded to bfloat16 as those of the target's folder are, so that all
engines have the same weights (but for Gemma's norms, which readers add one to).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.embedded import (
    EMBEDDED_TARGETS,
    cache_folder,
    embedded_gguf,
    keep_gguf,
    made_once,
)
from draftgym.decoding.model.few_bits import form_of
from draftgym.decoding.model.gguf.conversion import check_gguf, say, sha256_of
from draftgym.decoding.model.gguf.header import FREQUENCIES, unreadable
from draftgym.decoding.model.gguf.parts import copy_metadata, parts_of
from draftgym.decoding.model.prompts.text import one_line
from draftgym.decoding.model.target import Target

DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What torch calls the numbers of files that are not quantised."""


@dataclass(frozen=True)
class GGUFFile:
    """A file of a target's weights.

    Attributes:
        path: Where it lies; of a split one, the first part.
        kind: How it holds them, as llama.cpp names that: `Q4_1`, `F32`.
    """

    path: Path
    kind: str

    @property
    def weights(self) -> str:
        """The same, with dtypes as torch names them."""
        return DENSE.get(self.kind, self.kind)


def check_source(target: str, given: Path | None) -> None:
    """Raises `DraftgymError` unless there is a GGUF file of a target's weights.

    Args:
        target: What the user calls it.
        given: The user's own file.
    """
    name, _ = form_of(target)
    if given is not None:
        check_gguf(user_path(given))
    elif name not in EMBEDDED_TARGETS and user_path(name).suffix != ".gguf":
        raise DraftgymError(
            f"llama.cpp and openvino-genai read GGUF files, and target {target!r} is none",
            "name a GGUF file of the same model with --against-gguf (llama.cpp's "
            "convert_hf_to_gguf.py makes one of a Hugging Face folder)",
        )


def weight_files(target: Target, given: Path | None, *dense: str) -> list[GGUFFile]:
    """Files of a target's weights: with its very numbers first, then as published.

    Of a target in few bits only the one as published: no file has its numbers.

    Args:
        target: The target.
        given: The user's own file, which is then the only one.
        *dense: How the first ones hold the numbers, `F32` or `F16`.

    Raises:
        DraftgymError: There is no such file, or it is not one of this target.
    """
    check_source(target.name, given)
    name, form = form_of(target.name)
    if given is not None:
        path = user_path(given)
    else:
        path = embedded_gguf(name) if name in EMBEDDED_TARGETS else user_path(name)
    parts = parts_of(path)
    published = GGUFFile(parts[0], _kind(parts[0], target))
    if given is not None or form:
        return [published]
    made = [GGUFFile(_unpacked(parts, kind), kind) for kind in dense if kind != published.kind]
    return [*made, published]


def _kind(path: Path, target: Target) -> str:
    """How a file holds the target's weights."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        told = reader.fields.get("general.file_type")
        rows = [int(one.shape[-1]) for one in reader.tensors if one.name == "token_embd.weight"]
        if told is not None:
            kind = gguf.LlamaFileType(told.contents()).name
        else:  # then it is called after its largest tensor
            kind = max(reader.tensors, key=lambda one: int(one.n_bytes)).tensor_type.name
    except Exception as error:  # the reader raises nearly anything on a damaged file
        raise unreadable(path, one_line(error)) from error
    if rows and rows[0] != target.vocab_size:
        raise DraftgymError(
            f"{path} holds a model of {rows[0]} tokens, and target {target.name!r} has "
            f"{target.vocab_size}",
            "name a GGUF file of the very same model with --against-gguf",
        )
    return str(kind).removeprefix("ALL_").removeprefix("MOSTLY_")


def _unpacked(parts: Sequence[Path], dense: str) -> Path:
    """The copy of a file that holds the numbers themselves."""
    digest = sha256_of(*parts)
    name = f"{parts[0].stem}-{digest[:16]}-{dense}"

    def make(folder: Path, scratch: Path) -> None:
        say(f"writing {name}.gguf for other engines (once)")
        _unpack(parts, scratch / f"{name}.gguf", dense)
        keep_gguf(scratch / f"{name}.gguf", folder, digest)

    return made_once(cache_folder() / "gguf" / name, digest, make) / f"{name}.gguf"


def _unpack(parts: Sequence[Path], whole: Path, dense: str) -> None:
    """Writes a file anew, tensor by tensor, with all that it says of itself."""
    import gguf

    half = dense == "F16"
    kind = gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32
    try:
        readers = [gguf.GGUFReader(part) for part in parts]
        architecture = readers[0].fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(whole, architecture)
        copy_metadata(readers[0], writer, "general.file_type")
        writer.add_file_type(kind)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        for one in tensors:
            size, dtype = [int(n) for n in reversed(one.shape)], _dtype(one, half)
            writer.add_tensor_info(one.name, size, dtype, int(one.n_elements) * dtype.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            writer.write_tensor_data(_numbers(one).astype(_dtype(one, half)))
        writer.close()
    except (KeyError, NotImplementedError, ValueError) as error:
        raise unreadable(parts[0], one_line(error)) from error


def _dtype(tensor: Any, half: bool) -> np.dtype[Any]:
    """Of a tensor of the copy; vectors stay in float32, as engines expect them."""
    return np.dtype(np.float16 if half and len(tensor.shape) > 1 else np.float32)


def _numbers(tensor: Any) -> NDArray[np.float32]:
    """The numbers that a tensor stands for, as the target's folder holds them."""
    import gguf

    numbers = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if tensor.name == FREQUENCIES:  # no weight: a table, which the folder has in its settings
        return numbers
    return torch.from_numpy(numbers).bfloat16().float().numpy()
