"""Fingerprints: short hashes of all that a model computes with, the same in every dtype.

Drafters, policies, traces, corpora and costs carry the target's, so that what was made for one
target is not taken for another's. Every weight counts (floats rounded to bfloat16), and so do the
sizes, the norms' epsilon and the rotary settings. The tokenizer and the stop tokens do not.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import keep_text
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.embedded import cache_folder
from draftgym.decoding.model.generic.spread import state_of
from draftgym.decoding.model.interface import DecoderShape
from draftgym.decoding.model.precision import usable_cores

DIGITS = 32
WORTH_REMEMBERING = 1 << 26
"""Bytes; hashing smaller files takes no time."""
SAMPLED_DIGITS = 16
"""Fingerprints of versions up to 0.2: they read a sample of the weights, none of attention."""
NO_SAY = frozenset(
    {"dtype", "torch_dtype", "transformers_version", "architectures", "use_cache", "_name_or_path"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "attn_implementation", "tokenizer_class"}
    | {"_attn_implementation", "_experts_implementation", "experts_implementation"}
)
"""Settings of a configuration that change nothing that a model computes for a token."""

WHOLE_ROTATION = ("partial_rotary_factor", 1.0)
"""What goes without saying."""


class Fingerprinted(Protocol):
    """A loaded target, or what is known of one that is not."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def fingerprint(self) -> str:
        """Hash of its weights."""


def fits(carried: object, target: Fingerprinted) -> bool:
    """Whether what carries a fingerprint was made for a target, or for that it is rounded from.

    Drafters and policies serve both. Traces, corpora and costs hold one target's texts or times.
    """
    rounded_from = getattr(target, "rounded_from", "")
    return carried == target.fingerprint or (bool(rounded_from) and carried == rounded_from)


def fingerprint(
    decoder: Decoder, rope_parameters: Mapping[str, Any], files: WeightFiles | None = None
) -> str:
    """The fingerprint of a decoder.

    Args:
        decoder: Its weights and sizes.
        rope_parameters: Rotary settings of its config.
        files: Where the weights were read from, if from files: these are hashed once only.
    """
    weights = lambda: _weights(decoder)  # noqa: E731
    return plain_fingerprint(decoder.shape, rope_parameters, weights, files)


def plain_fingerprint(
    shape: DecoderShape,
    rope_parameters: Mapping[str, Any],
    weights: Callable[[], Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]],
    files: WeightFiles | None = None,
) -> str:
    """The same of weights as the compact decoder names them, of which few need be in memory.

    Args:
        shape: Sizes of the decoder.
        rope_parameters: Rotary settings of its config.
        weights: Gives them by name.
        files: Where the weights are read from, if from files: these are hashed once only.
    """
    facts = settings(shape) | {"rope": plain_rope(rope_parameters)}
    known = files.known() if files else None
    found = known or hash_tensors(weights())
    if files and not known:
        files.keep(found)
    return hash_facts(facts, found)


def generic_fingerprint(model: Any, files: WeightFiles | None = None) -> str:
    """The fingerprint of a transformers model: all of its weights, and what its configuration asks.

    Args:
        model: A causal LM.
        files: Where the weights were read from, if from files: these are hashed once only.
    """
    config = model.config.get_text_config()
    facts = _told_by(config) | {"model_type": config.model_type}
    if config is not model.config:  # the language model of one that also sees or hears
        facts["beside"] = _told_by(model.config)
    known = files.known("transformers") if files else None
    weights = known or hash_tensors(state_of(model))
    if files and not known:
        files.keep(weights, "transformers")
    return hash_facts(facts, weights)


def _told_by(config: Any) -> dict[str, Any]:
    """What a configuration says that decides what is computed; its language model's part apart."""

    def having_a_say(said: dict[str, Any]) -> dict[str, Any]:
        return {
            key: having_a_say(value) if isinstance(value, dict) else value
            for key, value in said.items()
            if key not in NO_SAY
        }

    said: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    said.pop("text_config", None)
    return having_a_say(said)


def hash_facts(facts: Mapping[str, Any], weights: str) -> str:
    """The fingerprint of weights and of what else decides what they compute.

    Args:
        facts: Of JSON types; their order does not count.
        weights: From `hash_tensors`.
    """
    text = json.dumps([facts, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def hash_tensors(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors, hexadecimal.

    Args:
        tensors: By name. They may come one by one: none is kept. One under two names is read once,
            where it is still there.
    """
    threads = usable_cores()
    named = tensors.items() if isinstance(tensors, Mapping) else tensors
    known: dict[int, tuple[ReferenceType[Tensor], Future[str]]] = {}
    lines: list[tuple[str, tuple[int, ...], Future[str]]] = []
    with ThreadPoolExecutor(threads) as pool:  # hashlib lets other threads run
        waiting: deque[Future[str]] = deque()
        for name, tensor in named:
            before, digest = known.get(id(tensor), (None, None))
            if digest is None or before is None or before() is not tensor:
                digest = pool.submit(_digest, _plain_numbers(tensor))
                known[id(tensor)] = ref(tensor), digest
                waiting.append(digest)
            lines.append((name, tuple(tensor.shape), digest))
            if len(waiting) > threads:  # few rounded copies at a time
                waiting.popleft().result()
    text = "\n".join(
        f"{name} {shape} {found.result()}"
        for name, shape, found in sorted(lines, key=lambda line: line[0])
    )
    return hashlib.sha256(text.encode()).hexdigest()


def settings(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults.

    A field that a later version adds, with what was always meant as its default, so changes no
    fingerprint. Nor does one whose metadata say `in_fingerprint=False`.
    """
    return {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.metadata.get("in_fingerprint", True)
        and (field.default is MISSING or getattr(config, field.name) != field.default)
    }


def plain_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings without what has no say, in one form.

    Versions of transformers write `type` or `rope_type`, whole numbers or floats, and empty keys.
    """
    if any(isinstance(value, Mapping) for value in parameters.values()):  # per type of layer
        return {key: plain_rope(value) for key, value in parameters.items() if value}
    said = {key: value for key, value in parameters.items() if value is not None}
    kind = said.pop("rope_type", None) or said.get("type", "default")
    said.pop("type", None)
    if kind == "default":
        counts = {key: said[key] for key in ("rope_theta", "partial_rotary_factor") if key in said}
        said = {key: value for key, value in counts.items() if (key, value) != WHOLE_ROTATION}
    numbers = {k: float(v) if isinstance(v, int | float) else v for k, v in said.items()}
    return {"rope_type": kind, **numbers}


def is_sampled(text: object) -> bool:
    """Whether a fingerprint is one of versions up to 0.2, which did not read every weight."""
    return isinstance(text, str) and len(text) == SAMPLED_DIGITS


def other_target(
    what: str,
    carried: object,
    target: Fingerprinted,
    key: str,
    remedy: str,
    made_for: str = "another target",
) -> DraftgymError:
    """The error of something that was made for another target, or by an older version.

    Args:
        what: What it is (`drafter runs/mine`).
        carried: The fingerprint that it carries.
        target: The target at hand.
        key: Where the fingerprint is written (`draftgym.target_fingerprint in config.json`).
        remedy: What to do when it is another target.
        made_for: What it says that it was made for.
    """
    if is_sampled(carried):
        return DraftgymError(
            f"{what} carries the fingerprint {carried} of an older version, which read only a "
            "sample of the target's weights",
            f"if you know that it was made for the weights of {target.name!r}, write "
            f"{target.fingerprint} as {key}; otherwise {remedy}",
        )
    return DraftgymError(
        f"{what} was trained for {made_for} (fingerprint {carried}, {target.name!r} has "
        f"{target.fingerprint})",
        remedy,
    )


def sampled_fingerprint(decoder: Decoder) -> str:
    """What versions up to 0.2 called the decoder; response corpora of theirs carry it."""
    shape = decoder.shape
    names = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "eps")
    facts = ", ".join(f"{name}={getattr(shape, name)!r}" for name in names)
    digest = hashlib.sha256(f"DecoderShape({facts})".encode())
    sample = [decoder.embedding[::97], decoder.final_norm]
    sample += [
        tensor
        for layer in decoder.layers
        if layer.post_norm is not None  # as in all models that those versions ran
        for tensor in (layer.post_norm, layer.down[::61])
    ]
    for tensor in sample:
        digest.update(_plain_numbers(tensor))
    return digest.hexdigest()[:SAMPLED_DIGITS]


def weight_files(source: str) -> WeightFiles | None:
    """The files behind a folder or a Hub id, as far as they are on this disk."""
    folder = Path(source)
    try:
        if not folder.is_dir():
            import transformers

            config = transformers.utils.cached_file(source, "config.json", local_files_only=True)
            folder = Path(config).parent
        return WeightFiles(folder)
    except (OSError, TypeError, ValueError):  # nothing is remembered then
        return None


class WeightFiles:
    """The files of a model's folder, and the hash of the weights in them as remembered.

    It is kept in the user cache under path, size and times of every file that can change what is
    read from the folder, so that loading a target a second time hashes nothing.

    Args:
        folder: A Hugging Face folder; made before the model is loaded from it.
    """

    SUFFIXES = frozenset({".safetensors", ".bin", ".json", ".pt", ".pth"})

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = self._look()

    def known(self, kind: str = "") -> str | None:
        """The hash, or None if it is not known.

        Args:
            kind: Which of several ways to name the weights the hash goes by.
        """
        try:
            text = self._path(kind).read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        return text if len(text) == 64 else None

    def keep(self, weights: str, kind: str = "") -> None:
        """Remembers the hash, unless the files changed while they were read."""
        large = sum(size for _, _, size, *_ in self.found) >= WORTH_REMEMBERING
        if large and self._look() == self.found:
            keep_text(self._path(kind), weights)

    def _path(self, kind: str) -> Path:
        import transformers

        versions = (DIGITS, torch.__version__, transformers.__version__, *([kind] if kind else []))
        text = json.dumps([versions, self.found])
        name = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        return cache_folder() / "fingerprints" / name

    def _look(self) -> list[list[Any]]:
        paths = [path for path in self.folder.iterdir() if path.suffix in self.SUFFIXES]
        facts = [(path.name, path.resolve(), path.stat()) for path in sorted(paths)]
        return [
            [name, str(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            for name, real, stat in facts
        ]


def _weights(decoder: Decoder) -> dict[str, Tensor]:
    named = {
        "embedding": decoder.embedding,
        "head": decoder.head,
        "final_norm": decoder.final_norm,
    }
    for index, layer in enumerate(decoder.layers):
        named |= {
            f"{index}.{name}": value for name, value in vars(layer).items() if value is not None
        }
    return named


def _digest(numbers: memoryview) -> str:
    return hashlib.sha256(numbers).hexdigest()


def _plain_numbers(tensor: Tensor) -> memoryview:
    """The numbers in one order; floats rounded to bfloat16, whose bits they are."""
    tensor = tensor.detach().contiguous().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(torch.bfloat16).view(torch.int16)
    return tensor.numpy().data
