"""Comparing two passes of one model in float32, whatever dtype it is loaded in.

In bfloat16 two right passes of a random model of 24 layers differ by up to 0.25, no less than SiLU
and GELU do. In float32 right passes of random models of 6 and of 24 layers (Llama, Mistral, Qwen2,
Qwen3) differed by at most 1.6e-6 and 1.2e-5, those of SmolLM2-135M (30 trained layers) by 6.8e-6.
The mildest misreadings tried (one form of GELU for the other, a norm's epsilon of 1e-5 for 1e-6)
differ by 3.4e-4 to 3.4e-3, others (another activation, rotary angles a tenth off) by 0.02 to 1.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 2e-4
"""Largest distance of two rows of logits, as a share of their length."""


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The row that differs most, as a share of its length; a constant added to a row is nothing."""
    centred = theirs - theirs.mean(-1, keepdim=True)
    difference = ours - ours.mean(-1, keepdim=True) - centred
    # A model of zeros gives rows without length, which are equal where nothing differs.
    length = centred.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float((difference.norm(dim=-1) / length).max())


def outside_of(model: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    """The modules that hold parameters of their own and are no part of the decoder layers."""
    inside = {id(module) for module in layers.modules()}
    for module in model.modules():
        if id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
            yield module


@contextmanager
def widened(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Holds the parameters of each part in float32 while that part runs.

    So one layer at a time is wide, and a large model needs little more memory.
    """
    hooks = []
    for part in parts:
        widening = _Widening(part)
        hooks += [
            part.register_forward_pre_hook(widening.begin),
            part.register_forward_hook(widening.end, always_call=True),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Widening:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[nn.Parameter, Tensor]] = []
        self.fetched: list[tuple[nn.Module, str, nn.Parameter]] = []

    def begin(self, *_: Any) -> None:
        """Widens the parameters. Those that hooks fetch come in the dtype of what stands there."""
        for part in self.module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.is_meta:
                    self.fetched.append((part, name, parameter))
        for part, name, parameter in self.fetched:
            part._parameters[name] = nn.Parameter(parameter.detach().float(), requires_grad=False)
        here = [one for one in self.module.parameters() if not one.is_meta]
        self.kept = [(parameter, parameter.data) for parameter in here]
        for parameter, data in self.kept:
            parameter.data = data.float()

    def end(self, *_: Any) -> None:
        """Puts them back."""
        for parameter, data in self.kept:
            parameter.data = data
        for part, name, parameter in self.fetched:
            part._parameters[name] = parameter
        self.kept, self.fetched = [], []
