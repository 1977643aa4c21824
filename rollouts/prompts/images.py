"""The images of a prompt file's turns: paths beside the file, checked when it is read."""

from __future__ import annotations

import reprlib
from pathlib import Path

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.prompts.images import open_image

REMEDY = (
    'write one list of paths per turn, "images": [["cat.png"], []], or for the first turn alone '
    '"images": ["cat.png"]; paths are relative to the prompt file'
)


def read_images(
    value: object, turns: int, where: str, folder: Path
) -> tuple[tuple[Path, ...], ...]:
    """The field `images` of a prompt.

    Args:
        value: What the file holds.
        turns: Turns of the prompt.
        where: Opens every complaint.
        folder: Where the prompt file lies.

    Returns:
        Paths of every turn's images; empty where there are none at all.

    Raises:
        DraftgymError: It has another shape, or a file is missing or no image.
    """
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        raise DraftgymError(f'{where}: "images" must be a list', REMEDY)
    rows = [value] if all(isinstance(one, str) for one in value) else value
    if len(rows) > turns:
        raise DraftgymError(f'{where}: "images" has {len(rows)} lists for {turns} turns', REMEDY)
    rows = [*rows, *([[]] * (turns - len(rows)))]
    read = tuple(_paths(row, where, folder) for row in rows)
    return read if any(read) else ()


def _paths(row: object, where: str, folder: Path) -> tuple[Path, ...]:
    """The images of a turn."""
    if not isinstance(row, list) or not all(isinstance(one, str) and one for one in row):
        raise DraftgymError(
            f'{where}: "images" holds {reprlib.repr(row)}, which is no list of paths', REMEDY
        )
    paths = tuple(folder / user_path(one) for one in row)
    for path in paths:
        try:
            open_image(path)
        except DraftgymError as error:
            raise DraftgymError(f"{where}: {error.problem}", error.remedy) from error
    return paths
