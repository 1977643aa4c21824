"""Rules that stop a chain while it is drafted, as published, against `~P`, by replay.

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym collect --prompts heldout --out runs/heldout
    $ python -m benchmarks.routers.stopping --json runs/stopping.json

An arm like `eagle3:8~0.1` drafts token by token and stops behind the first one whose path is not
likely enough; that one is not verified. Others ask something else of every drafted token:

- its own probability: llama.cpp's `p_min`, transformers' `assistant_confidence_threshold`;
- the same, with a threshold that transformers moves after every round to where false positives and
  three times the false negatives of all rounds of a text are fewest (on the ROC curve);
- the entropy of the distribution that it is the likeliest of: SVIP (arXiv 2411.18462);
- a head on the drafter's state: SpecDec++ (arXiv 2405.19715), whose product over a path counts.

Every rule gets the same care: longest draft, threshold and whether the token that stopped it is
verified are chosen on the training texts, one at a time until none helps. Heads are told nothing of
the texts that thresholds are chosen on. Rounds cost what the traces' cost model says; reckoning
entropies and running heads is not charged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from torch import Tensor

from benchmarks.report import Cell, Json, Table, ends, number, percent
from benchmarks.results import Result, TargetOptions, check, finish
from benchmarks.routers.early_stop.acceptance import (
    PUBLISHED,
    SVIP,
    Examples,
    head_of,
    make_signals,
    quality,
)
from benchmarks.routers.early_stop.chains import Chains, collect_chains
from benchmarks.routers.early_stop.rules import RULES, SHIPPED, Setting
from benchmarks.routers.early_stop.scene import Scene, price_chains
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.policies.routers.acceptance import save_acceptance_policy
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.prompts.sets import load_prompts, refuse_held_out
from draftgym.rollouts.replay.oracle import Walk, total, walk_optimal, walk_single
from draftgym.rollouts.replay.pricing import PLAIN_ARM, price_traces
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class StoppingArgs(TargetOptions):
    """Compare rules that stop while drafting.

    Attributes:
        traces: Folder of greedy traces of training prompts.
        heldout: Folder of greedy traces of held-out prompts, with the same arms.
        prompts: The prompts of the first: train, or a JSON-lines file.
        heldout_prompts: The prompts of the others.
        drafter: Who drafts: one that goes on token by token, as EAGLE-3.
        length: Tokens that it drafts at most.
        first: What is asked before it in a cascade.
        default: The shipped rule, for comparison.
        folds: Parts of the training texts, each of which is judged by heads of the others.
        head: Write a policy that stops `first>drafter` by SpecDec++'s head to this folder.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    heldout: Path = Path("runs/heldout")
    prompts: str = "train"
    heldout_prompts: str = "heldout"
    drafter: str = "eagle3"
    length: int = 8
    first: str = "suffix:16~0.7"
    default: str = "suffix:16~0.7>eagle3:3x6~0.06"
    folds: int = 2
    head: Path | None = None
    json: Path | None = None


def measure(args: StoppingArgs) -> Result:
    """Drafts the chains, trains heads, tunes and plays all rules, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "length")
    train, heldout = (read_traces(folder) for folder in (args.traces, args.heldout))
    refuse_held_out(text.question_id for text in train.texts)
    target, drafters = args.load(train.origin.dtype)
    drafter = drafters.get(args.drafter)
    if not isinstance(drafter, AutoregressiveDrafter) or args.length > drafter.max_draft_length:
        raise DraftgymError(
            f"{args.drafter} drafts no chain of {args.length} tokens, one after the other",
            "name one that does, such as --drafter eagle3, and a --length that it can",
        )
    learned, tested = (
        (traces, collect_chains(target, drafter, traces, _ids(target, named, traces), args.length))
        for traces, named in ((train, args.prompts), (heldout, args.heldout_prompts))
    )
    figures = compare(learned, tested, args.drafter, args.first, args.default, args.folds)
    if args.head:
        write_head(args, learned[1], target, drafter, train.origin.describe())
    of = {"train": train.origin.describe(), "heldout": heldout.origin.describe()}
    return finish(tables, args, {"traces": of, **figures}, target, drafters)


def write_head(
    args: StoppingArgs,
    chains: Chains,
    target: Target,
    drafter: AutoregressiveDrafter,
    traces: Json,
) -> None:
    """Trains a head on all chains and writes it as a policy that stops where the paper's does.

    Args:
        args: The settings.
        chains: Of training texts.
        target: Who wrote the texts.
        drafter: Who drafts.
        traces: Where the texts are from.
    """
    published = RULES[PUBLISHED].published
    assert args.head is not None and published is not None
    examples = Examples.of(chains, late=True, knows_all=False)
    head = head_of(examples, np.ones(len(chains), np.bool_))
    arm, least = (
        parse_arm(f"{args.first}>{drafter.name}:{args.length}"),
        float(np.exp(published[0])),
    )
    save_acceptance_policy(head, arm, least, drafter, target, args.head, {"traces": traces})


def _ids(target: Target, prompts: str, traces: TraceSet) -> dict[str, Tensor]:
    return fit_prompts(target, load_prompts(prompts), traces.origin.max_new_tokens).ids


Side = tuple[TraceSet, Chains]
"""Traces, and the chains of all their positions."""


def compare(
    train: Side, heldout: Side, drafter: str, first: str, default: str, folds: int
) -> Result:
    """Tunes all rules on training texts and plays them on held-out ones.

    Args:
        train: Training texts.
        heldout: Others.
        drafter: Whose chains.
        first: What a cascade asks before.
        default: An arm for comparison.
        folds: As `StoppingArgs`.
    """
    texts = [len(text) for text in train[0].texts if len(text)]
    if not 2 <= folds <= len(texts):
        raise DraftgymError(f"{len(texts)} training texts make no {folds} folds", "give --folds 2")
    bounds = np.cumsum([0, *texts[:-1]])
    signals = make_signals(train[1], heldout[1], bounds.tolist(), folds)
    told = {
        name: quality(train[1], heldout[1], signals[0][name], signals[1][name])
        for name in signals[0]
    }
    scenes: Result = {}
    for name, arm in ((drafter, None), (f"{first}>{drafter}", parse_arm(first))):
        learned, tested = (
            Scene.of(price_chains(*side, drafter, arm), side[1], known)
            for side, known in zip((train, heldout), signals, strict=True)
        )
        others = [PLAIN_ARM if arm is None else arm, parse_arm(default)]
        priced = price_traces(heldout[0], others)
        beside = {
            f"`{one}`": [walk_single(text, one) for text in priced if len(text)] for one in others
        }
        scenes[name] = _play_all(learned, tested, beside)
    return {
        "drafter": drafter,
        "length": train[1].length,
        "texts": {"train": len(texts), "heldout": len([t for t in heldout[0].texts if len(t)])},
        "accepted": float((heldout[1].accepted >= 1).mean()),
        "signals": told,
        "scenes": scenes,
    }


FIXED, KNOWING = "a fixed length", "*knowing what will be accepted*"


def _play_all(train: Scene, heldout: Scene, beside: Mapping[str, list[Walk]]) -> Result:
    """Every rule, tuned on one scene and played on another."""
    settings = {name: rule.tuned(train) for name, rule in RULES.items()}
    settings[FIXED] = _fixed(train)
    rules = RULES | {FIXED: RULES[SHIPPED]}
    walks = {name: rules[name].play(heldout, setting) for name, setting in settings.items()}
    trained = {name: rules[name].play(train, setting) for name, setting in settings.items()}
    best = [walk_optimal(text.only(text.arms[: train.chains.length + 1])) for text in heldout.texts]
    walks |= {**beside, KNOWING: best}
    rows: Result = {}
    for name, mine in walks.items():
        row: Result = {
            "over_shipped": _gain(mine, walks[SHIPPED]),
            "over_fixed": _gain(mine, walks[FIXED]),
            "tokens_per_second": total(mine).tokens_per_second,
            "tokens_per_round": total(mine).acceptance_length,
        }
        if name in settings:
            row["setting"] = asdict(settings[name])
            row["setting"]["least"] = None if name == FIXED else settings[name].least
            row["training"] = _gain(trained[name], trained[SHIPPED])
        if name in RULES and (published := RULES[name].published):
            played = RULES[name].play(heldout, Setting(train.chains.length, *published))
            row["published"] = _gain(played, walks[SHIPPED])
        rows[name] = row
    return rows


def _fixed(scene: Scene) -> Setting:
    """The fastest length that nothing stops."""
    speeds = [
        scene.speed(np.minimum(scene.chains.room, tokens))
        for tokens in range(1, scene.chains.length + 1)
    ]
    return Setting(int(np.argmax(speeds)) + 1, -np.inf, keeps=True)


def _gain(mine: Sequence[Walk], reference: Sequence[Walk]) -> list[float]:
    """Ratio of speeds with its interval, less one."""
    works, others = ([Work(one.tokens, one.seconds) for one in some] for some in (mine, reference))
    ratio = speed_ratio(works, others)
    return [ratio.value - 1, ratio.low - 1, ratio.high - 1]


def tables(result: Json) -> list[Table]:
    """How well signals tell, and how fast rules are."""
    told = [{"name": name, **row} for name, row in result["signals"].items()]
    columns: dict[str, Cell] = {
        "signal": number("name", ""),
        "AUC, a token": number("auc", ".3f"),
        "log-loss": number("log_loss", ".3f"),
        "AUC, a path": number("path", ".3f"),
    }
    notes = [
        "a token: behind accepted ones; log-loss with probabilities fitted on training texts, in "
        "nats; a path: accepted with all before it, by what is known when its last token is drafted"
    ]
    title = "Will a token of `{drafter}:{length}` be accepted? ({texts[heldout]} held-out texts)"
    made = [Table.of(title.format(**result), told, columns, notes=notes)]
    return made + [_speeds(name, rows) for name, rows in result["scenes"].items()]


def _speeds(name: str, rows: Json) -> Table:
    columns: dict[str, Cell] = {
        "stops by": number("name", ""),
        f"over {SHIPPED}, %": lambda row: percent(row["over_shipped"][0]),
        "95 %": lambda row: _interval(row["over_shipped"]),
        "training": lambda row: percent(row["training"][0]) if "training" in row else "",
        "as published": lambda row: percent(row["published"][0]) if "published" in row else "",
        "over a fixed length, %": lambda row: percent(row["over_fixed"][0]),
        "tokens a round": number("tokens_per_round"),
        "length": lambda row: str(row["setting"]["length"]) if "setting" in row else "",
        "threshold": _threshold,
    }
    ordered = sorted(
        ({"name": who, **row} for who, row in rows.items()), key=lambda row: row["over_shipped"][0]
    )
    notes = ["threshold: + where the token that stops the draft is verified, too"]
    return Table.of(f"Held-out speed with `{name}`, stopped", ordered, columns, notes=notes)


def _threshold(row: Json) -> str:
    setting = row.get("setting")
    if setting is None or setting["least"] is None:
        return ""
    least = setting["least"] if row["name"] == SVIP else np.exp(setting["least"])
    return f"{abs(least):.3f}{' +' if setting['keeps'] else ''}"


def _interval(gain: Sequence[float]) -> str:
    return "{1} to {2}".format(*map(percent, ends(gain)))


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(StoppingArgs, description=__doc__))
