"""The names that a server and its policies have outside: none of them is a path of this host."""

from __future__ import annotations

import re
from pathlib import Path

from draftgym.decoding.model.few_bits import form_of


def public_name(name: str) -> str:
    """What a target is called outside: the last part of its name, with its form."""
    base, form = form_of(name)
    path = Path(base)
    last = path.expanduser().resolve().name if base.startswith((".", "~")) else path.name
    return f"{last}:{form}" if form else last


def policy_name(spec: str) -> str:
    """What a policy of the command line is called outside: itself, or its folder's last part."""
    return spec.strip() if not re.search(r"[/\\~]", spec) else Path(spec.strip()).name
