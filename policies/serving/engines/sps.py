"""SGLang's cost table of a step for DSPARK: `--speculative-dspark-sps-table-path`.

    {"bias_seconds": b, "bs_probes": [...], "alpha_seconds": [...], "m_probes": [...],
     "theta_seconds": [...]}

A step takes `b + alpha(requests) + theta(rows)`, linear between the probes and flat outside; rows
are those of the pass, one for each request and its drafted tokens (`SpsAdditiveCostTable` in
sglang/srt/speculative/dspark_components, release 0.5.23). What a server's rounds cost here is
fitted to that: published fits are of this form, what was measured is only nearly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.costs.server_costs import ServerCosts

Floats = NDArray[np.float64]


def fit_sps(
    costs: ServerCosts, requests: Sequence[int], block: int, context: int, drafter: str | None
) -> tuple[dict[str, Any], float]:
    """The table, and the largest relative error of a step at its probes.

    Args:
        costs: What rounds cost.
        requests: Sizes of the batch, ascending.
        block: Tokens that each request drafts, of which any number is verified.
        context: Cached positions of each request.
        drafter: Who drafts them, in every step; None leaves drafting out.
    """
    cells = [(size, size * each) for size in requests for each in range(1, block + 2)]
    n, rows = np.array(cells).T
    seconds = costs.pass_seconds(n, rows, n * context)
    if drafter is not None:
        seconds = seconds + costs.chain_seconds(drafter, n, block, n * context)
    sizes, at_size = np.unique(n, return_inverse=True)
    probes, at_row = np.unique(rows, return_inverse=True)
    which = np.zeros((len(cells), len(sizes) + len(probes)))
    which[np.arange(len(cells)), at_size] = which[np.arange(len(cells)), len(sizes) + at_row] = 1
    each = np.linalg.lstsq(which / seconds[:, None], np.ones(len(cells)), rcond=None)[0]
    alpha, theta = each[: len(sizes)], each[len(sizes) :]
    body = {
        "bias_seconds": float(alpha[0] + theta[0]),
        "bs_probes": sizes.tolist(),
        "alpha_seconds": (alpha - alpha[0]).tolist(),
        "m_probes": probes.tolist(),
        "theta_seconds": (theta - theta[0]).tolist(),
    }
    return body, float(np.abs(step_seconds(body, n, rows) / seconds - 1).max())


def step_seconds(body: Mapping[str, Any], requests: NDArray[Any], rows: NDArray[Any]) -> Floats:
    """What SGLang reckons that steps take.

    Args:
        body: The table.
        requests: Requests in each batch `[n]`.
        rows: Rows of each pass in all `[n]`.
    """
    alpha = np.interp(requests, body["bs_probes"], body["alpha_seconds"])
    theta = np.interp(rows, body["m_probes"], body["theta_seconds"])
    return np.asarray(body["bias_seconds"] + alpha + theta)
