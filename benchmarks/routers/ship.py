"""Ships a router that `benchmarks.routers.routing` trained: copies its policy, writes its card.

    $ python -m benchmarks.routers.ship --routing runs/routing.json --run runs/routing \
        --to checkpoints/router-smollm2-135m

The seed is the one of median speed, as the figures report it. The learner is yours to name: to pick
the best one by held-out figures would be to tune on the texts that results are reported on.

Without --to nothing is shipped. It then prints the routers worth a comparison by the clock, as
`draftgym evaluate --policies` takes them: of every learner the seed of median speed, and WhiFlash's
two on the pair of arms with the largest prize.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from benchmarks.report import Json
from benchmarks.results import Result
from benchmarks.routers.contenders import LEARNERS, drafters_of, router_folder
from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import read_json, write_text
from draftgym.decoding.provenance import command_line
from draftgym.envs.reward import GOODPUT
from draftgym.policies.folder import BODY, WEIGHTS, read_body, weights_path
from draftgym.policies.routers.learned import load_learned_policy

AGAIN = "run python -m benchmarks.routers.routing again"

NAMES = {"ppo": "PPO", "dqn": "DQN", "advantage": "regression of every arm's advantage"}
SMALL = 0.01
"""Arms chosen less often are not listed."""


@dataclass(frozen=True, kw_only=True)
class ShipArgs:
    """Ship a trained router.

    Attributes:
        routing: Figures of benchmarks.routers.routing.
        run: Its folder of trained routers.
        to: Folder of the shipped policy; the one that is there is replaced.
        learner: Whose policy.
        seed: Which of its seeds; default: the one of median speed.
    """

    routing: Path = Path("runs/routing.json")
    run: Path = Path("runs/routing")
    to: Path | None = None
    learner: Literal["ppo", "dqn", "advantage"] = "ppo"
    seed: int | None = None


class _Named(NamedTuple):
    """Whom the policy says it is for."""

    name: str
    fingerprint: str


def ship_router(args: ShipArgs) -> Path:
    """Copies, writes the card, replaces; returns the shipped folder.

    Raises:
        DraftgymError: No figures, no policy, a policy of other figures, or a folder of other
            things; nothing has been replaced then.
    """
    if args.to is None:
        raise DraftgymError("nothing says where to ship to", "name a folder with --to")
    figures = read_figures(args.routing)
    row = row_of(figures, args.learner)
    seed = int(row["median_seed"]) if args.seed is None else args.seed
    if not 0 <= seed < len(row["gain_by_seed"]):
        raise DraftgymError(
            f"{args.learner} has no seed {seed}", f"choose from 0 to {len(row['gain_by_seed']) - 1}"
        )
    policy = exported_policy(args.run, args.learner, seed)
    body = read_body(policy)
    _check_same(figures, body, seed, args.run)
    _check_replaceable(args.to)
    fresh = args.to.with_name(f".{args.to.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    fresh.mkdir(parents=True)
    shutil.copyfile(weights_path(policy, body), fresh / WEIGHTS)
    shutil.copyfile(policy / BODY, fresh / BODY)
    load_learned_policy(fresh, _Named(body["target"], body["target_fingerprint"]))
    card = router_card(figures, body, args.learner, seed, command_line())
    write_text(fresh / "README.md", card)
    _replace(args.to, fresh)
    return args.to


def _check_same(figures: Json, body: Json, seed: int, run: Path) -> None:
    """A card would attach these figures to whatever policy lies there."""
    settings = body.get("provenance", {}).get("settings", {})
    origin = figures["traces"]["train"]
    pairs = {
        "arms": (body.get("arms"), figures["arms"]),
        "seed": (settings.get("seed"), seed),
        "target": (body.get("target_fingerprint"), origin["target_fingerprint"]),
        "drafters": (drafters_of(run) or origin["drafters"], origin["drafters"]),
    }
    for name, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise DraftgymError(
                f"the policy of {run} has other {name} ({mine}) than the figures ({theirs})",
                f"name the figures and the folder of one run, or {AGAIN}",
            )


def _check_replaceable(to: Path) -> None:
    previous = _previous(to)
    if previous.is_dir() and not to.exists():
        previous.rename(to)  # a run was killed between the two steps of `_replace`
    if to.exists() and not (to / BODY).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise DraftgymError(
            f"{to} holds something else than a policy", "name another folder with --to"
        )


def _replace(to: Path, fresh: Path) -> None:
    """Puts a whole folder in the place of another, which is whole until then."""
    previous = _previous(to)
    shutil.rmtree(previous, ignore_errors=True)
    if to.exists():
        to.rename(previous)
    try:
        fresh.rename(to)
    except OSError:
        if previous.exists():
            previous.rename(to)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(to: Path) -> Path:
    return to.with_name(f".{to.name}.previous")


def read_figures(path: Path) -> Result:
    """The figures of `benchmarks.routers.routing`.

    Raises:
        DraftgymError: The file is missing, damaged, or holds something else.
    """
    remedy = f"make it with python -m benchmarks.routers.routing --json {path}"
    figures = read_json(path, remedy)
    if not {"heldout", "traces", "environment"} <= set(figures):
        raise DraftgymError(f"{path} holds no figures of benchmarks.routers.routing", remedy)
    return figures


def row_of(figures: Json, name: str) -> Result:
    """A router's figures on the held-out texts; raises `DraftgymError` where it has none."""
    rows = figures["heldout"]["routers"]
    if name not in rows:
        raise DraftgymError(f"{name!r} was not compared", f"choose from {', '.join(rows)}")
    return dict(rows[name])


def exported_policy(run: Path, name: str, seed: int) -> Path:
    """The policy folder of a compared router.

    Raises:
        DraftgymError: It is not there.
    """
    folder = router_folder(run, name, seed)
    exported = folder / "policy"  # of reinforcement, whose run folder holds other files, too
    folder = exported if exported.is_dir() else folder
    missing = [part for part in (BODY, WEIGHTS) if not (folder / part).is_file()]
    if missing:
        raise DraftgymError(
            f"{folder} holds no trained policy (no {' and no '.join(missing)})",
            f"name the folder of benchmarks.routers.routing with --run, or {AGAIN}: it trains what "
            "is missing",
        )
    return folder


def clock_policies(args: ShipArgs) -> list[str]:
    """What to compare by the clock, as `draftgym evaluate --policies` takes it.

    Raises:
        DraftgymError: No figures, or a policy is missing.
    """
    figures = read_figures(args.routing)
    if not figures.get("thresholds"):
        raise DraftgymError(f"{args.routing} tells no entropy thresholds", AGAIN)
    entropy, threshold = list(figures["thresholds"].items())[-1]  # WhiFlash's own pair is first
    pair = entropy.removeprefix("entropy ")
    named = [f"neural {pair}", *LEARNERS]
    seeds = [int(row_of(figures, name)["median_seed"]) for name in named]
    folders = [exported_policy(args.run, *one) for one in zip(named, seeds, strict=True)]
    return [f"entropy:{threshold:.6g}@{pair.replace('/', ',')}", *map(str, folders)]


def router_card(figures: Json, body: Json, learner: str, seed: int, command: str) -> str:
    """The card as Markdown.

    Args:
        figures: Figures of `benchmarks.routers.routing`.
        body: JSON of the policy folder.
        learner: Which of its routers.
        seed: Which of the router's seeds.
        command: What ships it.
    """
    judged, train = figures["heldout"], figures["traces"]["train"]
    row = judged["routers"][learner]
    host, of_median = figures["environment"], seed == row["median_seed"]
    arms = [arm for arm in map(parse_arm, body["arms"]) if arm.drafts]
    among = f"{len(arms)} arms of {', '.join(dict.fromkeys(arm.drafter for arm in arms))}"
    facts = {
        "target": f"{body['target']}, fingerprint `{body['target_fingerprint']}`, {train['dtype']}",
        "drafters": ", ".join(f"{name} `{hashed}`" for name, hashed in train["drafters"].items()),
        "arms": ", ".join(f"`{arm}`" for arm in body["arms"]),
        "trained": f"{_trained(figures, body['provenance'])}; {NAMES[learner]}, seed {seed}"
        f"{', the one of median speed' if of_median else ''} among {len(row['gain_by_seed'])}",
        "texts": "{train} to train, {heldout} held out".format(**figures["texts"])
        + f"; T = {train['temperature']:g}, {train['max_new_tokens']} new tokens",
        "reward": _reward(body["provenance"]),
        "held-out": _held_out(judged, row, seed),
        **(_of_median(figures, body["arms"], learner) if of_median else {}),
        "machine": f"{host['cpu']}, costs of {train['costs_of'].get('threads')} threads, "
        f"torch {host['torch']}, revision {str(host['git_revision'])[:12]}",
        "licence": "Apache-2.0",
    }
    commands = [one["host"].get("command") for one in figures["traces"].values()]
    lines = [f"| {name} | {text} |" for name, text in facts.items() if text]
    sections = [
        f"# Router for {body['target']}",
        f"Chooses each round of speculative decoding among {among}"
        f"{', and drafting nothing' if PLAIN in body['arms'] else ''}. It sees no category and "
        "calls no drafter to decide.",
        "\n".join(["| | |", "|---|---|", *lines]),
        "Made by (all settings are in `policy.json`):",
        "\n".join(
            f"    {line}"
            for line in dict.fromkeys([*filter(None, commands), host["command"], command])
        ),
        "Costs, and so the best choices, are those of the machine above, and acceptance is that of "
        "these drafters. For others, run the commands again.",
    ]
    return "\n\n".join(sections) + "\n"


def _trained(figures: Json, made: Json) -> str:
    settings = made["settings"]
    if "algorithm" not in settings:
        return (
            f"by walks over traces of {made['texts']['train']} texts; {made['texts']['validation']}"
            f" others set aside, where it explains {_share(made['validation_r2'])} of the variance"
        )
    text = (
        f"{settings['rounds']:,} rounds replayed from traces of {figures['texts']['train']} texts"
    )
    checked = made.get("validation_tokens_per_target_step")
    if checked is None:
        return text
    return (
        f"{text}, {_share(settings['validation'])} of them set aside to pick the best policy by "
        f"(that of round {made['rounds']:,}: {checked:.3f} tokens per target step)"
    )


def _reward(made: Json) -> str:
    price = made["settings"].get("latency_price")
    if price is None:
        return f"tokens - price x seconds, {made['price_tokens_per_second']:g} tokens a second"
    what = "the price being the speed that is reached" if price == GOODPUT else f"price {price}"
    return f"tokens - price x target steps, {what}"


def _held_out(judged: Json, row: Json, seed: int) -> str:
    """The gain of this seed; its interval is known for the seed of median speed."""
    seeds = row["gain_by_seed"]
    text = f"by replay {_percent(seeds[seed])} over the best single arm, `{judged['best_single']}`"
    if seed == row["median_seed"]:
        text += f" ({_interval(row['gain'])})"
    if len(seeds) > 1:
        text += f"; over {len(seeds)} seeds {_percent(min(seeds))} to {_percent(max(seeds))}"
    return f"{text}; by the clock see the README"


def _of_median(figures: Json, arms: Sequence[str], learner: str) -> dict[str, str]:
    """What the figures tell of the seed of median speed alone."""
    row = figures["heldout"]["routers"][learner]
    groups = (f"{name} {_percent(gain[0])}" for name, gain in row["by_category"].items())
    pairs = zip(arms, row["arm_shares"], strict=True)
    often = sorted(((share, arm) for arm, share in pairs), reverse=True)
    shown = [f"`{arm}` {_share(share)}" for share, arm in often if share > SMALL]
    rest = ", the others 1 % or less" if len(shown) < len(arms) else ""
    return {
        "by category": ", ".join(groups),
        "choices": f"on held-out texts {', '.join(shown)} of the rounds{rest}",
        "temperature": _temperature(figures, learner, row["median_seed"]),
    }


def _temperature(figures: Json, learner: str, seed: int) -> str:
    """What the same training is worth on sampled texts, if that was measured."""
    if "sampled" not in figures:
        return ""
    judged, traces = figures["sampled"], figures["traces"]
    row = judged["routers"][learner]
    here, there = (f"T = {traces[one]['temperature']:g}" for one in ("train", "sampled"))
    gain = _percent(row["gain_by_seed"][seed])
    text = f"trained at {here}; at {there} {gain} over `{judged['best_single']}`"
    return f"{text} ({_interval(row['gain'])})" if seed == row["median_seed"] else text


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _interval(gain: Sequence[float]) -> str:
    return f"95 %: {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}"


if __name__ == "__main__":
    with exit_on_user_error():
        chosen = tyro.cli(ShipArgs, description=__doc__)
        if chosen.to is None:
            print(*clock_policies(chosen))
        else:
            print(f"shipped: {ship_router(chosen)}")
