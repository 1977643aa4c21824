"""Train a scheduler: `draftgym train-scheduler` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("train-scheduler")
