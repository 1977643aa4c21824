"""Write what rounds cost, for SGLang's DSPARK: how much it verifies goes by that.

    $ draftgym export-costs sps.json --costs runs/host.json --block 7
    $ SGLANG_RAGGED_VERIFY_MODE=compact python -m sglang.launch_server --model MODEL \
        --speculative-algorithm DSPARK --speculative-dspark-sps-table-path sps.json

SGLang's own profiler measures the very server; this is for costs that were published, or measured
by `draftgym measure-host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import batch_sizes
from draftgym.policies.serving.engines.sps import fit_sps
from draftgym.rollouts.decode.evaluation import check_writable


@dataclass(frozen=True)
class ExportCostsArgs:
    """Export what rounds cost to SGLang."""

    out: Annotated[Path, tyro.conf.Positional]
    """File to write."""
    costs: str = "llama3.1-8b-h100"
    """What rounds cost: published costs by name, or a file of draftgym measure-host."""
    sizes: tuple[int, ...] = ()
    """Requests in the batch, ascending; default: powers of 2 to 64, or as far as measured."""
    block: int = 7
    """Tokens that each request drafts in a step."""
    context: int = 1000
    """Cached positions of each request."""
    drafter: str | None = None
    """Who drafts, where that is to be counted; it must have been measured."""


def export_costs(args: ExportCostsArgs) -> None:
    """Fits the table and writes it.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check_writable(args.out, "name another file")
    if args.block < 1 or args.context < 0:
        raise DraftgymError(
            f"blocks of {args.block} tokens behind {args.context} positions",
            "give --block 1 or more, and --context 0 or more",
        )
    drafters = [] if args.drafter is None else [args.drafter]
    costs = ServerSettings(places=1, costs=args.costs).make_costs(drafters)
    sizes = batch_sizes(args.sizes, costs)
    body, error = fit_sps(costs, sizes, args.block, args.context, args.drafter)
    if not body["bias_seconds"] > 0:
        raise DraftgymError("a step without requests takes no time", "measure the host again")
    write_json(args.out, body)
    print(f"{args.out}: steps of {sizes[0]} to {sizes[-1]} requests, within {error:.1%}")


def main(arguments: Sequence[str]) -> None:
    """`draftgym export-costs`."""
    export_costs(
        tyro.cli(ExportCostsArgs, args=arguments, description=__doc__, prog="draftgym export-costs")
    )
