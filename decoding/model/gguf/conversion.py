"""GGUF files become ordinary Hugging Face folders: dequantised, saved in bfloat16, loaded again.

A folder appears under its name only when it is complete; everything else in the project sees a
local model folder like any other.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, write_json
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.gguf.header import (
    GGUFHeader,
    check_tensors,
    end_tokens,
    read_header,
    rope_parameters,
    unreadable,
    window,
)
from draftgym.decoding.model.loading import (
    check_complete,
    load_config,
    load_model,
    quiet_transformers,
    read_decoder,
)
from draftgym.decoding.model.prompts.text import load_tokenizer

# Written last into a converted folder: says where it came from and that nothing is missing.
PROVENANCE = "draftgym_source.json"

GEMMA3_27B_LAYERS = 62
"""Its queries are scaled otherwise than by their heads' size; no file says so, readers know it."""

FORMAT = 2
"""Of conversions: those of 1 left out rotary scaling, ends of a turn, and missing tensors."""


def convert_gguf(gguf: Path, folder: Path, digest: str | None = None) -> None:
    """Converts a GGUF file to a Hugging Face folder with bfloat16 weights.

    The folder appears under its name only when it is complete and has been loaded again: killing
    the conversion leaves at most a hidden `.partial` folder beside it. If another process made the
    same folder meanwhile, that one stays.

    Args:
        gguf: The file to read.
        folder: The folder to make; must not exist yet, or must hold the same conversion.
        digest: SHA-256 of what the file was made from; by default its own.

    Raises:
        DraftgymError: The file cannot be read, the folder is taken, or cannot be written.
    """
    check_gguf(gguf)
    digest = digest or sha256_of(gguf)
    if is_ready(folder, digest):
        return
    if folder.exists():
        raise DraftgymError(f"{folder} already exists", "name another folder, or delete this one")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    say(f"converting {gguf.name} to {folder}")
    with writing(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with _silence():
                _convert(gguf, partial)
                _check_loads(partial, gguf)
            write_provenance(partial, gguf, digest)
            try:
                partial.rename(folder)
            except OSError:
                if not is_ready(folder, digest):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_ready(folder: Path, digest: str, since: int = FORMAT) -> bool:
    """Whether `folder` is a complete conversion of the GGUF file with this SHA-256.

    Args:
        folder: The folder.
        digest: SHA-256 of the GGUF file.
        since: Conversions of older formats are made again.
    """
    try:
        provenance = read_json(folder / PROVENANCE, "convert it again")
    except DraftgymError:
        return False
    made = provenance.get("format", 1)
    return provenance.get("sha256") == digest and isinstance(made, int) and made >= since


def write_provenance(folder: Path, gguf: Path, digest: str) -> None:
    """Says in a folder which file it was made from; written last."""
    import transformers

    facts = {"file": gguf.name, "sha256": digest, "transformers": transformers.__version__}
    write_json(folder / PROVENANCE, facts | {"format": FORMAT})


def check_gguf(path: Path) -> None:
    """Refuses what is plainly no GGUF file before anything expensive happens."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DraftgymError(
            f"cannot read {path}: {error.strerror}", "name an existing .gguf file"
        ) from error
    if magic != b"GGUF":
        raise unreadable(path, "it does not start with the letters GGUF")


def sha256_of(*paths: Path) -> str:
    """SHA-256 of a file, or of several as one, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into an error that names the way out."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DraftgymError(
            f"cannot write {folder}: {error}",
            "set DRAFTGYM_CACHE to a folder that you may write, on a disk with room for the model",
        ) from error


def say(message: str) -> None:
    """Tells the user on standard error what takes long."""
    print(f"draftgym: {message}", file=sys.stderr, flush=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantises with transformers and saves weights and tokenizer into `folder`."""
    # transformers takes seconds to import, and most runs find their folder ready made.
    import transformers
    from transformers.utils import quantization_config

    header = read_header(gguf)
    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # Newer releases can keep the weights packed where a kernel is installed; these must be dense.
    config_class = getattr(quantization_config, "GgufConfig", None)
    packed = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    where = str(gguf.parent)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.bfloat16, output_loading_info=True, **options, **packed
        )
    except Exception as error:  # the readers raise nearly anything on a damaged file
        raise unreadable(gguf, error) from error
    check_complete(report, f"GGUF file {gguf.name}")
    check_tensors(header, model.state_dict())
    if len(tokenizer) > (rows := model.get_input_embeddings().weight.shape[0]):
        raise unreadable(gguf, f"{len(tokenizer)} tokenizer entries for {rows} embeddings")
    _carry_over(header, model)
    # The weights are plain tensors by now; these two leftovers make saving refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _carry_over(header: GGUFHeader, model: Any) -> None:
    """Sets what transformers leaves out of the file's metadata."""
    config = model.config
    if scaling := rope_parameters(header, model.model.layers[0].self_attn.head_dim):
        full = config.rope_parameters.get("full_attention")
        if full is None:
            config.rope_parameters = scaling
        else:  # layers with windows keep angles of their own
            full.update(scaling)
    if header.architecture == "gemma3" and config.num_hidden_layers == GEMMA3_27B_LAYERS:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if reach := window(header):
        config.max_position_embeddings = min(config.max_position_embeddings, reach)
    if ends := end_tokens(header):
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def _check_loads(folder: Path, gguf: Path) -> None:
    """Loads the converted folder as any target and runs a few tokens through it."""
    who = f"GGUF file {gguf.name}"
    model = load_model(str(folder), load_config(str(folder), who), torch.bfloat16, who)
    read_decoder(model, torch.bfloat16, who, Products())
    if not len(load_tokenizer(str(folder), who)("The capital of France is")["input_ids"]):
        raise unreadable(gguf, "its tokenizer makes no tokens of text")


@contextmanager
def _silence() -> Iterator[None]:
    """Hides transformers' bars and warnings, which here say nothing a user can act on."""
    # One of the bars ignores transformers' own switch for them.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        yield
