"""Compare policies: `draftgym evaluate` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("evaluate")
