"""Write what other programs load draftgym by.

    $ draftgym export transformers speculation --policy ngram:8

The folder is for transformers: `model.generate(..., custom_generate="speculation",
trust_remote_code=True)`. It holds no code but a call of the installed draftgym.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from draftgym import __version__
from draftgym.decoding.files import user_path, write_text
from draftgym.drafters.formats.files import check_new_folder

GENERATE = '''"""Speculative decoding by draftgym, for `generate(custom_generate=...)`."""

from draftgym.transformers import generate as speculate


def generate(model, policy={policy!r}, drafters={drafters!r}, **arguments):
    """Writes what `model.generate(**arguments)` writes, in fewer passes of the model."""
    return speculate(model, policy=policy, drafters=drafters, **arguments)
'''


@dataclass(frozen=True)
class ExportArgs:
    """Settings of an export."""

    form: Annotated[Literal["transformers"], tyro.conf.Positional]
    """Who shall load it."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Folder to write; new, or empty."""
    policy: str = "ngram:8"
    """What is used where a call names no policy=; of a trained one, its folder."""
    drafters: tuple[str, ...] | None = None
    """Drafters beside the shipped ones that fit the model: folders, or code (module:name)."""


def export(args: ExportArgs) -> None:
    """Writes the folder.

    Raises:
        DraftgymError: It exists already.
    """
    check_new_folder(args.folder)
    code = args.folder / "custom_generate"
    code.mkdir(parents=True, exist_ok=True)
    drafters = None if args.drafters is None else tuple(map(_anywhere, args.drafters))
    text = GENERATE.format(policy=_anywhere(args.policy), drafters=drafters)
    write_text(code / "generate.py", text)
    write_text(code / "requirements.txt", f"draftgym>={__version__}\n")
    print(f"{args.folder}: for model.generate(custom_generate=..., trust_remote_code=True)")


def _anywhere(name: str) -> str:
    """A name, or the path of a folder from wherever a program runs."""
    path = user_path(name)
    return str(path.resolve()) if path.is_dir() else name


def main(arguments: Sequence[str]) -> None:
    """`draftgym export`."""
    export(tyro.cli(ExportArgs, args=arguments, description=__doc__, prog="draftgym export"))
