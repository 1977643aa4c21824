"""What people hand to the public face by mistake, refused by name before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.messages import Message


def check_target(given: Any) -> None:
    """Raises `DraftgymError` unless it is a loaded target."""
    if not (hasattr(given, "decoder") and hasattr(given, "encode")):
        raise DraftgymError(
            f"{_told(given)} is no loaded target", "load it: draftgym.load_target(name)"
        )


def check_drafters(given: Any) -> None:
    """Raises `DraftgymError` unless it is loaded drafters by name."""
    loaded = isinstance(given, Mapping) and all(
        isinstance(name, str) and hasattr(one, "propose") for name, one in given.items()
    )
    if not loaded:
        raise DraftgymError(
            f"{_told(given)} is not loaded drafters by name",
            "load them: draftgym.load_drafters(target, [folder, ...])",
        )


def check_policy(given: Any) -> None:
    """Raises `DraftgymError` unless it is a router's policy: it knows its arms."""
    lacking = [name for name in ("arms", "observes", "predict") if not hasattr(given, name)]
    if not lacking:
        return
    if isinstance(given, str | Path):
        remedy = "make a policy of it: draftgym.make_policy(name_or_folder, drafters, target)"
    elif "predict" not in lacking:
        remedy = (
            "an agent of Stable-Baselines3 does not know what its actions mean: train with "
            "draftgym train-router, whose <run>/policy is the exported policy that make_policy "
            "loads, or derive from draftgym.Policy and let choose() ask your agent"
        )
    else:
        remedy = "make one with draftgym.make_policy, or derive from draftgym.Policy"
    raise DraftgymError(f"{_told(given)} is no policy: it lacks {', '.join(lacking)}", remedy)


def is_text(given: Any) -> TypeGuard[str | Sequence[Message]]:
    """Whether it is a text or messages, and not token ids."""
    if isinstance(given, str):
        return True
    return isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], Mapping)


def token_ids(given: Any) -> Tensor:
    """Token ids `[m]` of a tensor, array or list, also of the `[1, m]` that tokenizers return.

    Raises:
        DraftgymError: It is something else, or no ids at all.
    """
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _no_ids(_told(given)) from error
    ids = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() != 1 or (len(ids) and not whole):
        raise _no_ids(f"{ids.dtype} {list(ids.shape)}")
    return ids.long()


def refuse_beside_ids(images: Any) -> None:
    """Raises `DraftgymError` for images that were given beside token ids."""
    if len(images):
        raise DraftgymError(
            "images were given beside token ids, which hold no places for them",
            "give the text or its messages, or inputs from target.encode_with_images",
        )


def _no_ids(what: str) -> DraftgymError:
    return DraftgymError(
        f"{what} is neither text nor the token ids of one",
        "give a str, messages, or whole numbers: a list, or a tensor [m]",
    )


def check_texts(given: Any, what: str, example: str) -> None:
    """Raises `DraftgymError` unless it is a list of texts, and not one text.

    Args:
        given: What was given.
        what: What it should list, for the error.
        example: One of them.
    """
    listed = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not listed or not all(isinstance(one, str) for one in listed):
        raise DraftgymError(
            f"{_told(given)} is no list of {what}", f'write them as texts, as in ["{example}"]'
        )


def _told(given: Any) -> str:
    """A text itself, and of other things what they are."""
    if given is None or isinstance(given, str | Path | int | float):
        return repr(given)
    return f"a {type(given).__name__}"
