"""A target that several processes share: each holds a part of every matrix (tensor parallel).

transformers divides the model, by its plan for the architecture. All processes run the same program
with the same choices, and meet in each pass of the target, so that each has all of its numbers.
Were one to ask for another pass than the others, all would get numbers of no text: `check_alike`
compares before.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.interface import NewRows

if TYPE_CHECKING:
    from draftgym.decoding.model.precision import Precision

TENSOR_PARALLEL = "tensor-parallel"
"""As `--device` names it."""


def check_together() -> None:
    """Raises `DraftgymError` where this process is alone."""
    if not (dist.is_available() and dist.is_initialized()):
        raise DraftgymError(
            f"--device {TENSOR_PARALLEL} divides a target among processes, and this is one alone",
            "start several that generate: torchrun --nproc-per-node 2 -m -- draftgym generate "
            f"--device {TENSOR_PARALLEL}; other commands take --device balanced",
        )


def sharing_options() -> dict[str, Any]:
    """What `from_pretrained` is told, in this release of transformers."""
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=dist.get_world_size())}
    except (ImportError, TypeError):  # older ones
        return {"tp_plan": "auto"}


def as_first(precision: Precision) -> Precision:
    """What the first process found best to compute in: each would try, and might find otherwise."""
    told = [precision]
    dist.broadcast_object_list(told)
    return replace(told[0], device=precision.device)


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is this process's part of one (a `DTensor`)."""
    return hasattr(tensor, "full_tensor")


def is_shared(model: nn.Module) -> bool:
    """Whether processes share a model."""
    return any(is_part(one) for one in model.parameters())


def whole(part: Any) -> nn.Parameter:
    """A parameter with all of its numbers; all processes must ask for it."""
    return nn.Parameter(part.full_tensor(), requires_grad=False)


def check_alike(batch: Sequence[NewRows], device: torch.device) -> None:
    """Compares what the processes ask of the target they share.

    Args:
        batch: What this one asks.
        device: Where it computes.

    Raises:
        DraftgymError: Another one asks something else.
    """
    said = b""
    for rows in batch:
        given = (rows.tokens, rows.positions, rows.visible)
        said += b"|".join(b"" if one is None else one.cpu().numpy().tobytes() for one in given)
        said += str(rows.cache.length).encode()
    mine = torch.tensor([zlib.crc32(said)], device=device)
    each = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(each, mine)
    if len({int(one) for one in each}) > 1:
        raise DraftgymError(
            "the processes that share the target have parted: they draft different tokens",
            "start them on devices of one kind, with a policy that reads no clock",
        )
