"""Prompts of tiny models, and what `generate()` is asked for there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROMPT = torch.tensor([[5, 9, 14, 7, 5, 9, 14, 22, 31, 5, 9, 14]])
PAD = 2
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16}


def padded(*lengths: int) -> dict[str, Tensor]:
    """Ends of the prompt, padded in front as tokenizers do."""
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = PROMPT[0, -length:]
        mask[row, longest - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}
