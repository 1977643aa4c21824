"""How much of what routing can win could be known before a round begins?

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym collect --prompts heldout --out runs/heldout
    $ python -m benchmarks.routers.knowable --json runs/knowable.json

The exact optimum knows what every round will commit. Here boosted trees predict it, from nested
levels of facts (`benchmarks.routers.facts`), and each round takes the arm with the largest
predicted tokens - price * seconds. The price is the speed that these very choices reach on training
texts set aside; there the margin is chosen, too, by which an arm must be ahead of the rule. What
that gains over the rule is a lower bound of what is knowable at a level; three figures say how
close it is:

- trained on a quarter and on half of the texts: whether more of them would help;
- training texts set aside, fold by fold: whether held-out texts are another world;
- predictors of disjoint halves of the texts: how much of what they do not explain is noise of
  fitting. Where they correlate by r with each other and by s with the truth, a predictor without
  that noise correlates by s / sqrt(r).

Speeds are tokens over seconds by the traces' cost model; intervals are paired bootstraps over
prompts. Whoever knows a drafter's probabilities has paid for them, which is not charged: these
levels bound what a second decision, after drafting, can win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.report import Cell, Json, Table, ends, percent
from benchmarks.results import Result, check, finish
from benchmarks.routers.facts import Facts, known_facts
from benchmarks.routers.predictors import Floats, Predictor, Worth
from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.rollouts.prompts.sets import refuse_held_out
from draftgym.rollouts.replay.oracle import (
    Walk,
    greedy_price,
    total,
    walk_greedy,
    walk_optimal,
    walk_single,
)
from draftgym.rollouts.replay.pricing import PricedText, price_traces
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.file import read_traces


@dataclass(frozen=True, kw_only=True)
class KnowableArgs:
    """Say how much of what routing can win could be known.

    Attributes:
        traces: Folder of traces of training prompts.
        heldout: Folder of traces of held-out prompts, with the same arms.
        arms: What there is to choose from beside the rule; default: all traced arms and plain.
        rule: The arm to be ahead of: the best rule there is.
        drafter: Whose probabilities are known first, once it is paid for.
        folds: Parts of the training texts, each of which is set aside once.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    heldout: Path = Path("runs/heldout")
    arms: tuple[str, ...] = ()
    rule: str = "suffix:16~0.7>eagle3:3x6~0.06"
    drafter: str = "eagle3"
    folds: int = 5
    json: Path | None = None


def measure(args: KnowableArgs) -> Result:
    """Trains and plays the predictors of all levels, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args)
    train, heldout = (read_traces(folder) for folder in (args.traces, args.heldout))
    refuse_held_out(text.question_id for text in train.texts)
    named = [args.rule, *(args.arms or (*train.origin.arms, PLAIN))]
    arms = list(dict.fromkeys(map(parse_arm, named)))
    learned, tested = known_facts(train, heldout, args.drafter)
    mine, others = (
        [text for text in price_traces(traces, arms) if len(text)] for traces in (train, heldout)
    )
    figures = compare(mine, others, learned, tested, args.folds)
    traces = {"train": train.origin.describe(), "heldout": heldout.origin.describe()}
    return finish(tables, args, {"traces": traces, **figures})


def compare(
    train: Sequence[PricedText],
    heldout: Sequence[PricedText],
    learned: Facts,
    tested: Facts,
    folds: int,
) -> Result:
    """What predictors that know more and more gain, beside choices that know the outcome.

    Args:
        train: Training texts; the first of their arms is the rule.
        heldout: Other texts, with the same arms.
        learned: What is known of the first, by level.
        tested: What is known of the others.
        folds: As `KnowableArgs`.

    Raises:
        DraftgymError: Fewer than two folds, or fewer training texts than folds or than four.
    """
    if not 2 <= folds <= len(train) or len(train) < 4:
        raise DraftgymError(
            f"{len(train)} training texts make no {folds} folds and four quarters",
            "give --folds 2 or more, and traces of more prompts",
        )
    aside, known = Judge(train), Judge(heldout)
    worth = Worth.of(train, total(aside.rule).tokens_per_second)
    scene = Scene(train, heldout, worth, folds, aside, known)
    figures: Result = {}
    names = list(learned)
    for count, name in enumerate(names, start=1):
        mine, others = (
            np.column_stack([facts[one] for one in names[:count]]) for facts in (learned, tested)
        )
        figures[name] = scene.level(mine, others)
    return {
        "rule": str(train[0].arms[0]),
        "arms": list(map(str, train[0].arms)),
        "texts": {"train": len(train), "heldout": len(heldout)},
        "levels": figures,
        "knowing": {name: known.gain(walks) for name, walks in known.knowing.items()},
    }


class Judge:
    """Compares ways of writing some texts with a rule and with the optimum.

    Args:
        texts: The texts; the first of their arms is the rule.
    """

    def __init__(self, texts: Sequence[PricedText]) -> None:
        price = greedy_price(texts)
        self.rule = [walk_single(text, text.arms[0]) for text in texts]
        self.knowing = {
            "greedy, knowing each round": [walk_greedy(text, price) for text in texts],
            "exact optimum": [walk_optimal(text) for text in texts],
        }
        self.possible = self._over_rule(self.knowing["exact optimum"])[0]

    def gain(self, walks: Sequence[Walk]) -> Result:
        """Speed over the rule with its interval, less one, and the share of what is possible."""
        gain = self._over_rule(walks)
        return {
            "tokens_per_second": total(walks).tokens_per_second,
            "gain": gain,
            "share_of_possible": gain[0] / self.possible if self.possible else 0.0,
        }

    def _over_rule(self, walks: Sequence[Walk]) -> list[float]:
        mine, rule = ([Work(w.tokens, w.seconds) for w in some] for some in (walks, self.rule))
        ratio = speed_ratio(mine, rule)
        return [ratio.value - 1, ratio.low - 1, ratio.high - 1]


@dataclass(frozen=True, eq=False)
class Scene:
    """What all levels have in common.

    Attributes:
        train: Training texts.
        heldout: Other texts.
        worth: What rounds are worth.
        folds: As `KnowableArgs`.
        aside: Judges the first.
        known: Judges the others.
    """

    train: Sequence[PricedText]
    heldout: Sequence[PricedText]
    worth: Worth
    folds: int
    aside: Judge
    known: Judge

    def level(self, learned: Floats, tested: Floats) -> Result:
        """Everything about one level.

        Args:
            learned: What is known of training texts `[R, k]`.
            tested: What is known of held-out texts `[R, k]`.
        """
        net = self.worth.net_tokens(self.train)
        rows, order = self._text_of_rows(), np.random.default_rng(0).permutation(len(self.train))

        def fit(texts: NDArray[np.int64]) -> Predictor:
            some = np.isin(rows, texts)
            return Predictor(learned[some], net[some])

        believed = np.zeros_like(net)
        for fold in range(self.folds):
            mine = np.isin(rows, order[fold :: self.folds])
            believed[mine] = fit(np.delete(order, np.s_[fold :: self.folds]))(learned[mine])
        terms = self.worth.settle(self.train, believed)
        half, quarter = len(order) // 2, len(order) // 4
        parts = {"quarter": order[:quarter], "half": order[:half], "all": order}
        told = {name: fit(texts)(tested) for name, texts in parts.items()}
        walks = {name: self.worth.play(self.heldout, one, terms) for name, one in told.items()}
        return {
            "facts": learned.shape[1],
            "price": terms.price,
            "margin": terms.margin,
            "set_aside": self.aside.gain(self.worth.play(self.train, believed, terms)),
            "heldout": {name: self.known.gain(some) for name, some in walks.items()},
            "arm_shares": self._shares(walks["all"]),
            "agreement": self._agreement(told["half"], fit(order[half:])(tested)),
        }

    def _text_of_rows(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.train)), [len(text) for text in self.train])

    def _shares(self, walks: Sequence[Walk]) -> list[float]:
        arms = len(self.train[0].arms)
        chosen = np.bincount([arm for one in walks for arm in one.arms], minlength=arms)
        return [float(share) for share in (chosen / chosen.sum()).round(4)]

    def _agreement(self, one: Floats, other: Floats) -> Result:
        """How two predictions correlate with each other and, on average, with the truth, by arm."""
        net = self.worth.net_tokens(self.heldout)
        found = {}
        for index, arm in enumerate(self.train[0].arms):
            columns = [each[:, index] for each in (one, other, net)]
            if arm.parts and min(map(np.std, columns)) > 0:
                r = np.array(np.corrcoef(columns))
                found[str(arm)] = {"each_other": r[0, 1], "truth": r[:2, 2].mean()}
        return found


def without_noise(agreement: Json) -> float:
    """The mean correlation, over arms, of predictions that have no noise of fitting with the truth.

    Where predictors do not agree at all, nothing was learned: 0.
    """
    found = [
        min(1.0, one["truth"] / np.sqrt(one["each_other"])) if one["each_other"] > 0 else 0.0
        for one in agreement.values()
    ]
    return float(np.mean(found)) if found else 0.0


def tables(result: Json) -> list[Table]:
    """What each level gains, and how alike two predictors are."""
    levels = [{"name": f"+ {name}", **row} for name, row in result["levels"].items()]
    knowing = [{"name": f"*{name}*", "all": row} for name, row in result["knowing"].items()]
    rows = [{**row, **row["heldout"]} for row in levels] + knowing
    columns: dict[str, Cell] = {
        "what is known": lambda row: str(row["name"]),
        "all": lambda row: percent(row["all"]["gain"][0]),
        "95 %": lambda row: _interval(row["all"]),
        "share": lambda row: f"{100 * row['all']['share_of_possible']:.0f} %",
        "half": lambda row: percent(row["half"]["gain"][0]) if "half" in row else "",
        "quarter": lambda row: percent(row["quarter"]["gain"][0]) if "quarter" in row else "",
        "set aside": lambda row: percent(row["set_aside"]["gain"][0]) if "half" in row else "",
        "95 % there": lambda row: _interval(row["set_aside"]) if "half" in row else "",
    }
    title = (
        "Held-out traces ({heldout} texts), predictors trained on all {train} training texts, on "
        "half and on a quarter of them: speed over "
    ).format(**result["texts"])
    notes = [
        "share: of the exact optimum's gain. set aside: training texts, fold by fold. Each level "
        "knows what is above it, too; from *first drafter* on, drafting them is not charged."
    ]
    gains = Table.of(f"{title}`{result['rule']}`, %", rows, columns, notes=notes)
    return [gains, _agreements(levels)]


def _interval(row: Json) -> str:
    return "{1} to {2}".format(*map(percent, ends(row["gain"])))


def _agreements(levels: Sequence[Json]) -> Table:
    """Mean correlations over arms."""

    def mean(key: str) -> Cell:
        return lambda row: f"{np.mean([one[key] for one in row['agreement'].values()]):.2f}"

    columns: dict[str, Cell] = {
        "what is known": lambda row: str(row["name"]),
        "with each other": mean("each_other"),
        "with the truth": mean("truth"),
        "the same without noise of fitting": lambda row: f"{without_noise(row['agreement']):.2f}",
    }
    title = (
        "Predictors of disjoint halves of the training texts: how the tokens that they predict on "
        "held-out texts correlate, mean over arms"
    )
    return Table.of(title, levels, columns)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(KnowableArgs, description=__doc__))
