"""What environments refuse with one voice: options that there are not, steps that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draftgym.decoding.errors import DraftgymError


def check_options(options: Mapping[str, Any], *known: str) -> None:
    """Raises `DraftgymError` if `reset` is asked for something it would not do.

    Args:
        options: As `reset` takes them.
        known: Those there are.
    """
    unknown = [str(name) for name in options if name not in known]
    if unknown:
        raise DraftgymError(
            f"reset has no option {unknown[0]!r}",
            f"options: {', '.join(known)}" if known else "give none",
        )


def never_begun() -> DraftgymError:
    """The error of a step before the first reset, or behind an episode's end."""
    return DraftgymError(
        "this step belongs to no episode: none has begun, or the last one is over",
        "call reset() first, and again whenever a step returns terminated or truncated",
    )
