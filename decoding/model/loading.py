"""From a folder or Hub id to a transformers model that holds all of its weights, and no others.

transformers fills missing weights with random numbers, leaves out those that a model has no place
for (the scales of quantised ones, an adapter), and says so in a report that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.agreement import check_agrees
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.settings import COMPACT_ROPES, SUPPORTED_MODELS, context_limit
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.compact.weights import extract_decoder
from draftgym.decoding.model.generic.spread import SHOWN, loading_options, parameters_of
from draftgym.decoding.model.prompts.text import one_line

LONGEST_CONTEXT = 1 << 22
"""Rotary angles of more positions would take gigabytes."""

REAL = ("F64", "F32", "F16", "BF16")
"""Types of tensors that are read as the numbers they store."""
COUNTED = ".num_batches_tracked"
"""What batch norms (of image towers) store beside numbers: a count of no effect."""

UNQUANTISED = (
    "name the folder or Hub id of the model in float32 or bfloat16, or a .gguf file, which is read "
    "as the numbers that it stands for"
)

PACKAGE = "its weights are quantised: install the package that is named, or " + UNQUANTISED

UNREADABLE = (
    "check the name, the folder's files (safetensors may be truncated) and, for a Hub id, the "
    "network"
)

DAMAGED = "download or convert the model again; its files are damaged or incomplete"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides transformers' progress bars and warnings; the user's own settings come back.

    What its warnings say of a model, `check_complete` says as an error.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    placing = getLogger("accelerate.big_modeling")  # where weights lie, we say ourselves
    level = placing.level
    placing.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        placing.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_config(source: str, who: str, compact: bool = True) -> Any:
    """The configuration of a model that we can run.

    Args:
        source: Folder or Hub id.
        who: What messages call the model, as in `target 'mine'`.
        compact: Whether the compact decoder must run it.

    Raises:
        DraftgymError: It cannot be read, or asks for what is not computed.
    """
    import transformers

    with _telling(who), quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if compact:
            check_supported(config, who)
    if (Path(source) / "adapter_config.json").is_file():
        raise DraftgymError(
            f"{who} holds an adapter (adapter_config.json), which would not be applied",
            "merge it into its base model (peft: merge_and_unload, then save_pretrained)",
        )
    return config


def load_model(
    source: str | None,
    config: Any,
    dtype: torch.dtype,
    who: str,
    tensors: dict[str, torch.Tensor] | None = None,
    places: str | dict[str, int | str] | None = None,
) -> Any:
    """Loads a transformers causal LM.

    Args:
        source: Folder or Hub id; None where `tensors` are given.
        config: Its configuration, from `load_config`.
        dtype: Dtype of its weights in memory.
        who: What messages call it, as in `target 'mine'`.
        tensors: Its weights, where they do not lie in a folder.
        places: Which of its modules go where, as transformers' `device_map`; default: all into the
            processor's memory.

    Raises:
        DraftgymError: The weights cannot be read, or are not those of the configuration, or the
            places are not those of its modules.
    """
    import transformers

    given: dict[str, Any] = {"state_dict": tensors} if tensors is not None else {}
    kinds = transformers.AutoModelForCausalLM._model_mapping
    if reads_images(config):
        kinds = transformers.AutoModelForImageTextToText._model_mapping
    if type(config) not in kinds or config.is_encoder_decoder:
        raise DraftgymError(
            f"{who} is a {config.model_type!r} model, which transformers has no causal LM for",
            "name a model that AutoModelForCausalLM or AutoModelForImageTextToText loads, and that "
            "is no encoder with a decoder",
        )
    method = quantisation(config)
    scratch = None  # for what stays on disk and is not stored as it is read
    if places is not None:
        scratch = TemporaryDirectory(prefix="draftgym-")
        given |= loading_options(places, scratch.name)
    remedy = PACKAGE if method else UNREADABLE if places is None else SHOWN
    with _telling(who, remedy), quiet_transformers():
        kind = kinds[type(config)]
        model, report = kind.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them, and then they are refused
            **given,
        )
        stored = _stored_types(source) if source and not method else {}
    if quantisation(model.config) and getattr(model, "hf_quantizer", None) is None:
        raise DraftgymError(
            f"the weights of {who} are quantised ({method}) in a way that transformers does not "
            "know",
            UNQUANTISED,
        )
    check_complete(report, who)
    for key, kind in stored.items():
        if kind not in REAL and not key.endswith(COUNTED):
            raise DraftgymError(
                f"{who} stores {key} as {kind}, which is no real number",
                "quantised weights mean nothing without what belongs to them: " + UNQUANTISED,
            )
    model.draftgym_scratch = scratch  # goes when the model goes
    return model


def read_decoder(
    model: Any,
    dtype: torch.dtype,
    who: str,
    products: Products,
    device: torch.device | None = None,
) -> Decoder:
    """The compact decoder of a loaded model, when it computes what the model computes.

    Args:
        model: A transformers causal LM.
        dtype: Dtype of the decoder.
        who: What messages call it, as in `target 'mine'`.
        products: How rows are multiplied with its weights.
        device: Where it shall compute; default: where the model lies.

    Raises:
        DraftgymError: The model is of another kind, damaged, or read otherwise by transformers.
    """
    check_supported(model.config, who)
    check_weights(model, who)
    check_agrees(model, who)
    return extract_decoder(model, dtype, products, device)


def check_supported(config: Any, who: str) -> None:
    """Raises `DraftgymError` when the model is not a rotary decoder that we can run."""
    kind = getattr(config, "model_type", "unknown")
    if kind not in SUPPORTED_MODELS:
        raise DraftgymError(
            f"the compact decoder knows no {kind!r} models such as {who}",
            f"name a causal LM of one of these kinds: {', '.join(SUPPORTED_MODELS)}",
        )
    if method := quantisation(config):
        raise DraftgymError(
            f"the weights of {who} are quantised ({method})",
            UNQUANTISED,
        )
    for scaling in _rope_types(config) - set(COMPACT_ROPES):
        why = ", whose angles change with the length" if scaling == "dynamic" else ""
        raise DraftgymError(
            f"{who} uses {scaling!r} rotary scaling{why}",
            f"name a target with {', '.join(COMPACT_ROPES)} rotary embedding",
        )
    if not 1 <= context_limit(config) <= LONGEST_CONTEXT:
        raise DraftgymError(
            f"the config.json of {who} gives it {context_limit(config)} positions",
            "set max_position_embeddings to the length of its training texts",
        )


def reads_images(config: Any) -> bool:
    """Whether a configuration is one of a model that reads images beside text."""
    import transformers

    return type(config) in transformers.AutoModelForImageTextToText._model_mapping


def quantisation(config: Any) -> str:
    """How a model's weights are quantised, as its configuration says; empty where they are not."""
    quantised = getattr(config, "quantization_config", None)
    if not quantised:
        return ""
    return str(quantised.get("quant_method") if isinstance(quantised, dict) else quantised)


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary embedding, of all types of layers."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    return {str(part.get("rope_type", part.get("type", "default"))) for part in nested or [rope]}


def check_complete(report: dict[str, Any], who: str) -> None:
    """Raises `DraftgymError` when the files held other tensors than the model has.

    Args:
        report: transformers' `output_loading_info`.
        who: What messages call it.
    """
    if missing := sorted(report["missing_keys"]):
        raise DraftgymError(
            f"the weights of {who} lack {missing[0]} ({len(missing)} tensors missing)",
            DAMAGED,
        )
    if extra := sorted(report["unexpected_keys"]):
        raise DraftgymError(
            f"the files of {who} hold {extra[0]} ({len(extra)} such tensors), for which "
            "the model of its config.json has no place",
            "quantised weights, adapters and extra modules are not run: name the plain model, or "
            "save it with save_pretrained after merging them",
        )
    if wrong := sorted(str(key) for key in report["mismatched_keys"]):
        raise DraftgymError(f"{wrong[0]} of {who} has another size", DAMAGED)


def check_weights(model: Any, who: str) -> None:
    """Raises `DraftgymError` when a weight is no real number, or NaN or infinite."""
    for key, weight in parameters_of(model):
        if quantisation(model.config) and not weight.is_floating_point():
            continue
        if not weight.is_floating_point() or weight.is_meta:
            raise DraftgymError(
                f"{who} holds {key} as {weight.dtype} on {weight.device}, not as numbers in memory",
                UNQUANTISED,
            )
        if not all_finite(weight):
            raise DraftgymError(f"{who} has NaN or infinite weights ({key})", DAMAGED)


def all_finite(weight: Tensor) -> bool:
    """Whether nothing is NaN or infinite, seen at the extremes: six times as fast as at each."""
    if not weight.numel():
        return True
    return bool(torch.isfinite(weight.amax())) and bool(torch.isfinite(weight.amin()))


def _stored_types(source: str) -> dict[str, str]:
    """In which type each tensor of a folder or Hub id lies on disk, as safetensors names them."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    folder = Path(source)
    if not folder.is_dir():  # what was loaded from the Hub lies beside its configuration
        folder = Path(str(cached_file(source, "config.json"))).parent
    found: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return found


@contextmanager
def _telling(who: str, remedy: str = UNREADABLE) -> Iterator[None]:
    """Turns what transformers raises (many kinds; each means "cannot load") into our error."""
    try:
        yield
    except DraftgymError:
        raise
    except Exception as error:
        raise DraftgymError(f"cannot load {who}: {one_line(error)}", remedy) from error
