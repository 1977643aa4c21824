"""What a GGUF file says of its model, and transformers' reader does not read.

Rotary scaling, the window, the end of a turn, other parts of the same model: a file whose metadata
is left out loads, and speaks as another model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.text import one_line

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
"""Models that files are converted of, as llama.cpp calls them."""

UNREAD = (
    "expert_count",
    "logit_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "residual_scale",
    "embedding_scale",
    "swiglu_clamp_exp",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.sliding_window_pattern",
    "rope.dimension_count_swa",
    "rope.freq_base_swa",
    "rope.dimension_sections",
    "rope.scaling.alpha",
    "rope.scaling.yarn_log_multiplier",
)
"""Keys that change what a model computes, and that no configuration we write would carry."""

FREQUENCIES = "rope_freqs.weight"
"""A tensor with which llama.cpp divides the rotary frequencies: Llama 3's scaling."""

REMEDY = (
    "download the file again; if it is whole, its architecture or quantisation may be unknown to "
    "this transformers release, so name the model's Hugging Face folder instead"
)


@dataclass(frozen=True)
class GGUFHeader:
    """A file's metadata.

    Attributes:
        path: The file.
        architecture: As llama.cpp calls it.
        values: Metadata that are no lists, by key; keys of the architecture without its prefix.
        tensors: Names of its tensors.
        frequencies: Divisors of the rotary frequencies `[D / 2]`, where it has them.
    """

    path: Path
    architecture: str
    values: dict[str, Any]
    tensors: frozenset[str]
    frequencies: Tensor | None


def read_header(path: Path) -> GGUFHeader:
    """Reads a GGUF file's metadata.

    Raises:
        DraftgymError: It cannot be read, is part of a split file (`parts.join`), or its model is
            one that we cannot run.
    """
    import gguf  # takes half a second, and most runs find their folder ready made

    try:
        reader = gguf.GGUFReader(path)
        values = {
            key: field.contents()
            for key, field in reader.fields.items()
            if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
        }
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        divisors = tensors.get(FREQUENCIES)
        frequencies = None if divisors is None else torch.from_numpy(np.array(divisors.data))
        architecture = str(values["general.architecture"])
    except Exception as error:  # the reader raises nearly anything on a damaged file
        raise unreadable(path, one_line(error)) from error
    prefix = f"{architecture}."
    values = {key.removeprefix(prefix): value for key, value in values.items()}
    header = GGUFHeader(path, architecture, values, frozenset(tensors), frequencies)
    _check(header)
    return header


def check_tensors(header: GGUFHeader, parameters: Iterable[str]) -> None:
    """Raises `DraftgymError` when the file holds tensors that are not the model's.

    Args:
        header: The file.
        parameters: Names of the model's parameters in transformers.
    """
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[header.architecture], _layers(header))
    known = {FREQUENCIES}
    for parameter in parameters:
        stem, _, suffix = parameter.rpartition(".")
        known.add(f"{names.get_name(stem)}.{suffix}")
    if left := sorted(header.tensors - known):
        raise unreadable(
            header.path, f"{left[0]} ({len(left)} such tensors) has no place in the model"
        )


def rope_parameters(header: GGUFHeader, head_dim: int) -> dict[str, Any] | None:
    """The rotary scaling of a file, as transformers names it; None where there is none.

    Args:
        header: The file.
        head_dim: Size of an attention head.

    Raises:
        DraftgymError: It is a scaling that the configuration cannot carry.
    """
    values = header.values
    theta = float(values.get("rope.freq_base", 10000.0))
    kind, factor = values.get("rope.scaling.type", "none"), values.get("rope.scaling.factor")
    if factor is None and "rope.scale_linear" in values:  # as older files say it
        kind, factor = "linear", values["rope.scale_linear"]
    if header.frequencies is not None:
        return _llama3(header, header.frequencies, theta, head_dim)
    if kind == "none" or factor in (None, 0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(factor)}
    if kind == "yarn":
        return _yarn(header, theta, float(factor))
    raise unreadable(header.path, f"its rotary scaling {kind!r} is none that the pass computes")


def window(header: GGUFHeader) -> int | None:
    """How many positions a token attends to at most; None where it attends to all.

    Where only some layers have a window, as Gemma's, the configuration carries it.
    """
    if header.architecture == "gemma3":
        return None
    found = header.values.get("attention.sliding_window")
    return int(found) or None if isinstance(found, int) else None


def end_tokens(header: GGUFHeader) -> list[int]:
    """Ids that end a text: end of text, of a turn, of a message; sorted."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = {header.values.get(f"tokenizer.ggml.{key}") for key in keys}
    return sorted(int(token) for token in found if token is not None)


def unreadable(path: Path, why: object) -> DraftgymError:
    """The error for a file that cannot be converted."""
    reason = " ".join(str(why).split())[:300]
    return DraftgymError(f"{path} cannot be converted: {reason}", REMEDY)


def _check(header: GGUFHeader) -> None:
    if int(header.values.get("split.count", 0)) > 1:
        which = f"{int(header.values.get('split.no', 0)) + 1} of {header.values['split.count']}"
        raise DraftgymError(
            f"{header.path} is part {which} of a split GGUF file",
            "put all parts into one folder under the names they were published with "
            "(MODEL-00001-of-00003.gguf), and name one of them",
        )
    if header.architecture not in ARCHITECTURES:
        raise DraftgymError(
            f"{header.path} holds a {header.architecture!r} model",
            f"name a causal LM of one of these kinds: {', '.join(ARCHITECTURES)}",
        )
    for key in UNREAD:
        if header.values.get(key):
            raise unreadable(header.path, f"it sets {key}, which the pass does not compute")
    if not isinstance(header.values.get("block_count"), int) or _layers(header) < 1:
        raise unreadable(header.path, "it does not say how many layers it has")


def _layers(header: GGUFHeader) -> int:
    return int(header.values["block_count"])


def _yarn(header: GGUFHeader, theta: float, factor: float) -> dict[str, Any]:
    """YaRN with the settings that llama.cpp and transformers share."""
    said = {
        key.removeprefix("rope.scaling."): value
        for key, value in header.values.items()
        if key.startswith("rope.scaling.")
    }
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if said.get(key, 1.0) != 1.0:
            raise unreadable(header.path, f"its rotary scaling sets {key}, which is not carried")
    trained = said.get("original_context_length")
    if trained is None:
        raise unreadable(header.path, "its rotary scaling does not say the original context")
    scaling = {"rope_type": "yarn", "rope_theta": theta, "factor": factor}
    scaling["original_max_position_embeddings"] = int(trained)
    betas = ("beta_fast", "beta_slow")
    return scaling | {key: float(said[f"yarn_{key}"]) for key in betas if f"yarn_{key}" in said}


def _llama3(header: GGUFHeader, divisors: Tensor, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, whose factor is all that its releases vary; checked against the file."""
    import transformers

    scaling = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": round(float(divisors.max()), 3),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    config = transformers.LlamaConfig(
        head_dim=head_dim, rope_parameters=scaling, max_position_embeddings=131072
    )
    meant, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, None)
    if divisors.shape != plain.shape or not torch.allclose(plain / meant, divisors, rtol=1e-3):
        raise unreadable(header.path, f"its {FREQUENCIES} are not those of Llama 3's scaling")
    return scaling
