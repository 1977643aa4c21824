"""Makes a small target that reads images, for there is none to fetch.

    $ python -m benchmarks.multimodal.recipe --out runs/llava

EfficientNet-Lite0 (frozen, ImageNet weights) gives 7 x 7 = 49 image tokens, a two-layer MLP
projects them, and SmolLM2-135M-Instruct reads them among its text. First the MLP alone learns to
say in the language model's embeddings what is where; then it and the upper layers of the language
model learn from exact answers about the same scenes, which the program draws. The result in
`<out>/model` is an ordinary transformers folder. It is a weak model: it knows coloured shapes.

Interrupt the command whenever you like; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.multimodal.alignment import align, meaning_of
from benchmarks.multimodal.assemble import IMAGE, IMAGE_TOKENS, assemble
from benchmarks.multimodal.scenes import Scene, draw, make_scene
from benchmarks.multimodal.talks import Exchange, talk
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import replacing, write_text
from draftgym.decoding.model.embedded import embedded_target

TRAIN, HELD_OUT = 0, 1
"""First numbers of the seeds of scenes: to train on, and to ask about afterwards."""

PADDED = 32
"""Chats are padded to a multiple of so many tokens: batches of few shapes keep memory small."""


@dataclass(frozen=True)
class RecipeArgs:
    """How the target is made."""

    out: Path
    """Where: `model` in it is the target."""
    scenes: int = 1600
    """Scenes to learn from."""
    epochs: int = 40
    """Visits of each while the projector is aligned."""
    updates: int = 120
    """Updates on questions and answers."""
    batch_size: int = 8
    """Scenes of such an update."""
    exchanges: int = 3
    """Questions about each; others at each visit."""
    lr: float = 3e-4
    """Peak learning rate of the language model's layers; the projector's is `projector_lr`."""
    projector_lr: float = 3e-4
    """The same of the projector, once it is aligned."""
    layers: int = 15
    """Upper layers of the language model that learn, too."""
    save_every: int = 10
    """Updates between two saved states."""
    seed: int = 0
    """Of scenes, questions and the projector."""
    threads: int | None = None
    """CPU threads; default: all cores."""


@dataclass(frozen=True)
class Batch:
    """Talks about scenes, as token ids.

    Attributes:
        tokens: `[B, S]`, padded behind the end.
        learned: Which of them are answers `[B, S]`.
        grids: What the tower sees `[B, 49, 1280]`.
    """

    tokens: Tensor
    learned: Tensor
    grids: Tensor


def make_batch(processor: Any, talks: Sequence[Sequence[Exchange]], grids: Tensor) -> Batch:
    """Chats about scenes, the picture in the first turn; padding stands behind and is unlearned."""
    rows, marks = zip(*(_chat(processor, exchanges) for exchanges in talks), strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    tokens, learned = (pad(list(one), batch_first=True) for one in (rows, marks))
    room = (0, -tokens.shape[1] % PADDED)
    return Batch(F.pad(tokens, room), F.pad(learned, room), grids)


def _chat(processor: Any, exchanges: Sequence[Exchange]) -> tuple[Tensor, Tensor]:
    """Token ids of a chat, and which of them are answers with their ends."""
    messages: list[dict[str, Any]] = []
    for exchange in exchanges:
        asked: list[dict[str, str]] = [{"type": "text", "text": exchange.question}]
        shown = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*shown, *asked]})
        messages.append({"role": "assistant", "content": exchange.answer})
    text = processor.apply_chat_template(messages, tokenize=False)
    text = text.replace(IMAGE, IMAGE * IMAGE_TOKENS)
    opening, ending = "<|im_start|>assistant\n", "<|im_end|>"
    spans, at = [], 0
    while (at := text.find(opening, at)) >= 0:
        start = at + len(opening)
        at = text.find(ending, start) + len(ending)
        spans.append((start, at))
    encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned = [
        any(first <= start and stop <= last for first, last in spans)
        for start, stop in encoded["offset_mapping"]
    ]
    return torch.tensor(encoded["input_ids"]), torch.tensor(learned)


def talk_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answers' tokens; scores are computed for these alone."""
    images = model.model.multi_modal_projector(batch.grids.float())
    embedded = model.get_input_embeddings()(batch.tokens)
    shown = batch.tokens == model.config.image_token_id
    embedded = embedded.masked_scatter(shown[..., None], images.to(embedded.dtype))
    body = model.model.language_model(inputs_embeds=embedded, use_cache=False)
    hidden = body.last_hidden_state[:, :-1][batch.learned[:, 1:]]
    return F.cross_entropy(model.lm_head(hidden).float(), batch.tokens[:, 1:][batch.learned[:, 1:]])


def make_target(args: RecipeArgs) -> Path:
    """Trains what is missing and saves the target; returns its folder."""
    folder = args.out / "model"
    if (folder / "config.json").is_file():
        return folder
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model, processor = assemble(embedded_target())
    scenes = [make_scene(TRAIN, args.seed, index) for index in range(args.scenes)]
    grids = _grids(args, model, processor, scenes)
    groups = _learning(model, args)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    done = _resume(args, trainable, optimizer)
    if done is None:
        done = 0
        embedding = model.get_input_embeddings().weight
        meaning = meaning_of(scenes, processor.tokenizer, embedding)
        error = align(model.model.multi_modal_projector, grids, meaning, args.epochs, 2e-3)
        print(f"projector aligned, relative error {error:.3f}")
        _save_state(args, trainable, optimizer, 0)
    with (args.out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        bar = tqdm(range(done, args.updates), "training", args.updates, initial=done)
        for update in bar:
            batch = _batch(args, processor, scenes, grids, update)
            loss = _update(model, optimizer, args, update, batch)
            bar.set_postfix(loss=f"{loss:.3f}")
            metrics.write(json.dumps({"update": update, "loss": loss}) + "\n")
            if (update + 1) % args.save_every == 0:
                metrics.flush()
                _save_state(args, trainable, optimizer, update + 1)
    _save(args, model, processor, folder)
    return folder


def _save(args: RecipeArgs, model: Any, processor: Any, folder: Path) -> None:
    """Writes the finished target; the folder appears when it is whole."""
    partial = folder.with_name("model.partial")
    model.requires_grad_(False).to(torch.bfloat16).save_pretrained(partial)
    processor.save_pretrained(partial)
    write_text(partial / "README.md", CARD.format(**asdict(args)))
    partial.rename(folder)


@torch.no_grad()
def _grids(args: RecipeArgs, model: Any, processor: Any, scenes: Sequence[Scene]) -> Tensor:
    """What the tower sees of all scenes `[N, 49, 1280]`, kept for the next run."""
    path = args.out / "grids.pt"
    if path.is_file():
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        if kept["seed"] == args.seed and len(kept["grids"]) == len(scenes):
            return kept["grids"]  # type: ignore[no-any-return]
    rows = []
    for first in tqdm(range(0, len(scenes), 16), "looking at scenes"):
        pictures = [draw(scene) for scene in scenes[first : first + 16]]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        seen = model.model.vision_tower(pixels).last_hidden_state
        rows.append(seen.flatten(2).mT.to(torch.bfloat16))
    grids = torch.cat(rows)
    with replacing(path) as partial:
        torch.save({"seed": args.seed, "grids": grids}, partial)
    return grids


def _batch(
    args: RecipeArgs, processor: Any, scenes: Sequence[Scene], grids: Tensor, update: int
) -> Batch:
    """What an update learns from: its number decides it."""
    size, epoch_size = args.batch_size, len(scenes) // args.batch_size
    epoch, place = divmod(update, epoch_size)
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(epoch))
    rows = order[place * size : (place + 1) * size]
    talks = [talk(scenes[row], args.exchanges, epoch) for row in rows.tolist()]
    return make_batch(processor, talks, grids[rows])


def _update(model: Any, optimizer: Any, args: RecipeArgs, update: int, batch: Batch) -> float:
    """One step."""
    warm, share = min(1.0, (update + 1) / 10), update / args.updates
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * warm * 0.5 * (1 + math.cos(math.pi * share))
    with torch.autocast("cpu", torch.bfloat16):
        loss = talk_loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    optimizer.step()
    return float(loss.detach())


def _learning(model: Any, args: RecipeArgs) -> list[dict[str, Any]]:
    """The projector and the upper layers as groups of the optimiser; the rest learns nothing."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    language = model.model.language_model
    upper = [*language.layers[len(language.layers) - args.layers :], language.norm]
    parts = [([model.model.multi_modal_projector], args.projector_lr), (upper, args.lr)]
    groups = []
    for modules, peak in parts:
        parameters = [one for module in modules for one in module.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        groups.append({"params": parameters, "lr": peak, "peak": peak})
    return groups


def _save_state(args: RecipeArgs, trainable: dict[str, Any], optimizer: Any, done: int) -> None:
    state = {"settings": _settings(args), "weights": trainable, "done": done}
    with replacing(args.out / "state.pt") as partial:
        torch.save({**state, "optimizer": optimizer.state_dict()}, partial)


def _resume(args: RecipeArgs, trainable: dict[str, Any], optimizer: Any) -> int | None:
    """Takes back a saved state; returns its updates, or None where there is no state."""
    path = args.out / "state.pt"
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != _settings(args):
        raise DraftgymError(
            f"{path} was made with other settings", "name another folder with --out"
        )
    with torch.no_grad():
        for name, value in state["weights"].items():
            trainable[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])


def _settings(args: RecipeArgs) -> dict[str, Any]:
    """What decides the weights."""
    free = ("out", "save_every", "threads")
    return {key: value for key, value in asdict(args).items() if key not in free}


CARD = """# A weak image-and-text model

Made by `python -m benchmarks.multimodal.recipe` of draftgym, to measure drafting on:
EfficientNet-Lite0 (ImageNet weights, Apache-2.0), a two-layer projector and SmolLM2-135M-Instruct
(Apache-2.0), whose upper {layers} layers learned with the projector from {scenes} drawn scenes of
coloured shapes ({updates} updates of {batch_size}, seed {seed}). It knows nothing else of images.
"""


def main() -> None:
    """Command line."""
    print(f"target: {make_target(tyro.cli(RecipeArgs, description=__doc__))}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
