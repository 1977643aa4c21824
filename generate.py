"""Write a text by speculative decoding: `draftgym generate` from a checkout."""

from draftgym.cli import run

if __name__ == "__main__":
    run("generate")
