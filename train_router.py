"""Train a router: `draftgym train-router` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("train-router")
