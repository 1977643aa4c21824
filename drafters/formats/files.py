"""A checkpoint folder on disk: `config.json` beside `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftgym.decoding import files
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing, write_json
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, own_json

WEIGHTS = "model.safetensors"
OLD_WEIGHTS = "pytorch_model.bin"  # of the first published heads


def read_json(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder.

    Raises:
        DraftgymError: It is missing or damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise DraftgymError(
            f"no drafter checkpoint at {folder}", "train one with draftgym train-drafter"
        )
    return files.read_json(path, "copy the checkpoint again")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder, as stored, of one file or several.

    Raises:
        DraftgymError: They are missing or damaged.
    """
    loaded: dict[str, Tensor] = {}
    for path in weight_files(folder):
        loaded |= _load(path)
    return loaded


def tensor_names(folder: Path) -> list[str]:
    """The names of its tensors; none where they cannot be read, which reading them says better."""
    try:
        names: list[str] = []
        for path in weight_files(folder):
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as opened:
                    names += opened.keys()
            else:
                names += _load(path)
    except (DraftgymError, OSError, SafetensorError):
        return []
    return names


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors.

    Raises:
        DraftgymError: An index of several files is damaged, or names one that is not there.
    """
    for name in (WEIGHTS, OLD_WEIGHTS):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name]
        if index.is_file():
            return _of_index(index)
    return [folder / WEIGHTS]


def _of_index(index: Path) -> list[Path]:
    """The files that an index names."""
    remedy = "copy the checkpoint again, all its files"
    named = files.read_json(index, remedy).get("weight_map")
    parts = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    missing = [part for part in parts if not (index.parent / Path(part).name).is_file()]
    if missing or not parts:
        raise DraftgymError(f"{index} names {missing[0] if missing else 'no file'}", remedy)
    return [index.parent / Path(part).name for part in parts]


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        # Never unpickles more than tensors: a checkpoint must not be able to run code.
        safe = path.suffix == ".safetensors"
        loaded = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DraftgymError(
            f"cannot read {path}: {(str(error) or repr(error)).splitlines()[0]}",
            "the file is damaged or missing; copy it again",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DraftgymError(f"{path} does not hold named tensors", "copy the checkpoint again")
    return {str(name): value for name, value in loaded.items()}


def check_new_folder(folder: Path) -> None:
    """Raises `DraftgymError` unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DraftgymError(f"{folder} exists already", "name a new folder")


def write_contents(contents: Contents, folder: Path, form: CheckpointFormat) -> None:
    """Writes a checkpoint folder: weights first, then what names them; a kill tears no file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {form.outer(name): value.contiguous() for name, value in contents.tensors.items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    body = form.write(contents) | {"draftgym": own_json(contents)}
    write_json(folder / "config.json", body)
