"""Policies by the name that a user writes on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from decoding.arms import PLAIN, Arm, check_arms, default_arms, parse_arm
from decoding.drafting import Drafter
from decoding.embedded import EMBEDDED_TARGETS
from decoding.errors import DraftgymError
from decoding.target import Target
from policies.base import Policy
from policies.entropy import EntropyPolicy
from policies.fixed import FixedPolicy
from policies.random import RandomPolicy

AUTOREGRESSIVE, DIFFUSION = "eagle3", "dflash"
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


def make_policy(
    spec: str, drafters: Mapping[str, Drafter], target: Target, seed: int = 0
) -> Policy:
    """Builds a policy.

    Args:
        spec: `plain`; a drafter (`eagle3`), with a draft length (`eagle3:4`) or with the depth and
            nodes of a tree (`eagle3:5x16`); `random`; `entropy` (tuned threshold) or `entropy:2.5`
            (nats); or the folder of a trained policy.
        drafters: Loaded drafters by name.
        target: The target; a trained policy of another one is refused.
        seed: Seed of `random`.

    Raises:
        DraftgymError: Unknown name, missing drafter, or a folder that holds no fitting policy.
    """
    name, _, rest = spec.strip().partition(":")
    if name == "random" and not rest:
        return RandomPolicy(default_arms(drafters), seed)
    if name == "entropy":
        return _entropy(spec, rest, drafters)
    if name == PLAIN or name in drafters:
        arm = _default_arm(name, drafters) if not rest and name != PLAIN else parse_arm(spec)
        check_arms([arm], drafters)
        return FixedPolicy(arm, spec.strip())
    if _looks_like_folder(spec):
        return _learned(spec, drafters, target)
    raise _unknown(spec, name, drafters)


def all_policies(drafters: Mapping[str, Drafter], learned: Path | None = None) -> list[str]:
    """Every policy there is: plain, each drafter alone, random, entropy, and a trained one.

    Args:
        drafters: Loaded drafters by name.
        learned: Folder of a trained policy, or None.
    """
    names = [PLAIN, *drafters]
    if len(drafters) > 1:
        names.append("random")
    if _has_both_paradigms(drafters):
        names.append("entropy")
    return names + ([str(learned)] if learned is not None else [])


def default_policy(drafters: Mapping[str, Drafter], learned: Path | None = None) -> str:
    """What a user gets who names no policy: trained, else by entropy, else one drafter."""
    if learned is not None:
        return str(learned)
    if _has_both_paradigms(drafters):
        return "entropy"
    return next(iter(drafters), PLAIN)


def shipped_router(target: Target, folder: Path = SHIPPED) -> Path | None:
    """Folder of the trained router that ships with an embedded target, if there is one."""
    if target.name not in EMBEDDED_TARGETS:
        return None
    router = folder / f"router-{target.name}"
    return router if router.is_dir() else None


def _has_both_paradigms(drafters: Mapping[str, Drafter]) -> bool:
    return AUTOREGRESSIVE in drafters and DIFFUSION in drafters


def _default_arm(name: str, drafters: Mapping[str, Drafter]) -> Arm:
    return default_arms({name: drafters[name]})[0]


def _entropy(spec: str, threshold: str, drafters: Mapping[str, Drafter]) -> EntropyPolicy:
    if not _has_both_paradigms(drafters):
        raise DraftgymError(
            f"policy {spec!r} chooses between {AUTOREGRESSIVE} and {DIFFUSION}, "
            f"loaded drafters: {', '.join(drafters) or 'none'}",
            f"give both with --drafters, or use one of {', '.join(all_policies(drafters))}",
        )
    try:
        nats = float(threshold) if threshold else None
    except ValueError:
        raise DraftgymError(
            f"policy {spec!r} has no number after the colon",
            "write the threshold in nats, as in entropy:1.5",
        ) from None
    arms = (_default_arm(AUTOREGRESSIVE, drafters), _default_arm(DIFFUSION, drafters))
    return EntropyPolicy(*arms, threshold=nats, name=spec.strip())


def _looks_like_folder(spec: str) -> bool:
    path = Path(spec).expanduser()
    return path.exists() or "/" in spec or spec.startswith((".", "~"))


def _learned(spec: str, drafters: Mapping[str, Drafter], target: Target) -> Policy:
    path = Path(spec).expanduser()
    if not path.is_dir():
        what = "is a file, not a policy folder" if path.exists() else "does not exist"
        raise DraftgymError(f"policy {spec!r} {what}", "name the folder that train_router.py wrote")
    from policies.learned import load_learned_policy  # reads weights: only where it is needed

    policy = load_learned_policy(path, target)
    check_arms(policy.arms, drafters)
    return policy


def _unknown(spec: str, name: str, drafters: Mapping[str, Drafter]) -> DraftgymError:
    known = [*dict.fromkeys([*all_policies(drafters), "random", "entropy"])]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return DraftgymError(
        f"unknown policy {spec!r}",
        f"{hint}choose from {', '.join(known)}, a drafter with a draft length "
        f"(such as {next(iter(drafters), AUTOREGRESSIVE)}:4), or the folder of a trained policy",
    )
