"""A checkpoint folder on disk: `config.json` beside `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
    """The tensors of a checkpoint folder, as stored.

    Raises:
        DraftgymError: They are missing or damaged.
    """
    old = folder / OLD_WEIGHTS
    path = old if old.is_file() and not (folder / WEIGHTS).exists() else folder / WEIGHTS
    try:
        # Never unpickles more than tensors: a checkpoint must not be able to run code.
        loaded = torch.load(path, "cpu", weights_only=True) if path == old else load_file(path)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DraftgymError(
            f"cannot read {path}: {(str(error) or repr(error)).splitlines()[0]}",
            "the file is damaged or missing; copy it again",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DraftgymError(f"{path} does not hold named tensors", "copy the checkpoint again")
    return dict(loaded)


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
