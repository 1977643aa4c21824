"""Cells whose server, and devices if you like, are a host that was measured.

    $ draftgym measure-host --out runs/host.json
    $ draftgym evaluate --scheduler fixed heterogeneous@beta --cell.server runs/host.json \
        --cell.device-factor 4 --cell.users 16

The papers' servers are laws of A100s. This measures what verifying drafts of several users in one
ragged pass of the target takes here (`draftgym.decoding.costs.batch_cost`), and what drafting
takes (the host's cost model), on this machine with this target; a file holds both. Keep the
machine quiet meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.batch_cost import (
    CONTEXTS,
    ROWS_EACH,
    USERS,
    measure_batches,
)
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.host_costs import HostCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_text
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import load_target
from draftgym.decoding.provenance import describe_host, describe_target, machine_of
from draftgym.drafters.loading import load_drafters
from draftgym.envs.cell.devices import NO_NETWORK, MeasuredServer, measured_device
from draftgym.envs.cell.settings import CellSettings
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.table import make_console


@dataclass(frozen=True)
class MeasuredHost(HostCosts):
    """What verifying and drafting take on a host, for cells."""

    @property
    def server(self) -> MeasuredServer:
        """A server that verifies as this host does."""
        return MeasuredServer(self.batches)

    def serve(self, settings: CellSettings, device_factor: float | None = None) -> CellSettings:
        """The same cell, with this host as its server.

        Args:
            settings: The cell.
            device_factor: Devices draft as this host does, so many times as slowly; None leaves
                them as they are.

        Raises:
            DraftgymError: More users or longer drafts than were measured, or an impossible factor.
        """
        most, rows = self.batches.users[-1], self.batches.rows_each[-1]
        if settings.users > most or (settings.longest_draft or 0) >= rows:
            raise DraftgymError(
                f"{settings.users} users with drafts of {settings.longest_draft or 'any'} tokens; "
                f"up to {most} users and {rows - 1} tokens were measured",
                "serve fewer users or shorter drafts, or measure more: draftgym measure-host",
            )
        edge = replace(settings.edge, server=self.server)
        served = replace(settings, setting=edge)
        if device_factor is None:
            return served
        measured = {
            name: measured_device(self.costs, name, device_factor)
            for name in self.costs.draft
            if name not in NO_NETWORK
        }
        return replace(served, devices={**settings.devices, **measured})


def read_host(path: Path) -> MeasuredHost:
    """Reads a file of `draftgym measure-host`.

    Raises:
        DraftgymError: It cannot be read, or holds something else.
    """
    return MeasuredHost.read(path)


@dataclass(frozen=True, kw_only=True)
class HostArgs:
    """Measure this host.

    Attributes:
        out: Where the figures go.
        users: Numbers of users in a pass.
        rows_each: Rows of each user, one more than it drafts.
        contexts: Cached positions.
        repeats: Timings per point, after a warm-up; the median counts.
        pause: Seconds of rest before each timing of a pass; a server that waits for devices rests,
            and is slower for it (0.05).
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        dtype: auto, float32, bfloat16 or float16.
        device: What is measured: auto (an accelerator that torch can use, else the processor), cpu,
            cuda, cuda:1, mps or xpu.
        backend: Whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
        threads: CPU threads; default: every core this process may use.
    """

    out: Path = Path("runs/host.json")
    users: tuple[int, ...] = USERS
    rows_each: tuple[int, ...] = ROWS_EACH
    contexts: tuple[int, ...] = CONTEXTS
    repeats: int = 5
    pause: float = 0.0
    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    dtype: str = "float32"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None


def measure_host(args: HostArgs) -> MeasuredHost:
    """Measures, prints the table and writes the file.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check_writable(args.out, "name another file with --out")
    if min((1, *args.users, *args.rows_each, *args.contexts, args.repeats)) < 1 or args.pause < 0:
        raise DraftgymError("a measurement of nothing", "give numbers of 1 and more")
    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    drafters = load_drafters(target, args.drafters)
    chains = [Arm(name, drafter.max_draft_length) for name, drafter in drafters.items()]
    costs = load_cost_model(target, drafters, chains)
    batches = measure_batches(
        target, args.users, args.rows_each, args.contexts, args.repeats, args.pause
    )
    host = MeasuredHost(batches, costs, {**describe_target(target), **describe_host()})
    write_text(args.out, host.to_json() + "\n")
    print_host(host)
    return host


def affine_errors(host: MeasuredHost) -> NDArray[np.float64]:
    """By how much the closest affine law is off, relative to what was measured `[C, U, R]`.

    That law is what closed forms reckon with.
    """
    users, rows = np.meshgrid(host.batches.users, host.batches.rows_each, indexing="ij")
    law = host.server.affine().seconds(users, users * (rows - 1))
    return np.asarray(law / np.array(host.batches.seconds) - 1)


def print_host(host: MeasuredHost, console: Console | None = None) -> None:
    """Milliseconds by users and rows, the affine law with its errors, and drafting."""
    console = console or make_console()
    batches, facts = host.batches, host.facts
    for context, grid in zip(batches.contexts, batches.seconds, strict=True):
        title = (
            f"ms of a pass, {context} cached positions ({facts['target']}, {facts['dtype']}, "
            f"threads {facts['threads']}, {machine_of(facts)})"
        )
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for name in ("users", *(f"{rows} rows each" for rows in batches.rows_each)):
            table.add_column(name, justify="right")
        for users, row in zip(batches.users, grid, strict=True):
            table.add_row(str(users), *(f"{1e3 * seconds:.0f}" for seconds in row))
        console.print(table)
    law, off = host.server.affine(), np.abs(affine_errors(host))
    console.print(
        f"closest affine law: {1e3 * law.fixed:.1f} ms + {1e3 * law.per_user:.1f} ms a user + "
        f"{1e3 * law.per_token:.2f} ms a drafted token; off by {off.mean():.0%} on average, "
        f"{off.max():.0%} at most",
        highlight=False,
    )
    devices = [measured_device(host.costs, name) for name in host.costs.draft]
    for device in devices:
        console.print(f"{device.name}: {1e3 * device.seconds_per_token:.2f} ms a drafted token")


def main(arguments: Sequence[str]) -> None:
    """`draftgym measure-host`."""
    measure_host(
        tyro.cli(HostArgs, args=arguments, description=__doc__, prog="draftgym measure-host")
    )
