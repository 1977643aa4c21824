"""Devices draft, a server verifies: Multi-SPIN's cell over a real network.

    $ draftgym edge serve                                    # holds the target
    $ draftgym edge device --server HOST:50071 --prompt "Why is the sky blue?"
    $ draftgym edge lab --devices 8 --seconds 60             # both, over links that are really slow

A device holds a small LM (or copies from its own text: --drafter ngram). Each round the server's
scheduler tells every device how much to draft and which part of the band it has, and verifies all
drafts in one pass. Texts are those of plain decoding, whoever else is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from draftgym.serving.edge.devices.command import EdgeDeviceArgs, run_device
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.protocol import require_edge
from draftgym.serving.edge.server.command import EdgeServeArgs, serve


def main(arguments: Sequence[str]) -> None:
    """`draftgym edge serve`, `draftgym edge device` and `draftgym edge lab`."""
    args = tyro.extras.subcommand_cli_from_dict(
        {"serve": EdgeServeArgs, "device": EdgeDeviceArgs, "lab": EdgeLabArgs},
        args=arguments,
        description=__doc__,
        prog="draftgym edge",
    )
    if isinstance(args, EdgeServeArgs):
        serve(args)
    elif isinstance(args, EdgeDeviceArgs):
        run_device(args)
    else:
        require_edge()
        from draftgym.serving.edge.lab.lab import run_lab

        run_lab(args)
