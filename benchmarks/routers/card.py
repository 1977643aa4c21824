"""The card of a shipped router, written from the figures it was judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.envs.router.reward import GOODPUT

NAMES = {"ppo": "PPO", "dqn": "DQN", "advantage": "regression of every arm's advantage"}
SMALL = 0.01
"""Arms chosen less often are not listed."""

Json = Mapping[str, Any]


def router_card(figures: Json, body: Json, learner: str, seed: int, command: str) -> str:
    """The card as Markdown.

    Args:
        figures: Figures of `benchmarks.routers.routing`.
        body: JSON of the policy folder.
        learner: Which of its routers.
        seed: Which of the router's seeds.
        command: What ships it.
    """
    row, origins = figures["heldout"]["routers"][learner], figures.get("traces", {})
    rows = {
        "target": _target(body, origins),
        "drafters": _drafters(origins),
        "arms": _listed(body["arms"]),
        "trained": _trained(figures, body, learner, seed),
        "texts": _texts(figures, origins),
        "reward": _reward(body["provenance"]),
        "held-out": _held_out(figures["heldout"], row, seed),
        **_of_median(figures, body["arms"], learner, seed),
        "machine": _machine(figures, origins),
        "licence": "Apache-2.0",
    }
    lines = (f"| {name} | {text} |" for name, text in rows.items() if text)
    sections = [
        f"# Router for {body['target']}",
        f"Chooses each round of speculative decoding among {_choice(body['arms'])}. It sees no "
        "category and calls no drafter to decide.",
        "\n".join(["| | |", "|---|---|", *lines]),
        "Made by (all settings are in `policy.json`):",
        "\n".join(f"    {line}" for line in _commands(figures, origins, command)),
        "Costs, and so the best choices, are those of the machine above, and acceptance is that of "
        "these drafters. For others, run the commands again.",
    ]
    return "\n\n".join(sections) + "\n"


def _target(body: Json, origins: Json) -> str:
    text = f"{body['target']}, fingerprint `{body['target_fingerprint']}`"
    return f"{text}, {origins['train']['dtype']}" if "train" in origins else text


def _drafters(origins: Json) -> str:
    known = origins.get("train", {}).get("drafters", {})
    return ", ".join(f"{name} `{fingerprint}`" for name, fingerprint in known.items())


def _trained(figures: Json, body: Json, learner: str, seed: int) -> str:
    made, count = body["provenance"], figures["texts"]["train"]
    settings = made["settings"]
    if "algorithm" in settings:
        text = f"{settings['rounds']:,} rounds replayed from traces of {count} texts"
        checked = made.get("validation_tokens_per_target_step")
        if checked is not None:
            text += (
                f", {_share(settings['validation'])} of them set aside to pick the best policy by "
                f"(that of round {made['rounds']:,}: {checked:.3f} tokens per target step)"
            )
    else:
        texts = made["texts"]
        text = (
            f"by walks over traces of {texts['train']} texts; {texts['validation']} others set "
            f"aside, where it explains {_share(made['validation_r2'])} of the variance"
        )
    row = figures["heldout"]["routers"][learner]
    seeds = len(row["gain_by_seed"])
    chosen = ", the one of median speed" if seed == row["median_seed"] else ""
    return f"{text}; {NAMES[learner]}, seed {seed}{chosen} among {seeds}"


def _texts(figures: Json, origins: Json) -> str:
    text = f"{figures['texts']['train']} to train, {figures['texts']['heldout']} held out"
    if "train" not in origins:
        return text
    origin = origins["train"]
    return f"{text}; T = {origin['temperature']:g}, {origin['max_new_tokens']} new tokens"


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


def _of_median(figures: Json, arms: Sequence[str], learner: str, seed: int) -> dict[str, str]:
    """What the figures tell of the seed of median speed alone."""
    row = figures["heldout"]["routers"][learner]
    if seed != row["median_seed"]:
        return {}
    groups = (f"{name} {_percent(gain[0])}" for name, gain in row["by_category"].items())
    return {
        "by category": ", ".join(groups),
        "choices": _choices(arms, row["arm_shares"]),
        "temperature": _temperature(figures, learner, seed),
    }


def _choices(arms: Sequence[str], shares: Sequence[float]) -> str:
    often = sorted(((share, arm) for arm, share in zip(arms, shares, strict=True)), reverse=True)
    shown = [f"`{arm}` {_share(share)}" for share, arm in often if share > SMALL]
    rest = ", the others 1 % or less" if len(shown) < len(arms) else ""
    return f"on held-out texts {', '.join(shown)} of the rounds{rest}"


def _temperature(figures: Json, learner: str, seed: int) -> str:
    """What the same training is worth on sampled texts, if that was measured."""
    if "sampled" not in figures:
        return ""
    judged = figures["sampled"]
    row = judged["routers"][learner]
    origins = figures.get("traces", {})
    here, there = (
        f"T = {origins[name]['temperature']:g}" if name in origins else other
        for name, other in (("train", "one temperature"), ("sampled", "another one"))
    )
    gain = row["gain_by_seed"][seed]
    text = f"trained at {here}; at {there} {_percent(gain)} over `{judged['best_single']}`"
    return f"{text} ({_interval(row['gain'])})" if seed == row["median_seed"] else text


def _machine(figures: Json, origins: Json) -> str:
    host = figures["host"]
    measured = origins.get("train", {}).get("costs_of", {})
    threads = f", costs of {measured['threads']} threads" if "threads" in measured else ""
    revision = str(host["git_revision"])[:12]
    return f"{host['cpu']}{threads}, torch {host['torch']}, revision {revision}"


def _commands(figures: Json, origins: Json, command: str) -> list[str]:
    hosts = [*(origin["host"] for origin in origins.values()), figures["host"]]
    return [*dict.fromkeys(host["command"] for host in hosts if "command" in host), command]


def _choice(arms: Sequence[str]) -> str:
    drafting = [arm for arm in map(parse_arm, arms) if arm.drafts]
    names = ", ".join(dict.fromkeys(arm.drafter for arm in drafting))
    nothing = ", and drafting nothing" if PLAIN in arms else ""
    return f"{len(drafting)} arms of {names}{nothing}"


def _listed(arms: Sequence[str]) -> str:
    return ", ".join(f"`{arm}`" for arm in arms)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _interval(gain: Sequence[float]) -> str:
    return f"95 %: {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}"
