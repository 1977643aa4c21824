"""Whose pass runs a target: our own, or transformers'.

Our own is faster and knows few architectures. It is taken where it computes what transformers
computes, which is tried on a few tokens while the loaded model is in memory. OpenVINO, where it is
installed, compiles it for few rows; whether that pays is tried, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.compiled.passes import CompiledPass, compiled_pass
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.settings import (
    context_limit,
    decoder_shape,
    drafters_rope,
    longrope_reach,
)
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.compact.weights import spread_weights
from draftgym.decoding.model.fingerprint import (
    WeightFiles,
    fingerprint,
    generic_fingerprint,
    plain_fingerprint,
)
from draftgym.decoding.model.generic.spread import FETCHED, describe_spread, is_spread
from draftgym.decoding.model.interface import TargetDecoder
from draftgym.decoding.model.loading import (
    check_supported,
    check_weights,
    quantisation,
    read_decoder,
)
from draftgym.decoding.model.precision import Precision

Backend = Literal["auto", "compact", "openvino", "transformers"]
OWN = ("compact", "openvino")
"""Those that are our own pass, or nothing."""


@dataclass(frozen=True)
class ReadTarget:
    """What is read of a loaded model.

    Attributes:
        decoder: Its pass.
        context_limit: Most positions it can attend to.
        rope_parameters: Rotary settings of its config, or usual ones; drafters copy them.
        fingerprint: Hash of its weights.
        precision: In which numbers it computes, and how.
    """

    decoder: TargetDecoder
    context_limit: int
    rope_parameters: dict[str, Any]
    fingerprint: str
    precision: Precision


def check_backend(backend: str) -> None:
    """Raises `DraftgymError` for the name of no backend."""
    if backend not in get_args(Backend):
        raise DraftgymError(
            f"unknown backend {backend!r}", f"choose {', '.join(get_args(Backend))}"
        )


def read_target(
    model: Any,
    precision: Precision,
    who: str,
    backend: Backend = "auto",
    files: WeightFiles | None = None,
    form: str = "",
) -> ReadTarget:
    """Reads a loaded transformers model for the backend that is asked for.

    Args:
        model: A causal LM.
        precision: In which numbers it computes.
        who: What messages call it, as in `target 'mine'`.
        backend: See `Backend`; `auto` says on standard error why transformers drives it.
        files: Where it was just read from.
        form: In which few bits a compiled pass keeps its weights.

    Raises:
        DraftgymError: It is damaged, or cannot be run by the backend.
    """
    check_backend(backend)
    check_weights(model, who)
    read = _read(model, precision, who, backend, files, form)
    if longrope_reach(model.config.get_text_config()) == read.context_limit:
        print(
            f"note: texts of {who} end at {read.context_limit} positions; for longer ones it has "
            "other rotary angles (longrope), which transformers' generate() alone computes",
            file=sys.stderr,
        )
    return read


def check_one_device(who: str, ours: bool) -> None:
    """Raises `DraftgymError` where our own pass is asked for over several devices."""
    if ours:
        raise DraftgymError(
            f"{who} lies on several devices, where transformers' pass alone can follow it",
            "name one --device, or leave out --backend and the number of bits",
        )


def compact_fingerprint(
    model: Any, precision: Precision, who: str, files: WeightFiles | None
) -> str:
    """The fingerprint of a loaded model, whichever pass runs it.

    Args:
        model: A causal LM that the compact decoder knows.
        precision: In which numbers it computes.
        who: What messages call it.
        files: Where it was just read from.

    Raises:
        DraftgymError: The compact decoder cannot run it.
    """
    return _compact(model, replace(precision, device="cpu"), who, files).fingerprint


def _read(
    model: Any,
    precision: Precision,
    who: str,
    backend: Backend,
    files: WeightFiles | None,
    form: str,
) -> ReadTarget:
    if is_spread(model):
        check_one_device(who, bool(form) or backend in OWN)
        return _generic(model, precision, who, _spread_fingerprint(model, precision, who, files))
    if backend != "transformers":
        try:
            return _compiled(_compact(model, precision, who, files), backend, form)
        except DraftgymError as error:
            if backend in OWN or form:
                raise
            print(f"note: transformers drives {who} ({error.problem})", file=sys.stderr)
        return _generic(model, precision, who, generic_fingerprint(model, files))
    try:  # the same target, whichever pass runs it: drafters of the one fit the other
        found = compact_fingerprint(model, precision, who, files)
    except DraftgymError:
        found = generic_fingerprint(model, files)
    return _generic(model, precision, who, found)


def _spread_fingerprint(
    model: Any, precision: Precision, who: str, files: WeightFiles | None
) -> str:
    """The fingerprint that the model has as a whole, found without having all of it in memory.

    Where the compact decoder knows the architecture, it is trusted to read the model right.
    """
    try:
        check_supported(model.config, who)
    except DraftgymError:
        return generic_fingerprint(model, files)
    shape, rope = decoder_shape(model), model.config.rope_parameters
    weights = lambda: spread_weights(model, precision.torch_dtype)  # noqa: E731
    return plain_fingerprint(shape, rope, weights, files)


def _compiled(read: ReadTarget, backend: Backend, form: str) -> ReadTarget:
    """The same, its passes over few rows compiled: where that is faster, or was asked for."""
    decoder, precision = read.decoder, read.precision
    assert isinstance(decoder, Decoder)
    decoder.form, why = form, ""
    if backend == "openvino":
        decoder.compiled, why = CompiledPass(decoder, precision.threads), "; compiled (asked for)"
    elif backend == "auto" and precision.compiles:
        decoder.compiled, why = compiled_pass(decoder, precision.threads)
    compiles = decoder.compiled is not None
    told = replace(precision, compiles=compiles, reason=precision.reason + why)
    return replace(read, precision=told)


def _compact(model: Any, precision: Precision, who: str, files: WeightFiles | None) -> ReadTarget:
    products = Products(precision.packed)
    decoder: Decoder = read_decoder(
        model, precision.torch_dtype, who, products, precision.torch_device
    )
    rope = model.config.rope_parameters
    found = fingerprint(decoder, rope, files)
    return ReadTarget(decoder, context_limit(model.config), drafters_rope(rope), found, precision)


def _generic(model: Any, precision: Precision, who: str, found: str) -> ReadTarget:
    # Its modules import transformers, which takes seconds.
    from draftgym.decoding.model.generic.anatomy import dissect, generic_context_limit
    from draftgym.decoding.model.generic.check import check_drives
    from draftgym.decoding.model.generic.decoder import GenericDecoder

    divided = is_spread(model)
    if not divided and not quantisation(model.config):  # quantisers place what they load themselves
        model.to(precision.torch_device)
    model.eval().requires_grad_(False)
    parts = dissect(model, who)
    limit = generic_context_limit(parts.config, who)
    decoder = GenericDecoder(parts)
    if why := check_drives(decoder, limit, who, exact=not quantisation(model.config)):
        print(
            f"note: transformers' pass over {who} verifies chains, not trees: {why}",
            file=sys.stderr,
        )
    if divided:
        told = describe_spread(model, parts.layers)
        precision = replace(precision, device=str(decoder.device), spread=told)
        if FETCHED in told:
            print(f"note: {who} is slow where its weights do not stay ({told})", file=sys.stderr)
    rope = getattr(parts.config, "rope_parameters", None) or {}
    return ReadTarget(decoder, limit, drafters_rope(rope), found, precision)
