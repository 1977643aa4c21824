"""The command line: `draftgym VERB ...`; the scripts at a checkout's root run the same code."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from draftgym.decoding.errors import DraftgymError, exit_on_user_error

COMMANDS = {
    "generate": ("rollouts.decode.generation", "write a text with a policy, see every round"),
    "serve": ("serving.http.main", "an OpenAI-compatible server with any policy"),
    "edge": ("serving.edge.main", "devices that draft, a server that verifies, over a network"),
    "evaluate": ("evaluate", "compare policies, or schedulers, on prompts"),
    "collect": ("rollouts.traces.collect", "trace what every arm would do, from real decoding"),
    "import-traces": ("rollouts.import_traces", "traces that others published, of a large target"),
    "train-router": ("agents.router.train", "train who chooses the arm of each round"),
    "train-scheduler": ("agents.scheduler.train", "train who divides drafting among users"),
    "train-serving": ("agents.serving.train", "make a policy for the batches of a server"),
    "train-drafter": ("drafters.training.main", "train EAGLE-3, DFlash or a small LM"),
    "train-regression": ("agents.router.advantage", "train a router by regression on traces"),
    "train-neural": ("agents.router.neural", "train WhiFlash's neural router"),
    "tune": ("agents.router.tune", "search hyperparameters of a router's agent"),
    "tune-entropy": ("rollouts.replay.tune_entropy", "tune the threshold of the entropy rule"),
    "ask": ("rollouts.responses.ask", "let the target write prompts, for it to respond to"),
    "respond": ("rollouts.responses.respond", "write the corpus that drafters are trained on"),
    "convert": ("drafters.convert", "a drafter checkpoint in another published format"),
    "export": ("export", "a folder that transformers' generate() loads draftgym by"),
    "push": ("hub.push", "a drafter, policy or traces to the Hugging Face Hub"),
    "pull": ("hub.pull", "a drafter, policy or traces from the Hugging Face Hub"),
    "export-policy": ("agents.serving.export", "draft lengths by batch size, for other engines"),
    "export-costs": ("agents.serving.export_costs", "what rounds cost, for SGLang's DSPARK"),
    "average": ("drafters.average", "average the weights of several trainings"),
    "suffix-store": ("drafters.suffix.store", "earlier responses for suffix decoding to copy from"),
    "unpack-small-lm": ("drafters.small_lm.network", "a shipped small LM as a whole model folder"),
    "card": ("drafters.training.loop.card", "the card of a trained drafter"),
    "measure-host": ("envs.cell.host", "measure this host as the server of many users"),
}


def usage() -> str:
    """The verbs, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: draftgym VERB [OPTIONS]   (draftgym VERB --help tells its options)", "", *lines]
    )


def run(verb: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; mistakes of the user end the process with status 2 and a remedy.

    Args:
        verb: A key of `COMMANDS`.
        arguments: What follows it; by default what follows the script's name.
    """
    with exit_on_user_error():
        if verb not in COMMANDS:
            close = difflib.get_close_matches(verb, COMMANDS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DraftgymError(f"unknown verb {verb!r}", f"{hint}draftgym --help lists all")
        module = importlib.import_module(f"draftgym.{COMMANDS[verb][0]}")
        module.main(sys.argv[1:] if arguments is None else arguments)


def main() -> None:
    """The `draftgym` program."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help", "--version"):
        with exit_on_user_error():
            asked = verb == "--version"
            print(importlib.import_module("draftgym").__version__ if asked else usage())
    else:
        run(verb, sys.argv[2:])
