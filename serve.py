"""Serve a target over OpenAI's API: `draftgym serve` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("serve")
