"""Train a drafter: `draftgym train-drafter` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("train-drafter")
