"""The card of a trained drafter: what it learned from, how far, and how to make it again.

    $ draftgym card runs/eagle3

prints what training has written into `checkpoint/README.md`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json, read_json
from draftgym.decoding.provenance import machine_of
from draftgym.drafters.training.loop.progress import SELECTS
from draftgym.drafters.training.loop.watch import DEPTH, NODES
from draftgym.drafters.training.objectives.losses import LOSSES


def card(run: tyro.conf.Positional[Path]) -> str:
    """The card as Markdown.

    Args:
        run: Run folder of draftgym train-drafter.

    Raises:
        DraftgymError: The folder holds no training run.
    """
    remedy, metrics = "name a run folder of draftgym train-drafter", run / "metrics.jsonl"
    config = read_json(run / "config.json", remedy)
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DraftgymError(f"{run} holds no drafter training: {error}", remedy) from error
    entries = [parse_json(line, f"{metrics}, line {n}", remedy) for n, line in enumerate(lines, 1)]
    sections = [
        f"# Drafter for {config['target']}",
        f"Trained by `draftgym train-drafter` for the target `{config['target']}` (fingerprint "
        f"`{config['fingerprint']}`).",
        _facts(config, entries),
        *_curve(
            "Teacher-forced top-1 agreement with the text at each draft position, on texts set "
            "aside, over the whole vocabulary:",
            *(entries, "agreement_", ["loss"]),
        ),
        *_curve(
            "Decoding the greedy texts set aside (T = 0, recorded; what selects the weights): "
            f"acceptance length with the target's own token (mean of a chain of {DEPTH} and, where "
            f"there is one, a tree {DEPTH}x{NODES}), and share of the chain's rounds accepted up "
            "to each draft position:",
            *(entries, "accepted_", [SELECTS, f"chain_{SELECTS}"], f"tree_{SELECTS}"),
        ),
        "Command:",
        f"    {shlex.join(map(_portable, shlex.split(config['command'])))}",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(config: dict[str, Any], entries: list[dict[str, float]]) -> str:
    settings, last = config["settings"], entries[-1] if entries else {}
    texts = "greedy texts" if settings.get("hottest") == 0 else "texts"
    trainer = settings["trainer"]
    rows = {
        "weights": _weights(entries),
        "corpus": f"`{Path(settings['corpus']).name}`, {texts} of the target itself",
        **_learning(settings),
        "drafter": _listed(settings["drafter"]),
        "loop": _listed(trainer),
        "time": f"{last.get('minutes', 0):.0f} minutes, {last.get('updates', 0)} updates, "
        f"{last.get('response_tokens', 0):,} response tokens visited",
        "throughput": f"{last.get('tokens_per_second', 0)} response tokens/s, "
        f"{last.get('gflops', 0)} GFLOP/s where a matrix product alone reaches "
        f"{last.get('matmul_peak_gflops', 0)}",
        "machine": f"{machine_of(config)}, {_workers(config)}, {config['dtype']}, torch "
        f"{config['torch']}, revision {str(config['git_revision'])[:12]}",
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    )


def _workers(config: dict[str, Any]) -> str:
    """How many threads, of how many processes."""
    threads, processes = f"{config['threads']} threads", config.get("processes", 1)
    return threads if processes == 1 else f"{processes} processes of {threads}"


def _learning(settings: dict[str, Any]) -> dict[str, str]:
    """What is minimised, and from where on."""
    if "objective" not in settings:  # a small LM of before, when it had one way alone
        return {}
    name, terms, init = settings["objective"], settings["terms"], settings["init"]
    loss = _listed({knob: terms["loss"][knob] for knob in LOSSES[name][1]})
    if name in ("replay", "vsd"):
        loss = f"{_listed(terms[name])}; its {'anchor' if name == 'vsd' else 'loss'}: {loss}"
    return {
        "objective": f"{name}: {loss}",
        "init": "fresh weights" if init is None else f"`{_portable(init)}`",
    }


def _weights(entries: list[dict[str, float]]) -> str:
    """Which of all the weights that the run went through these are."""
    best = next((entry for entry in reversed(entries) if "best_updates" in entry), None)
    if best is None:
        return "the last ones; acceptance was not watched"
    chosen = int(best["best_updates"])
    which = "those it started from" if chosen == 0 else f"those of update {chosen}"
    return (
        f"the best measured: {which} of {int(best['updates'])}, "
        f"acceptance length {best[f'best_{SELECTS}']:.3f} on texts set aside"
    )


def _listed(settings: dict[str, Any]) -> str:
    shown = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _curve(
    heading: str, entries: list[dict[str, float]], prefix: str, needs: list[str], *may: str
) -> list[str]:
    """A heading and a table with a row per measurement; nothing where there are none.

    Args:
        heading: What the table shows.
        entries: Lines of the metrics file.
        prefix: What the names of numbered figures begin with.
        needs: Other figures, which every such measurement has.
        may: Figures that it may have.
    """
    rows = [entry for entry in entries if all(name in entry for name in needs)]
    if not rows:
        return []
    known = {name for row in rows for name in row}
    names = sorted(name for name in known if name.startswith(prefix))
    columns = [*needs, *(name for name in may if name in known), *names]
    head = ["update", "minutes", "tokens", *(name.removeprefix(prefix) for name in columns)]
    body = [
        [f"{row['updates']}", f"{row['minutes']:.0f}", f"{row['response_tokens']:,}"]
        + [f"{row[name]:.3f}" if name in row else "" for name in columns]
        for row in rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body]]
    return [heading, "\n".join(lines)]


def _portable(path: str) -> str:
    """Without the folders of the machine."""
    return Path(path).name if path.startswith("/") else path


def main(arguments: Sequence[str]) -> None:
    """`draftgym card`."""
    print(tyro.cli(card, args=arguments, description=__doc__, prog="draftgym card"))
