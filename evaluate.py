"""Compare policies on real decoding, beside plain decoding with the same target.

    $ python evaluate.py                                  # every policy, the held-out prompts
    $ python evaluate.py --policies eagle3 dflash entropy --limit-per-category 4
    $ python evaluate.py --prompts questions.jsonl --dtype float32 --json result.json
    $ python evaluate.py --limit-per-category 2 --report runs/report      # plots, texts: a page

Policies are interleaved prompt by prompt. The table shows tokens per round, tokens per second,
speed-up and how many texts are plain decoding's, per category and overall; --report adds their
intervals, and every text coloured by who drafted it.

Schedulers of many users are compared with options of their own (--scheduler --help):

    $ python evaluate.py --scheduler fixed heterogeneous@beta runs/scheduler/policy
"""

from __future__ import annotations

import sys

import tyro

from decoding.errors import exit_on_user_error
from rollouts.evaluation import EvaluateArgs, evaluate


def main() -> None:
    """Compares routers, or schedulers where `--scheduler` is given."""
    if "--scheduler" in sys.argv[1:]:
        # Cells need gymnasium; routers do without it.
        from agents.scheduler_evaluation import EvaluateSchedulersArgs, evaluate_schedulers

        evaluate_schedulers(tyro.cli(EvaluateSchedulersArgs))
    else:
        evaluate(tyro.cli(EvaluateArgs, description=__doc__))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
