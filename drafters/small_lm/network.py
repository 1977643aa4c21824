"""Small LMs on disk: ordinary Hugging Face folders, and the part of one that is worth shipping.

A folder holds a whole causal LM with its tokenizer, so that transformers takes it too
(`generate(assistant_model=...)`); our additions sit under the config key `draftgym`.

A distilled small LM shares embedding, head and tokenizer with its target, bit for bit, and for a
small model they are most of the bytes. So it ships as a *part*: the same folder without them.
`load_small_lm` fills the gap from the target in memory, and

    draftgym unpack-small-lm checkpoints/small-lm-smollm2-135m runs/small-lm-full

writes the whole folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from safetensors.torch import save_file
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing
from draftgym.decoding.model.compact.compiled.passes import compiled_pass
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.settings import SUPPORTED_MODELS, context_limit
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.fingerprint import fits, other_target
from draftgym.decoding.model.loading import load_config, load_model, read_decoder
from draftgym.decoding.model.prompts.text import load_tokenizer
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.fitting import only_padding_differs
from draftgym.drafters.formats.files import WEIGHTS, read_tensors
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.drafters.small_lm.vocabulary import (
    SIZE,
    among,
    read_draft_ids,
    with_rows,
    write_draft_ids,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def small_lm_architectures() -> tuple[str, ...]:
    """Names in `config.json` that mean an ordinary causal LM which can draft."""
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return tuple(names[kind] for kind in SUPPORTED_MODELS)


def save_small_lm(
    network: Any, folder: Path, target: Target, draft_ids: Tensor | None = None
) -> None:
    """Writes a small LM in bfloat16 with the target's tokenizer; a kill leaves older files whole.

    Args:
        network: The transformers causal LM.
        folder: Where to.
        target: What it was distilled from; its name and fingerprint are recorded.
        draft_ids: The tokens that it drafts, ascending `[Vd]`; None for all.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    network.config.draftgym = {"target": target.name, "target_fingerprint": target.fingerprint}
    if draft_ids is not None:
        network.config.draftgym[SIZE] = len(draft_ids)
    weights = {
        name: to_host(value.to(torch.bfloat16)) for name, value in network.state_dict().items()
    }
    if network.config.tie_word_embeddings:
        weights.pop(HEAD)
    network.save_pretrained(partial, state_dict=weights)
    config = copy(network.config)
    config.dtype = torch.bfloat16  # that call wrote the dtype in which the network is trained
    config.save_pretrained(partial)
    if draft_ids is not None:
        write_draft_ids(partial, draft_ids, config.vocab_size)
    if target.tokenizer is not None:
        target.tokenizer.save_pretrained(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(folder / path.name)  # what names the weights comes last
    partial.rmdir()


def load_small_lm(folder: Path, target: Target) -> SmallLMDrafter:
    """Loads a causal LM, whole or in part, as a drafter for `target`.

    Raises:
        DraftgymError: Missing or damaged files, an unsupported model, another vocabulary, a part of
            another target's small LM, or angles that change before the target's texts end.
    """
    model = read_small_lm(folder, target)
    _check_vocabulary(folder, model, target)
    rows = model.get_output_embeddings().weight.shape[0]
    draft_ids = among(read_draft_ids(folder, model.config), rows, target.vocab_size)
    _pad_alike(model, target.vocab_size)
    # A drafter with a shorter context drafts badly beyond it, but its angles go on.
    limit = max(model.config.max_position_embeddings, target.context_limit)
    model.config.max_position_embeddings = limit
    if (reach := context_limit(model.config)) < target.context_limit:
        raise DraftgymError(
            f"small LM {folder} has other rotary angles beyond {reach} positions (longrope), and "
            f"target {target.name!r} has {target.context_limit}",
            "name a small LM with a rotary embedding that stays as it is",
        )
    products = Products(target.precision.packed)
    dtype, device = target.decoder.dtype, target.device
    decoder = read_decoder(model, dtype, _called(folder), products, device)
    if draft_ids is not None:
        draft_ids = draft_ids.to(device)
        decoder = with_rows(decoder, draft_ids, products)
    drafter = SmallLMDrafter(
        decoder, rope_parameters=model.config.rope_parameters, draft_ids=draft_ids
    )
    if target.precision.compiles:
        decoder.compiled, why = compiled_pass(decoder, target.precision.threads)
        drafter.compiling = why.removeprefix("; ")
    return drafter


def read_small_lm(folder: Path, target: Target) -> Any:
    """The transformers model in a folder; what a part lacks is taken from the target."""
    config = load_config(str(folder), _called(folder))
    if not getattr(config, "draftgym", {}).get("shares_embedding"):
        return load_model(str(folder), config, target.decoder.dtype, _called(folder))
    _check_origin(folder, config.draftgym, target)
    tensors = read_tensors(folder) | _shared(target, config)
    return load_model(None, config, target.decoder.dtype, _called(folder), tensors)


def _called(folder: Path) -> str:
    return f"small LM {folder}"


def pack_small_lm(folder: Path, part: Path, target: Target) -> None:
    """Writes the part of a small LM that is not its target's.

    Raises:
        DraftgymError: Its embedding or head is not the target's, bit for bit.
    """
    config = load_config(str(folder), _called(folder))
    tensors = read_tensors(folder)
    for name, value in _shared(target, config).items():
        if name not in tensors or not torch.equal(tensors.pop(name), value):
            raise DraftgymError(
                f"{folder}: {name} is not that of target {target.name!r}",
                "ship the whole folder, or name the target it was distilled from",
            )
    part.mkdir(parents=True, exist_ok=True)
    if (draft_ids := read_draft_ids(folder, config)) is not None:
        write_draft_ids(part, draft_ids, config.vocab_size)
    config.dtype = torch.bfloat16
    config.draftgym = config.draftgym | {"shares_embedding": True}
    with replacing(part / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    config.save_pretrained(part)
    generation = folder / "generation_config.json"
    if generation.is_file():
        (part / generation.name).write_bytes(generation.read_bytes())


def assemble_small_lm(part: Path, folder: Path, target: Target) -> None:
    """Writes the whole, ordinary folder of a part: bit for bit what was packed."""
    network = read_small_lm(part, target)
    save_small_lm(network, folder, target, read_draft_ids(part, network.config))


def _shared(target: Target, config: Any) -> dict[str, Tensor]:
    """The tensors that a part leaves out, in bfloat16."""
    names = {EMBEDDING: target.decoder.embedding}
    if not config.tie_word_embeddings:
        names[HEAD] = target.decoder.head
    return {name: to_host(value.to(torch.bfloat16)) for name, value in names.items()}


def _check_origin(folder: Path, made_for: dict[str, Any], target: Target) -> None:
    """Raises `DraftgymError` for a part of another target's small LM."""
    wanted = made_for.get("target_fingerprint")
    if not fits(wanted, target):
        raise other_target(
            f"small LM {folder} (a part of one)",
            wanted,
            target,
            "draftgym.target_fingerprint in its config.json",
            f"load target {made_for.get('target')!r}, or assemble a whole folder with it: "
            f"draftgym unpack-small-lm {folder} FOLDER --target NAME",
        )


def _pad_alike(model: Any, rows: int) -> None:
    """Gives both tables of a model so many rows; new ones are zeros."""
    before = model.get_input_embeddings().weight.shape[0]
    if before == rows:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[before:] = 0


def _check_vocabulary(folder: Path, model: Any, target: Target) -> None:
    """Raises `DraftgymError` unless token ids mean the same to both models."""
    remedy = f"name a causal LM with the vocabulary of {target.name!r}, or distil one: "
    remedy += f"train_drafter.py small-lm --target {target.name}"
    rows = model.get_output_embeddings().weight.shape[0]
    other = DraftgymError(
        f"small LM {folder} has {rows} tokens, target {target.name!r} has {target.vocab_size}",
        remedy,
    )
    if not only_padding_differs(rows, target):
        raise other
    if target.tokenizer is None:
        return
    if not (folder / "tokenizer.json").is_file():
        if rows != target.vocab_size:
            raise other
        return
    tokenizer = load_tokenizer(str(folder), _called(folder))
    if tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise DraftgymError(
            f"small LM {folder} lacks the tokens of target {target.name!r} and has other ones",
            remedy,
        )


@dataclass(frozen=True)
class AssembleArgs:
    """Writes the whole Hugging Face folder of a shipped part."""

    part: tyro.conf.Positional[Path]
    """The shipped folder; with --pack, the whole one."""
    folder: tyro.conf.Positional[Path]
    """Where to write."""
    target: str = "smollm2-135m"
    """What it was distilled from."""
    pack: bool = False
    """The other way round: write the part of a whole folder."""


def assemble_from(args: AssembleArgs) -> None:
    """Converts one form into the other."""
    target = load_target(args.target, "bfloat16", device="cpu")
    (pack_small_lm if args.pack else assemble_small_lm)(args.part, args.folder, target)
    print(args.folder)


def main(arguments: Sequence[str]) -> None:
    """`draftgym unpack-small-lm`."""
    assemble_from(
        tyro.cli(AssembleArgs, args=arguments, description=__doc__, prog="draftgym unpack-small-lm")
    )
