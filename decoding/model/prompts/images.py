"""Images as a user gives them: paths, and images of Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path

NEEDS_PILLOW = "install it: pip install 'draftgym[images]'"
IMAGE_PARTS = ("image", "image_url")
"""Types of a message's parts that are images, as transformers and OpenAI's API call them."""


def require_pillow() -> None:
    """Raises `DraftgymError` unless images can be read."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DraftgymError("reading images needs Pillow", NEEDS_PILLOW) from error


def open_image(source: Any) -> Any:
    """An image as transformers' processors take it: upright, in RGB.

    Args:
        source: A path, or an image of Pillow.

    Raises:
        DraftgymError: There is no such file, or it is no image.
    """
    require_pillow()
    import PIL.Image
    import PIL.ImageOps

    if isinstance(source, PIL.Image.Image):
        image: Any = source
    elif isinstance(source, str | Path):
        image = _read(source)
    else:
        raise DraftgymError(
            f"a {type(source).__name__} is no image", "give a path, or an image of Pillow"
        )
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


def image_of(part: Mapping[str, Any], where: str) -> Any:
    """The image of a message's part, opened.

    Args:
        part: `{"type": "image", "image": ...}` with a path or an image of Pillow (also `path` or
            `url`, as transformers has it), or `{"type": "image_url", "image_url": {"url": ...}}`.
        where: What messages call the message.

    Raises:
        DraftgymError: It names none, or none that can be read.
    """
    url = part.get("image_url")
    given = [part.get("image"), part.get("path"), part.get("url")]
    given += [url.get("url") if isinstance(url, Mapping) else url]
    source = next((one for one in given if one is not None), None)
    if source is None:
        raise DraftgymError(
            f"{where} has an image part without an image",
            'write it as {"type": "image", "image": "cat.png"}',
        )
    try:
        return open_image(source)
    except DraftgymError as error:
        raise DraftgymError(f"{where}: {error.problem}", error.remedy) from error


def _read(source: str | Path) -> Any:
    import PIL.Image

    if str(source).startswith(("http:", "https:", "data:")):
        raise DraftgymError(
            f"the image {str(source)[:60]!r} is no file", "save it to a file and name that"
        )
    path = user_path(source)
    if not path.is_file():
        raise DraftgymError(f"there is no image {str(source)!r}", "check its path")
    try:
        image = PIL.Image.open(path)
        image.load()
    except Exception as error:  # what Pillow raises on a damaged file depends on its format
        raise DraftgymError(
            f"{str(source)!r} is no image that Pillow can read: {' '.join(str(error).split())}",
            "convert it to PNG or JPEG",
        ) from error
    return image
