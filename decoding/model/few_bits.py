"""Weights in few bits: another target, named as such, that is read from memory faster.

`smollm2-135m:int8` is the target whose projections are rounded to 8 bits, `:q4` the one with 4 bits
in groups of 32. Each is a model of its own: it has its own fingerprint, texts are those that
`generate()` writes with the rounded weights, and all arithmetic stays in float32. A compiled pass
reads the few bits; what torch runs, many rows at once, reads the numbers that they stand for.

A group's numbers are `lowest + step * whole`. The symmetric form has one group a row and no lowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError

INT8, Q4 = "int8", "q4"
FORMS = (INT8, Q4)
Q4_GROUP = 32
"""Inputs that share a lowest number and a step, as in the Q4_1 blocks of GGUF files: weights that
come from such blocks are kept."""


@dataclass(frozen=True)
class FewBits:
    """A weight of O outputs and I inputs, in groups of g inputs.

    Attributes:
        whole: Whole numbers `[O, I / g, g]`, in int8, or from 0 to 15 in uint8.
        step: `[O, I / g, 1]`, above 0.
        lowest: `[O, I / g, 1]`; None where whole numbers lie around 0.
    """

    whole: Tensor
    step: Tensor
    lowest: Tensor | None = None

    @property
    def numbers(self) -> Tensor:
        """What they stand for, `[O, I]` in float32."""
        numbers = self.whole * self.step
        if self.lowest is not None:
            numbers = numbers + self.lowest
        return numbers.flatten(1)


def few_bits(weight: Tensor, form: str) -> FewBits:
    """The nearest few bits of a weight `[O, I]`; those of `FewBits.numbers` are the same again.

    Raises:
        DraftgymError: The inputs do not fall into groups.
    """
    weight = weight.float()
    if form == INT8:
        rows = weight[:, None]
        step = _above_zero(rows.abs().amax(-1, keepdim=True) / 127)
        return FewBits((rows / step).round().to(torch.int8), step)
    if weight.shape[1] % Q4_GROUP:
        raise DraftgymError(
            f"a weight of {weight.shape[1]} inputs does not fall into groups of {Q4_GROUP}",
            f"name the target with :{INT8}",
        )
    groups = weight.unflatten(1, (-1, Q4_GROUP))
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    step = _above_zero((highest - lowest) / 15)
    whole = ((groups - lowest) / step).round().clamp(0, 15)
    return FewBits(whole.to(torch.uint8), step, lowest)


def _above_zero(step: Tensor) -> Tensor:
    """Steps, and 1 where all numbers of a group are equal."""
    return torch.where(step > 0, step, torch.ones_like(step))


def form_of(name: str) -> tuple[str, str]:
    """The name of a target without its form, and the form; empty where it has none."""
    base, colon, form = name.rpartition(":")
    return (base, form) if colon and form in FORMS else (name, "")


def head_form(form: str) -> str:
    """The form of the embedding and the LM head, which need more than 4 bits."""
    return INT8 if form else ""


@torch.no_grad()
def round_model(model: Any, form: str) -> None:
    """Rounds the projections and the LM head of a causal LM in place.

    Args:
        model: A transformers model of a decoder that the compact pass knows, in float32.
        form: One of `FORMS`.

    Raises:
        DraftgymError: It has weights that cannot be rounded.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inside = {id(module.weight) for module in linears}
    for name, weight in model.model.layers.named_parameters():
        if weight.dim() > 2 or (weight.dim() == 2 and id(weight) not in inside):
            raise DraftgymError(
                f"{name} is no projection, and is not rounded to {form}",
                f"name the target without :{form}",
            )
    for module in linears:
        kept = head_form(form) if module is model.lm_head else form
        module.weight.copy_(few_bits(module.weight, kept).numbers)
