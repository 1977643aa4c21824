"""Policies by the name that a user writes on the command line.

`name`, `name:number`, `name@arm,arm` or `name:number@arm,arm`:

random@eagle3:2,ngram:8,plain      entropy:1.5@eagle3:2,dflash:2      ucb-time@eagle3:2,ngram:8
survival@eagle3:3x6~0.03,eagle3:3x6~0.1      entropy:1.5@suffix:16>eagle3:3x6,suffix:16>dflash:3x6
svip:0.6@suffix:16>eagle3:8
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from draftgym.decoding.arms import PLAIN, Arm, Cascade, check_arms, default_arms, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.given import check_drafters, check_target
from draftgym.decoding.model.embedded import EMBEDDED_TARGETS
from draftgym.decoding.model.few_bits import form_of
from draftgym.decoding.model.target import Target
from draftgym.policies.base import Policy
from draftgym.policies.choosers import (
    AUTOREGRESSIVE,
    CHOOSERS,
    chooser_name,
    has_both_paradigms,
    make_chooser,
    parse_chooser,
)
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.policies.routers.stopping import StoppingPolicy

COPYING, RULE_TREE = "suffix~0.7", Arm("eagle3", 3, 6, sure=0.06)
"""The default rule: what is copied, and what a network is asked for. How sure both must be was
chosen on traces of training prompts, on a processor. Where rows cost nearly nothing, all that the
network drafts is verified."""
SHIPPED_ROUTER = "router"
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


def make_policy(
    spec: str | Path,
    drafters: Mapping[str, Drafter],
    target: Target,
    seed: int = 0,
    cost_model: Callable[[Sequence[Arm]], CostModel] | None = None,
) -> Policy:
    """Builds a policy.

    Args:
        spec: `plain`; a drafter (`eagle3`), with a draft length (`eagle3:4`) or with the depth and
            nodes of a tree (`eagle3:5x16`); `random`; `entropy` (tuned threshold) or `entropy:2.5`
            (nats); arms of several drafters (`ngram:8>eagle3:3x6`); the bandits `ucb` (tokens per
            round) and `ucb-time` (tokens per second), or `ucb:0.5` (factor of the confidence
            bonus); `survival` (keeps account of tokens a second) or `survival:40` (tokens a
            second) for arms that differ in one `~`; `confidence`, `roc` and `svip`, or with their
            thresholds, which stop a chain while it is drafted (`policies.routers.stopping`);
            `router`, the one shipped with the target; or
            the folder of a trained policy.
            The ones that choose take arms: `random@eagle3:2,ngram:8,plain`; without, each loaded
            drafter in its default shape.
            `entropy` takes two, the first for uncertain positions.
        drafters: Loaded drafters by name.
        target: The target; a trained policy of another one is refused.
        seed: Seed of `random`.
        cost_model: Loads what rounds with some arms cost; asked only by `ucb-time` and `survival`.

    Raises:
        DraftgymError: Unknown name, missing drafter, or a folder that holds no fitting policy.
    """
    if not isinstance(spec, str | Path):
        raise DraftgymError(
            f"a {type(spec).__name__} is no name of a policy",
            "give a name or a folder; a policy that is made already needs no make_policy",
        )
    check_drafters(drafters)
    check_target(target)
    spec = str(spec)
    name, _, rest = spec.strip().partition(":")
    if chooser_name(spec) in CHOOSERS and not (name == "random" and rest):
        chooser = parse_chooser(spec, drafters, target.decoder.draws_trees)
        return make_chooser(chooser, drafters, seed, cost_model)
    first = re.split(r"[:@~>+]", spec.strip())[0]
    if first == PLAIN or first in drafters:
        alone = spec.strip() == first != PLAIN
        arm = _default_arm(first, drafters) if alone else parse_arm(spec)
        check_arms([arm], drafters, target.decoder.draws_trees)
        return FixedPolicy(arm, spec.strip())
    if spec.strip() == SHIPPED_ROUTER:
        return _trained(str(_shipped(target)), drafters, target)
    if _looks_like_folder(spec):
        return _trained(spec, drafters, target)
    raise _unknown(spec, drafters)


def all_policies(
    drafters: Mapping[str, Drafter],
    learned: Path | None = None,
    trees: bool = True,
    dear_rows: bool = True,
) -> list[str]:
    """What a comparison compares: plain, the default, each drafter, random, entropy, a trained one.

    Bandits are left to those who ask for them: they need more prompts to learn from.

    Args:
        drafters: Loaded drafters by name.
        learned: Folder of a trained policy, or None.
        trees: See `default_policy`.
        dear_rows: See `default_policy`.
    """
    names = [PLAIN, default_policy(drafters, trees, dear_rows), *drafters]
    if len(drafters) > 1:
        names.append("random")
    if has_both_paradigms(drafters):
        names.append("entropy")
    return list(dict.fromkeys(names + ([str(learned)] if learned is not None else [])))


def default_policy(
    drafters: Mapping[str, Drafter], trees: bool = True, dear_rows: bool = True
) -> str:
    """What a user gets who names no policy: who copies where something matches, else a network.

    No router that we trained is ahead of such a rule (`docs/results/routers.md`).

    Args:
        drafters: Loaded drafters by name.
        trees: Whether the target verifies trees.
        dear_rows: Whether verified rows take time, as on a processor.
    """
    copying = [name for name, drafter in drafters.items() if drafter.looks_up]
    networks = [name for name in drafters if name not in copying]
    parts = [COPYING if "suffix" in copying else copying[0]] if copying else []
    if networks:
        first = networks[0]
        most = drafters[first].max_draft_length, drafters[first].max_tree_nodes
        fits = trees and most[0] >= RULE_TREE.length and most[1] >= RULE_TREE.shape.budget
        tree = replace(RULE_TREE, drafter=first, sure=RULE_TREE.sure if dear_rows else 0.0)
        parts.append(str(tree) if fits else first)
    return Cascade.sign.join(parts) or PLAIN


def shipped_router(target: Target, folder: Path = SHIPPED) -> Path | None:
    """Folder of the trained router that ships with an embedded target, if there is one."""
    name, _ = form_of(target.name)
    if name not in EMBEDDED_TARGETS:
        return None
    router = folder / f"router-{name}"
    return router if router.is_dir() else None


def _default_arm(name: str, drafters: Mapping[str, Drafter]) -> Arm:
    return default_arms({name: drafters[name]})[0]


def _shipped(target: Target) -> Path:
    folder = shipped_router(target)
    if folder is None:
        raise DraftgymError(
            f"no router ships with target {target.name!r}",
            "train one with draftgym train-router, and name its folder",
        )
    return folder


def _looks_like_folder(spec: str) -> bool:
    path = user_path(spec)
    return path.exists() or "/" in spec or spec.startswith((".", "~"))


def _trained(spec: str, drafters: Mapping[str, Drafter], target: Target) -> Policy:
    path = user_path(spec)
    if not path.is_dir():
        what = "is a file, not a policy folder" if path.exists() else "does not exist"
        raise DraftgymError(f"policy {spec!r} {what}", "name the folder that train_router.py wrote")
    # These read weights: imported only where they are needed.
    from draftgym.policies.folder import (
        ACCEPTANCE,
        FOR_BATCHES,
        NEURAL,
        ROUTER,
        SCHEDULER,
        read_kind,
    )
    from draftgym.policies.routers.acceptance import load_acceptance_policy
    from draftgym.policies.routers.learned import load_learned_policy
    from draftgym.policies.routers.neural import load_neural_policy

    loaders: dict[str, Callable[[Path, Target], Policy]] = {
        ROUTER: load_learned_policy,
        NEURAL: load_neural_policy,
        ACCEPTANCE: load_acceptance_policy,
    }
    kind = read_kind(path)
    if kind == SCHEDULER:
        raise DraftgymError(
            f"{path} holds a scheduler of many users, not a router",
            f"compare it with python evaluate.py --scheduler {path}",
        )
    if kind in FOR_BATCHES:
        raise DraftgymError(
            f"{path} holds a policy of batches, not of a text by itself",
            f"serve it with draftgym serve --policy {path}",
        )
    if kind not in loaders:
        raise DraftgymError(
            f"{path} holds a policy of kind {kind!r}, which this version does not know",
            f"known kinds: {', '.join(loaders)}",
        )
    policy = loaders[kind](path, target)
    check_arms(policy.arms, drafters, target.decoder.draws_trees)
    if isinstance(policy, StoppingPolicy):
        policy.check_drafter(drafters)
    return policy


def _unknown(spec: str, drafters: Mapping[str, Drafter]) -> DraftgymError:
    known = [*dict.fromkeys([*all_policies(drafters), *CHOOSERS])]
    close = difflib.get_close_matches(chooser_name(spec), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return DraftgymError(
        f"unknown policy {spec!r}",
        f"{hint}choose from {', '.join(known)}, a drafter with a draft length "
        f"(such as {next(iter(drafters), AUTOREGRESSIVE)}:4), or the folder of a trained policy",
    )
