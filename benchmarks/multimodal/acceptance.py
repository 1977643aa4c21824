"""How much of the target's text about held-out scenes drafters guess, with and without the image.

    $ draftgym respond --target runs/llava/model --prompts runs/scenes/heldout.jsonl \
        --temperatures 0 --out runs/scenes/heldout
    $ python -m benchmarks.multimodal.acceptance --target runs/llava/model \
        --texts runs/scenes/heldout --heads runs/eagle3/latest runs/vispec/latest

A proposal depends on the committed text alone, so rounds are counted on the recorded greedy texts
(`draftgym.drafters.positions.recorded`). *Blind* is the same head, whose images are hidden from it
(`image_queries` 0): what it still knows of them it reads off the target's states of text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import write_text
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_host, describe_target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.checkpoint import read_checkpoint
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.image_drafter import eagle3_drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.fitting import check_fits
from draftgym.drafters.positions.recorded import RecordedText, rounds_at_each
from draftgym.drafters.training.data.corpus import Text, load_corpus
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.rollouts.report.statistics import bootstrap

SHAPES = {"chain 4": DraftShape(4), "tree 4x8": DraftShape(4, 8)}


@dataclass(frozen=True)
class AcceptanceArgs:
    """What is measured."""

    target: Path
    """Folder of the target."""
    texts: Path
    """Its greedy responses about held-out scenes."""
    heads: tuple[Path, ...]
    """Checkpoint folders of EAGLE-3 heads; the first is what others are compared with."""
    out: Path | None = None
    """File for the figures, as JSON."""
    dtype: str = "bfloat16"
    """In which the target computes."""
    device: str = "auto"
    """auto (an accelerator if torch finds one), cpu, cuda, cuda:1, mps or xpu."""
    threads: int | None = None
    """CPU threads; default: all cores."""


def measure(args: AcceptanceArgs) -> dict[str, Any]:
    """Acceptance lengths of all heads, seeing and blind."""
    target = load_target(str(args.target), args.dtype, args.threads, args.device)
    texts = load_corpus(args.texts, target.vocab_size, validation=0, hottest=0.0, target=target)
    features = FeatureCache(None, target, ())
    rows: dict[str, Any] = {}
    works: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for folder in args.heads:
        for name, head in ways_of(folder, target):
            works[name] = played(head, texts.train, features)
    first = next(iter(works.values()))
    for name, work in works.items():
        rows[name] = {shape: figures(work[shape], first[shape]) for shape in SHAPES}
        print(
            name, *(f"{shape} {one['length']:.2f}" for shape, one in rows[name].items()), sep="\t"
        )
    tokens = sum(len(text.tokens) - text.prompt_length - 1 for text in texts.train)
    told = {"texts": len(texts.train), "tokens": tokens, "rows": rows}
    return {**told, **describe_target(target), **describe_host()}


def ways_of(folder: Path, target: Target) -> Iterator[tuple[str, Eagle3Drafter]]:
    """A head as it is, and one that is shown no image, by name.

    Raises:
        DraftgymError: It is no EAGLE-3 head of this target.
    """
    network, origin = read_checkpoint(folder, target)
    check_fits(folder, network, origin, target)
    if not isinstance(network, Eagle3Network):
        raise DraftgymError(f"{folder} is no EAGLE-3 head", "name one")
    network.to(target.device, target.decoder.dtype).requires_grad_(False)
    embedding, name = target.decoder.embedding, f"{folder.parent.name}/{folder.name}"
    yield name, eagle3_drafter(network, embedding, target.image_tokens)
    if network.config.image_queries != 0:
        hidden, _ = read_checkpoint(folder, target)
        assert isinstance(hidden, Eagle3Network)
        hidden.config, hidden.images = replace(hidden.config, image_queries=0), None
        hidden.to(target.device, target.decoder.dtype).requires_grad_(False)
        yield f"{name}, blind", eagle3_drafter(hidden, embedding, target.image_tokens)


def played(
    head: Eagle3Drafter, texts: Sequence[Text], features: FeatureCache
) -> dict[str, np.ndarray[Any, Any]]:
    """Tokens and rounds of every text `[n, 2]`, by shape of the draft."""
    rows: dict[str, list[tuple[int, int]]] = {shape: [] for shape in SHAPES}
    for text in tqdm(texts, "drafting"):
        taps = features.batch([text], head.tap_layers).taps[0]
        recorded = RecordedText(
            text.tokens.to(taps.device), text.prompt_length, taps, head.tap_layers, GreedyRule()
        )
        for shape, rounds in zip(
            SHAPES, rounds_at_each(head, recorded, list(SHAPES.values())), strict=True
        ):
            committed = rounds.walked().committed
            rows[shape].append((int(committed.sum()), len(committed)))
    return {shape: np.array(row, dtype=np.float64) for shape, row in rows.items()}


def figures(
    work: np.ndarray[Any, Any], first: np.ndarray[Any, Any]
) -> Mapping[str, float | list[float]]:
    """Tokens a round, and by how much it is more than the first head's, with a 95 % interval."""
    tokens, rounds = work.sum(0)
    gain = bootstrap(np.hstack([work, first]).tolist(), _gain)
    return {"length": float(tokens / rounds), "gain": gain.value, "interval": [gain.low, gain.high]}


def _gain(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ratio: np.ndarray[Any, Any] = (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3]) - 1
    return ratio


def main() -> None:
    """Command line."""
    args = tyro.cli(AcceptanceArgs, description=__doc__)
    body = json.dumps(measure(args), indent=1)
    if args.out is not None:
        write_text(args.out, body + "\n")
    print(body)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
