"""Compare policies on real decoding, beside plain decoding with the same target.

    $ draftgym evaluate                                  # every policy, the held-out prompts
    $ draftgym evaluate --policies eagle3 dflash entropy --limit-per-category 4
    $ draftgym evaluate --prompts questions.jsonl --dtype float32 --json result.json
    $ draftgym evaluate --limit-per-category 2 --report runs/report      # plots, texts: a page
    $ draftgym evaluate --against llama.cpp transformers --limit-per-category 2  # other engines

Policies are interleaved prompt by prompt. The table shows tokens per round, tokens per second,
speed-up and how many texts are plain decoding's, per category and overall; --report adds their
intervals, and every text coloured by who drafted it.

Schedulers of many users are compared with options of their own (--scheduler --help):

    $ draftgym evaluate --scheduler fixed heterogeneous@beta runs/scheduler/policy
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tyro


def main(arguments: Sequence[str]) -> None:
    """`draftgym evaluate`: routers, or schedulers where `--scheduler` is given."""
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--scheduler", nargs="*")
    if which.parse_known_args(arguments)[0].scheduler is not None:
        # Cells need gymnasium; routers do without it.
        from draftgym.agents.scheduler.evaluation import EvaluateSchedulersArgs, evaluate_schedulers

        evaluate_schedulers(
            tyro.cli(EvaluateSchedulersArgs, args=arguments, prog="draftgym evaluate")
        )
    else:
        from draftgym.rollouts.decode.evaluation import EvaluateArgs, evaluate

        evaluate(
            tyro.cli(EvaluateArgs, args=arguments, description=__doc__, prog="draftgym evaluate")
        )
