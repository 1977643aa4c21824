"""The projector's start: at each place of the grid, the words for what is there.

An image token is asked to be the sum of the language model's own embeddings of these words, before
any text is read. What is left for the language model to learn is then to read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.multimodal.scenes import PLACES, SIDE, SIZES, Scene
from benchmarks.multimodal.tower import STRIDE

EDGE = SIDE // STRIDE


def words_at(scene: Scene) -> list[str]:
    """What is to be seen at each of the `EDGE * EDGE` places of the grid, row by row."""
    ground = f"{'noisy' if scene.noisy else 'plain'} {scene.background} background"
    words = [ground] * EDGE**2
    third = SIDE // 3
    for shape in scene.shapes:
        right, down = shape.shift
        x = third * (shape.place % 3) + third // 2 + right
        y = third * (shape.place // 3) + third // 2 + down
        place = PLACES[shape.place].split(maxsplit=2)[-1]
        reach = SIZES[shape.size] + STRIDE // 4
        for cell in range(EDGE**2):
            middle_x, middle_y = ((at + 0.5) * STRIDE for at in (cell % EDGE, cell // EDGE))
            if abs(middle_x - x) <= reach and abs(middle_y - y) <= reach:
                words[cell] = f"{shape.size} {shape.color} {shape.kind} {place}"
    return words


def meaning_of(scenes: list[Scene], tokenizer: Any, embedding: Tensor) -> Tensor:
    """What image tokens should be, `[len(scenes), EDGE * EDGE, d]`."""
    known: dict[str, Tensor] = {}

    def mean(words: str) -> Tensor:
        if words not in known:
            tokens = tokenizer(" " + words, add_special_tokens=False)["input_ids"]
            known[words] = embedding[tokens].sum(0) / len(tokens) ** 0.5
        return known[words]

    return torch.stack([torch.stack([mean(words) for words in words_at(one)]) for one in scenes])


def align(projector: Any, grids: Tensor, meaning: Tensor, epochs: int, lr: float) -> float:
    """Fits a projector to what image tokens should be; returns its last relative error.

    Args:
        projector: From the tower's `[..., 1280]` to the language model's `[..., d]`.
        grids: The tower's output `[N, EDGE * EDGE, 1280]`.
        meaning: As `meaning_of`.
        epochs: Visits of every scene.
        lr: Peak learning rate.
    """
    optimizer = torch.optim.AdamW(projector.parameters(), lr=lr, weight_decay=0.01)
    size, error = 32, 1.0
    steps = epochs * -(-len(grids) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    spread = meaning.var()
    for epoch in tqdm(range(epochs), "aligning the projector"):
        order = torch.randperm(len(grids), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(size):
            with torch.autocast("cpu", torch.bfloat16):
                projected = projector(grids[rows].float())
            loss = (projected.float() - meaning[rows]).square().mean() / spread
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            error = 0.9 * error + 0.1 * float(loss.detach())
    return error
