"""`python -m draftgym VERB ...` is `draftgym VERB ...`."""

from draftgym.cli import main

main()
