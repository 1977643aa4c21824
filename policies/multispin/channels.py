"""What to reckon channels with, where reports are late or wrong.

Multi-SPIN's rules (arXiv 2606.04581) take reported channels for the truth. Where fading forgets
between the report and the round, a report tells of a user's mean gain and no more, and who trusts
it gives band to those who were in a fade and lets those draft who were not. Two remedies, both
ours: to believe that all channels are alike (`alike_plan`, a rule), and to divide the band by
reports that an agent has corrected (`tilt`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.heterogeneous import heterogeneous_plan
from draftgym.policies.multispin.problem import Plan, RoundProblem
from draftgym.policies.multispin.uplink import Floats

MOST_TILT = 20.0
"""Decibels by which a report is corrected at most, up or down."""


def alike_plan(problem: RoundProblem) -> Plan:
    """A length for every user, and shares, as if all channels were as good as they are on average.

    Heterogeneous drafts (`heterogeneous_plan`) at the mean of the reported spectral efficiencies
    over those who take part: what is left of the reports where they say nothing of single users.

    Args:
        problem: The rounds `[..., k]`.

    Returns:
        Lengths and shares `[..., k]`.
    """
    there = problem.taking_part
    total = np.where(there, problem.efficiency, 0.0).sum(-1, keepdims=True)
    mean = total / np.maximum(there.sum(-1, keepdims=True), 1)
    return heterogeneous_plan(replace(problem, efficiency=np.where(there, mean, 1.0)))


def tilt(snr: Floats, tilts: ArrayLike) -> Floats:
    """Signal-to-noise ratios to reckon with.

    Args:
        snr: As reported `[..., k]`.
        tilts: Corrections in [-1, 1] `[..., k]`, of `MOST_TILT` decibels; 0 takes a report as it
            is.
    """
    return np.asarray(snr * 10.0 ** (MOST_TILT / 10.0 * np.asarray(tilts, np.float64)))
