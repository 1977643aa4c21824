"""EAGLE-3 heads that compress or hide images, and texts about images to train and try them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.image_drafter import eagle3_drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.training.data.corpus import Text
from tests.tiny import tiny_eagle3
from tests.tiny_images import picture

ASKED = "What is it?"


def image_head(target: Target, queries: int | None, seed: int = 3) -> Eagle3Drafter:
    """A random head whose queries, if it has any, have a say."""
    plain = tiny_eagle3(target).network
    torch.manual_seed(seed)
    network = Eagle3Network(
        replace(plain.config, image_queries=queries), torch.arange(plain.config.draft_vocab_size)
    )
    network.load_state_dict(plain.state_dict(), strict=False)
    if network.images is not None:
        torch.nn.init.normal_(network.images.text_proj.weight, std=0.2)
    network.requires_grad_(False)
    return eagle3_drafter(network, target.decoder.embedding, target.image_tokens)


def texts_about(
    target: Target, folder: Path, shown: Sequence[Sequence[int]], length: int = 8
) -> list[Text]:
    """What the target says of pictures with some seeds, each a file in a folder."""
    plain, texts = SpeculativeDecoder(target, {}, PlainPolicy()), []
    for number, seeds in enumerate(shown):
        parts: list[dict[str, str]] = []
        for seed in seeds:
            picture(seed).save(folder / f"{seed}.png")
            parts.append({"type": "image", "image": str(folder / f"{seed}.png")})
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": ASKED}]}]
        prompt, _ = target.encode_with_images(messages)
        response = torch.tensor(plain.generate(messages, length).tokens)
        told = tuple(messages) if seeds else ()
        tokens = torch.cat([prompt, response])
        texts.append(Text(tokens, len(prompt), 0.0, str(number), told))
    return texts
