"""Where the tokens of a prompt with images stand.

Most models count tokens. Those with rotary angles for time, height and width (Qwen2.5-VL and its
like) give an image's tokens the places of a grid, so the text behind it stands at other numbers
than its rows. transformers keeps that offset in the model, for one sequence; here it belongs to the
sequence's cache.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.interface import ModelInputs


def image_positions(model: Any, tokens: Tensor, inputs: ModelInputs) -> tuple[Tensor, int]:
    """Positions of a prompt with images.

    Args:
        model: A transformers model.
        tokens: The prompt `[n]`.
        inputs: What belongs to its images.

    Returns:
        Positions, `[1, n]` or `[3, 1, n]` (time, height, width), and how much further a token
        behind the prompt stands than its row says.
    """
    for module in (model, model.base_model):
        grid = getattr(module, "get_rope_index", None)
        if grid is not None:
            reads = inspect.signature(grid).parameters
            given = {key: value for key, value in inputs.items() if key in reads}
            positions, offset = grid(tokens[None], **given)
            return positions, int(to_host(offset).flatten()[0])
    return torch.arange(len(tokens), device=tokens.device)[None], 0
