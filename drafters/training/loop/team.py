"""Processes that train one drafter together, as `torchrun` starts them.

    torchrun --nproc-per-node 2 -m -- draftgym train-drafter eagle3 --corpus responses

Every process holds the target and the whole drafter, and learns from its share of each batch
(`parts`). One of them leads: what happens once (measuring, writing, telling) it does alone. A
process by itself is a team of one, for which nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.generic.shared import TENSOR_PARALLEL
from draftgym.decoding.model.generic.spread import device_map, first_device
from draftgym.decoding.model.precision import usable_cores

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long the others wait for the one that measures."""


@dataclass(frozen=True)
class Team:
    """One process, and how it speaks with the others.

    All must call the same methods in the same order; where one has ended, the others' calls raise
    `DraftgymError`.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        local_rank: Which of those on this machine.
        local_size: How many there are on it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process does what happens once."""
        return self.rank == 0

    def led(self, act: Callable[[], T]) -> T:
        """Lets the leader act; all get what came of it."""
        if self.size == 1:
            return act()
        told = [act()] if self.leads else [None]
        with _speaking():
            dist.broadcast_object_list(told)
        found: Any = told[0]
        return found  # type: ignore[no-any-return]

    def gathered(self, mine: T) -> list[T]:
        """What each process has, in their order; none goes on before all have come here."""
        if self.size == 1:
            return [mine]
        told: list[Any] = [None] * self.size
        with _speaking():
            dist.all_gather_object(told, mine)
        return told

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Gives all of them the leader's values, in place."""
        if self.size > 1:
            with _speaking():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Gives all of them the sum of everybody's gradients, in one exchange.

        A gradient that nobody has stays None. torch's DistributedDataParallel sends gradients while
        others are still computed, which hides little beside the target's pass; and it asks for one
        `forward`, where objectives call a network in parts.
        """
        learning = [one for one in parameters if one.requires_grad]
        if self.size == 1 or not learning:
            return
        there = torch.tensor([float(one.grad is not None) for one in learning])
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in learning]
        flat = torch.cat([there.to(grads[0].device), *(grad.float().flatten() for grad in grads)])
        with _speaking():
            dist.all_reduce(flat)
        count = len(learning)
        sums = flat[count:].split([one.numel() for one in learning])
        for one, used, total in zip(learning, flat[:count].tolist(), sums, strict=True):
            one.grad = total.view_as(one).to(one.dtype) if used else None

    def own_device(self, asked: str) -> str:
        """The device of this process: of several GPUs, each has one. A map says so itself.

        Raises:
            DraftgymError: A device of which there is one alone, or more processes than GPUs.
        """
        if self.size > 1 and asked == TENSOR_PARALLEL:
            return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"
        a_map = asked.endswith(".json")  # `cuda` in it is each process's own
        if self.size == 1 or asked == "cpu" or a_map or not torch.cuda.is_available():
            return asked
        if asked not in ("auto", "cuda"):
            raise DraftgymError(
                f"{self.size} processes cannot share the device {asked!r}",
                "say --device cuda, and each gets a GPU of its own, or --device cpu",
            )
        count = torch.cuda.device_count()
        if self.local_size > count:
            raise DraftgymError(
                f"{self.local_size} processes were started for {count} GPUs",
                f"start {count} (torchrun --nproc-per-node {count}), or say --device cpu",
            )
        return f"cuda:{self.local_rank}"

    def own_threads(self, asked: int | None) -> int | None:
        """CPU threads of this process: by default its share of the cores it may use."""
        if self.size == 1 or asked is not None:
            return asked
        return max(1, usable_cores() // self.local_size)


ALONE = Team()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team]:
    """Joins the team that `torchrun` has started; a team of one where it has not.

    All but the leader are silent on standard output.

    Args:
        device: Where the user asked to compute: gradients go by NCCL between GPUs, and by Gloo
            between processors.
    """
    told = os.environ
    if "RANK" not in told or int(told.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
    team = Team(
        rank, size, int(told.get("LOCAL_RANK", rank)), int(told.get("LOCAL_WORLD_SIZE", size))
    )
    places = device_map(team.own_device(device))
    first = team.own_device(device) if places is None else first_device(places)
    on_gpus = first.startswith("cuda")
    if on_gpus:
        torch.cuda.set_device(team.local_rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    with _speaking():
        store, *_ = next(rendezvous("env://"))
        # Else processes that torchrun starts again find the addresses of those before (torch 2.13).
        fresh = PrefixStore(told.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=PATIENCE)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.ExitStack() as stack:
        if not team.leads:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield team
    dist.destroy_process_group()  # not after an error, when others may wait for ever


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """A team that has lost somebody is told so."""
    try:
        yield
    except RuntimeError as error:  # of Gloo or NCCL: a connection closed, or nobody answered
        raise DraftgymError(
            f"another process of this training has ended: {str(error).splitlines()[0]}",
            "see what it said; the same command goes on from what was saved",
        ) from error
