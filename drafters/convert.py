"""Convert a drafter checkpoint from one published format to another, bit for bit.

    $ draftgym convert checkpoints/eagle3-smollm2-135m out --format speculators \
        --target smollm2-135m --verifier HuggingFaceTB/SmolLM2-135M-Instruct
    $ draftgym convert out back --format eagle3

The source's format is seen from its config.json. docs/guides/checkpoints.md explains the formats.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.checkpoint import build_network, read_contents
from draftgym.drafters.eagle3.network import default_taps
from draftgym.drafters.fitting import check_fits, for_target, note_differences
from draftgym.drafters.formats import find_format
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, Origin
from draftgym.drafters.formats.files import check_new_folder, write_contents
from draftgym.drafters.modules import EMBEDDING, HEAD
from draftgym.drafters.vocabulary import from_d2t


@dataclass(frozen=True)
class ConvertArgs:
    """Settings of a conversion."""

    source: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder of any format."""
    destination: Annotated[Path, tyro.conf.Positional]
    """Folder to write; new, or empty."""
    format: Literal["eagle3", "dflash", "speculators"]
    """eagle3 (SafeAILab, SpecForge, SGLang), dflash (z-lab) or speculators (either kind; vLLM)."""
    target: str | None = None
    """The drafter's target. The speculators format copies its embedding and LM head."""
    verifier: str | None = None
    """Name of the target to record, where it is not --target (say, its Hub id)."""
    max_positions: int | None = None
    """New max_position_embeddings. vLLM does not rotate beyond it."""


def convert(args: ConvertArgs) -> None:
    """Reads `source`, checks it and writes `destination`.

    Raises:
        DraftgymError: Either folder is unusable, or the format cannot say what the source says.
    """
    check_new_folder(args.destination)
    target = load_target(args.target, "float32", device="cpu") if args.target else None
    contents = read_contents(args.source, target.decoder.shape.layers if target else None)
    form = find_format(args.format, contents.kind)
    if target is not None:
        contents = _fit(contents, args.source, target)
    else:
        build_network(contents, args.source)  # for its checks
    if args.verifier is not None:
        contents = replace(contents, origin=replace(contents.origin, name=args.verifier))
    contents = _with_positions(contents, args.max_positions, target)
    contents = translate(contents, form, target)
    write_contents(contents, args.destination, form)
    print(f"{args.destination}: {form.name} ({form.kind}), {contents.dtype}")


def translate(contents: Contents, form: CheckpointFormat, target: Target | None) -> Contents:
    """Gives some contents the tables that a format demands, and takes away those it has not.

    Raises:
        DraftgymError: A demanded table needs a target, or one would be lost.
    """
    copied = [name for name in contents.origin.copied if name in contents.tensors]
    tensors = {name: t for name, t in contents.tensors.items() if name not in copied}
    if target is None and set(copied) & set(form.demands):
        tensors, copied = contents.tensors, list(contents.origin.copied)
    for name in set(form.forbids) & set(tensors):
        known = "differs from the target's" if target else "may differ from the target's"
        raise DraftgymError(
            f"{name} {known}, and the {form.name} format has no place for it",
            "keep the speculators format" if target else "name the target with --target",
        )
    for name in form.demands:
        if name in tensors:
            continue
        if target is None:
            raise DraftgymError(
                f"the {form.name} format holds {name}, which {contents.kind} has not",
                "name the target with --target, to copy it from there",
            )
        tensors[name] = _table(name, contents, target)
        copied.append(name)
    kept = tuple(sorted(name for name in set(copied) if name in tensors))
    _note_silent_taps(contents, form)
    return replace(contents, tensors=tensors, origin=replace(contents.origin, copied=kept))


def _fit(contents: Contents, source: Path, target: Target) -> Contents:
    """Checks contents against their target, drops copies of its tables, records the target."""
    contents = for_target(contents, target)
    network = build_network(contents, source)
    check_fits(source, network, contents.origin, target)
    note_differences(source, network, target)
    origin = Origin.of(target)
    return replace(contents, origin=replace(origin, name=contents.origin.name or origin.name))


def _table(name: str, contents: Contents, target: Target) -> Tensor:
    """A copy of the target's embedding, or of the rows of its head that are drafted."""
    table = {EMBEDDING: target.decoder.embedding, HEAD: target.decoder.head}[name]
    if name == HEAD and "d2t" in contents.tensors:
        table = table[from_d2t(contents.tensors["d2t"])]
    return table.to(contents.tensors["fc.weight"].dtype, copy=True)


def _with_positions(contents: Contents, wanted: int | None, target: Target | None) -> Contents:
    config = contents.config
    if wanted is not None:
        if wanted < 1:
            raise DraftgymError(f"--max-positions is {wanted}", "give a positive number")
        return replace(contents, config=replace(config, max_position_embeddings=wanted))
    if target is not None and config.max_position_embeddings < target.context_limit:
        print(
            f"note: the drafter says {config.max_position_embeddings} positions, its target "
            f"{target.context_limit}; vLLM drafts badly beyond the former. "
            f"--max-positions {target.context_limit} raises it",
            file=sys.stderr,
        )
    return contents


def _note_silent_taps(contents: Contents, form: CheckpointFormat) -> None:
    """Native EAGLE-3 configs leave the tap layers to their default."""
    layers, taps = contents.origin.layers, contents.config.tap_layers
    if form.name == "eagle3" and layers is not None and taps != default_taps(layers):
        print(
            f"note: the eagle3 format cannot say the tap layers {list(taps)} to vLLM and SGLang, "
            f"which will use {list(default_taps(layers))}; serve the speculators format instead",
            file=sys.stderr,
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym convert`."""
    convert(tyro.cli(ConvertArgs, args=arguments, description=__doc__, prog="draftgym convert"))
