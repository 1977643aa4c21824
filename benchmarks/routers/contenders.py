"""Who routes in the comparison: baselines that need no training, and routers that learn.

Trained routers are kept in a run folder. It says what they learned from: a router of other
drafters, costs, texts or arms has the same file name and the same shapes, and reused in silence it
would be judged as one of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.results import Result, write_json
from benchmarks.routers.joint import CASCADE, EARLY_STOP, SURE
from draftgym.agents.router.advantage import AdvantageArgs, train_advantage
from draftgym.agents.router.args import ALGORITHMS, RouterArgs
from draftgym.agents.router.neural import NeuralArgs, train_neural
from draftgym.agents.router.train import train_router
from draftgym.decoding.arms import Arm, Cascade
from draftgym.decoding.decoder import RoutingPolicy
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.provenance import check_run_folder
from draftgym.policies.folder import BODY
from draftgym.policies.routers.bandits import TimedBandit, TokenBandit
from draftgym.policies.routers.learned import load_learned_policy
from draftgym.policies.routers.neural import load_neural_policy
from draftgym.policies.routers.rules import EntropyPolicy, FixedPolicy, RandomPolicy
from draftgym.policies.routers.survival import SurvivalPolicy
from draftgym.rollouts.replay.play import walk_single_arms
from draftgym.rollouts.replay.tune_entropy import tune_pair
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet

Pair = tuple[Arm, Arm]
Routers = dict[str, list[RoutingPolicy]]
"""Policies by name, one per seed; one where no seed matters."""
RECORD = "trained_on.json"
REMEDY = "name another folder with --run, or delete this one to train its routers anew"


@dataclass(frozen=True)
class Training:
    """What routers are trained on.

    Attributes:
        folder: Folder of traces of training prompts.
        traces: The same, loaded.
        arms: What they choose from.
        rounds: Rounds of reinforcement learning.
        seeds: How many of each.
        run: Where trained routers are kept; what is there is not trained again.
        threads: CPU threads; None for all cores.
        families: The best arm of each family of rules on these traces
            (`benchmarks.routers.joint`).
        twice: What routers choose from that decide twice a round; nothing trains none.
        also: Folders of traces at other temperatures; nothing trains no router on a mixture.
    """

    folder: Path
    traces: TraceSet
    arms: tuple[Arm, ...]
    rounds: int
    seeds: int
    run: Path
    threads: int | None
    families: Mapping[str, Arm] = field(default_factory=dict)
    twice: tuple[Arm, ...] = ()
    also: tuple[Path, ...] = ()

    @property
    def alone(self) -> list[Arm]:
        """Arms that stand in tables by themselves: what is chosen from, and the best by family."""
        return list(dict.fromkeys([*self.arms, *self.families.values()]))


def single_arms(training: Training) -> Routers:
    """Every arm alone, and the best rule of each family."""
    return {str(arm): [FixedPolicy(arm)] for arm in training.alone}


def stopping_rules(training: Training) -> Routers:
    """Those that choose how likely a path must be: of the draft model alone, and behind lookup.

    TapOut is a bandit over probabilities, told what rounds with each cost on the training traces.
    The survival budget takes the one that costs ask for, at the price of the best of them there, or
    at that of its own account.
    """
    costs, made = training.traces.origin.cost_model, Routers()
    if not training.traces.tells_drafts:
        return made  # traces of an older version, or published ones, do not say what was likely
    for name, where in ((EARLY_STOP, ""), (CASCADE, " in cascade")):
        if (arm := training.families.get(name)) is None:
            continue
        *before, last = arm.parts
        every = [replace(last, sure=sure) for sure in SURE]
        arms = [Cascade.of([*before, one]) for one in every] if before else every
        always = walk_single_arms(training.traces, arms)
        seconds = (always.seconds / always.rounds.sum(1)).tolist()
        made[f"tapout{where}"] = [TimedBandit(arms, costs, seconds=seconds)]
        made[f"survival{where}"] = [SurvivalPolicy(arms, costs, float(always.speeds.max()))]
        made[f"survival{where}, own account"] = [SurvivalPolicy(arms, costs)]
    return made


def simple_routers(training: Training, pairs: Sequence[Pair]) -> Routers:
    """Baselines: no knowledge, bandits, stopping rules, and WhiFlash's two for some pairs."""
    seeds, origin = range(training.seeds), training.traces.origin
    made: Routers = {
        "random": [RandomPolicy(training.arms, seed) for seed in seeds],
        "ucb": [TokenBandit(training.arms)],
        "ucb-time": [TimedBandit(training.arms, origin.cost_model)],
        **stopping_rules(training),
    }
    for pair in dict.fromkeys(pairs if origin.holds_states else ()):
        name = "/".join(map(str, pair))
        tuning = tune_pair(training.traces, pair, count=100)
        threshold = float(tuning.thresholds[tuning.best])
        made[f"entropy {name}"] = [EntropyPolicy(*pair, threshold=threshold)]
        made[f"neural {name}"] = [_neural(training, pair, seed) for seed in seeds]
    return made


def router_folder(run: Path, name: str, seed: int, categories: Sequence[str] = ()) -> Path:
    """Where a router is trained.

    Args:
        run: Folder of all of them.
        name: What figures call it, such as `ppo` or `neural eagle3:2/ngram:16`.
        seed: Its seed.
        categories: The only ones that it is trained on, if it is not all.
    """
    plain = name.replace(">", "-then-").translate(str.maketrans(" /", "--", ":,"))
    return run / "-".join([plain, str(seed), *categories])


def _neural(training: Training, pair: Pair, seed: int) -> RoutingPolicy:
    first, second = map(str, pair)
    out = router_folder(training.run, f"neural {first}/{second}", seed)
    if not (out / BODY).is_file():
        train_neural(
            NeuralArgs(traces=training.folder, first=first, second=second, out=out, seed=seed)
        )
    return load_neural_policy(out, training.traces.origin)


def learned_routers(training: Training) -> Routers:
    """Routers that learn to choose among all arms."""
    return {
        name: [learned_router(training, name, seed) for seed in range(training.seeds)]
        for name in learners(training)
    }


def learned_router(
    training: Training, name: str, seed: int, categories: tuple[str, ...] = ()
) -> RoutingPolicy:
    """One of them, trained unless it is there already.

    Args:
        training: What it is trained on.
        name: One of `learners`.
        seed: Of everything random.
        categories: Train on these categories alone.
    """
    run = router_folder(training.run, name, seed, categories)
    folder = learners(training)[name](training, run, seed, categories)
    return load_learned_policy(folder, training.traces.origin)


Learner = Callable[[Training, Path, int, tuple[str, ...]], Path]
"""Trains into a folder, with a seed, on some categories; returns the folder of the policy."""


def learners(training: Training) -> dict[str, Learner]:
    """`LEARNERS`, and those of a training that decide twice or learn from a mixture."""
    found = dict(LEARNERS)
    for algorithm in ALGORITHMS:
        if training.twice:
            found[f"{algorithm}, twice a round"] = _by_reinforcement(algorithm, twice=True)
        if training.also:
            found[f"{algorithm}, mixed temperatures"] = _by_reinforcement(algorithm, mixed=True)
    return found


def _by_reinforcement(algorithm: str, twice: bool = False, mixed: bool = False) -> Learner:
    def train(training: Training, run: Path, seed: int, categories: tuple[str, ...]) -> Path:
        arms = training.twice if twice else training.arms
        settings = RouterArgs(
            traces=training.folder,
            also=training.also if mixed else (),
            twice=twice,
            algorithm=algorithm,
            arms=tuple(map(str, arms)),
            rounds=training.rounds,
            categories=categories,
            run=run,
            seed=seed,
            threads=training.threads,
        )
        return train_router(settings)  # goes on where it stopped; a finished run does nothing

    return train


def _by_regression(training: Training, run: Path, seed: int, categories: tuple[str, ...]) -> Path:
    if not (run / BODY).is_file():
        arms = tuple(map(str, training.arms))
        train_advantage(
            AdvantageArgs(
                traces=training.folder, arms=arms, out=run, seed=seed, categories=categories
            )
        )
    return run


LEARNERS: dict[str, Learner] = {
    "ppo": _by_reinforcement("ppo"),
    "dqn": _by_reinforcement("dqn"),
    "advantage": _by_regression,
}
"""Routers that learn from all arms: reinforcement on the rounds, and regression on all outcomes."""


def is_trained(name: str) -> bool:
    """Whether a router of this name learned its choices; thresholds are tuned, which is less."""
    return name.partition(",")[0] in LEARNERS or name.startswith("neural ")


def claim_run(run: Path, traces: TraceSet, arms: Sequence[Arm]) -> None:
    """Writes down what a run's routers learn from, before the first of them is trained.

    Args:
        run: Folder of routers.
        traces: What they are, or would be, trained on.
        arms: What they choose from.

    Raises:
        DraftgymError: Its routers were trained on something else, or nobody wrote down on what.
    """
    check_run_folder(run)
    path = run / RECORD
    body = {
        "origin": traces.origin.to_json(),
        "texts": _hash_texts(traces),
        "arms": list(map(str, arms)),
    }
    if path.is_file():
        if differences := _differences(_read(path), body, traces.origin):
            raise DraftgymError(
                f"the routers in {run} were trained on other traces ({'; '.join(differences)})",
                REMEDY,
            )
    elif any(run.rglob(BODY)):
        raise DraftgymError(f"nothing tells what the routers in {run} were trained on", REMEDY)
    else:
        write_json(path, body)


def drafters_of(run: Path) -> dict[str, str] | None:
    """Fingerprints of the drafters that a run's routers were trained with; None if not recorded.

    Raises:
        DraftgymError: The record is damaged.
    """
    path = run / RECORD
    return dict(_read(path)["origin"]["drafters"]) if path.is_file() else None


def _differences(before: Result, now: Result, origin: TraceOrigin) -> list[str]:
    former = TraceOrigin.from_json(before["origin"])
    found = former.differences(origin)
    if former.cost_model != origin.cost_model:
        found.append("cost model: measured anew")
    if before["texts"] != now["texts"]:
        found.append("texts: others, or more")
    if before["arms"] != now["arms"]:
        found.append(f"choice: {' '.join(before['arms'])} / {' '.join(now['arms'])}")
    return found


def _read(path: Path) -> Result:
    try:
        body = read_json(path, REMEDY)
        return {key: body[key] for key in ("origin", "texts", "arms")}
    except KeyError as error:
        raise DraftgymError(f"{path} lacks {error}", REMEDY) from error


def _hash_texts(traces: TraceSet) -> str:
    """What arms do at their positions follows from them and from the origin."""
    digest = hashlib.sha256()
    for text in traces.texts:
        digest.update(f"{text.question_id} {text.category} {text.prompt_hash} ".encode())
        digest.update(text.tokens.tobytes())
    return digest.hexdigest()[:16]
