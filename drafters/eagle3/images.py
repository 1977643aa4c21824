"""How an EAGLE-3 head reads images: compressed as in ViSpec (arXiv 2509.15235), or not at all.

The taps of an image's tokens stand in a head's context like those of text. ViSpec says that so many
keys that are alike distract a small head. So queries that it learns attend to the image, and what
they make of it stands there instead. What the last of them makes stands nowhere: it is a global
vector of the image that is added to the features of the text behind it, up to the next image. Two
queries thus leave one row of an image.

In ViSpec's code the queries read image embeddings, and the vector is added to the head's own
features, too. Here they read the features of the taps, which is what drafters are given, and the
head's own features have it already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftgym.drafters.modules import DraftConfig


class ImageQueries(nn.Module):
    """Learned queries over the features of an image.

    Args:
        config: Sizes of the head.
        count: Queries.
    """

    def __init__(self, config: DraftConfig, count: int) -> None:
        super().__init__()
        self.heads, self.dim = config.num_attention_heads, config.head_dim
        size, width = config.hidden_size, self.heads * self.dim
        self.queries = nn.Parameter(torch.randn(count, self.heads, self.dim) * self.dim**-0.5)
        self.k_proj = nn.Linear(size, width, bias=False)
        self.v_proj = nn.Linear(size, width, bias=False)
        self.o_proj = nn.Linear(width, size, bias=False)
        self.text_proj = nn.Linear(size, size, bias=False)
        nn.init.zeros_(self.text_proj.weight)

    def forward(self, features: Tensor) -> Tensor:
        """One vector per query `[count, d]`, of an image's features `[n, d]`."""
        split = (self.heads, self.dim)
        keys, values = (
            project(features).unflatten(-1, split).transpose(0, 1)
            for project in (self.k_proj, self.v_proj)
        )
        queries = self.queries.transpose(0, 1).to(keys.dtype)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.o_proj(attended.transpose(0, 1).flatten(1))
        return out


@dataclass(frozen=True)
class Seen:
    """What a head reads of a text with images.

    Attributes:
        features: Of all n positions `[n, d]`.
        kept: Positions that stand in its context, bool `[n]`.
        behind: What is added to the features of whatever follows `[d]`; None for nothing.
    """

    features: Tensor
    kept: Tensor
    behind: Tensor | None


def see(queries: ImageQueries | None, features: Tensor, is_image: Tensor) -> Seen:
    """Compresses or hides the images of one text.

    Args:
        queries: What compresses them; None hides them.
        features: Fused taps of its positions `[n, d]`.
        is_image: Which positions stand for a piece of an image, bool `[n]`, on the host. Pieces
            in a row are one image.
    """
    pieces: list[Tensor] = []
    kept, behind, at = ~is_image, None, 0
    for start, stop in _runs(is_image):
        pieces.append(_text(features[at:start], behind))
        at = stop
        if queries is None:
            pieces.append(features[start:stop])
            continue
        *inside, last = queries(features[start:stop])
        inside = inside[: stop - start]
        first = stop - len(inside)
        pieces += [features[start:first], *(one[None] for one in inside)]
        kept[first:stop] = True
        behind = queries.text_proj(last)
    pieces.append(_text(features[at:], behind))
    return Seen(torch.cat(pieces), kept.to(features.device), behind)


def image_rows(tokens: Tensor, prompt_length: int, image_tokens: Tensor) -> Tensor:
    """Which positions of a text stand for images, bool `[n]`, on the host.

    They lie in the prompt and have text behind them: what the target writes is text, whatever its
    tokens are, and the row that a draft begins with is never one of these.

    Args:
        tokens: The text `[n]`.
        prompt_length: Tokens of its prompt.
        image_tokens: Ids of the tokens that stand for images, on the host.
    """
    rows = torch.isin(tokens.cpu(), image_tokens)
    rows[prompt_length - 1 :] = False
    return rows


def _text(features: Tensor, behind: Tensor | None) -> Tensor:
    return features if behind is None else features + behind


def _runs(marks: Tensor) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the runs of True."""
    at = 0
    for mark, run in groupby(marks.tolist()):
        stop = at + len(list(run))
        if mark:
            yield at, stop
        at = stop
