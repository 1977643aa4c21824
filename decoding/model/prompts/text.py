"""Between text and token ids: the tokenizer, and where a text ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from draftgym.decoding.errors import DraftgymError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
)


def load_tokenizer(source: str, who: str) -> Any:
    """The tokenizer of a folder or Hub id; None for a bare folder, which serves token ids.

    Args:
        source: The folder or Hub id.
        who: What messages call the model, as in `target 'mine'`.

    Raises:
        DraftgymError: It has files of a tokenizer, but they cannot be read.
    """
    import transformers

    folder = Path(source)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        len(tokenizer), tokenizer.eos_token_id  # a damaged one may notice only when it is asked
    except Exception as error:  # the readers raise nearly anything on a damaged file
        raise DraftgymError(
            f"the tokenizer of {who} cannot be read: {one_line(error)}",
            "download or copy tokenizer.json and tokenizer_config.json again; with no such file "
            "a target serves token ids alone",
        ) from error
    if not len(tokenizer):
        raise DraftgymError(
            f"the tokenizer of {who} has no tokens",
            "put the tokenizer.json that belongs to it beside its weights",
        )
    return tokenizer


def check_tokens(tokens: Tensor, rows: int, tokenizer: Any, name: str) -> None:
    """Raises `DraftgymError` for a token id that the embedding has no row for.

    Args:
        tokens: Token ids `[n]`.
        rows: Rows of the embedding.
        tokenizer: Says what the token is; may be None.
        name: What the user called the target.
    """
    outside = tokens[(tokens < 0) | (tokens >= rows)].tolist()
    if outside:
        called = ""
        if tokenizer is not None and outside[0] >= 0:
            called = f" ({tokenizer.convert_ids_to_tokens(outside[0])!r})"
        raise DraftgymError(
            f"token {outside[0]}{called} of the prompt is not among the {rows} that target "
            f"{name!r} knows",
            "the tokenizer has tokens that the weights lack: leave this one out, or put the "
            "tokenizer beside the weights that they were trained with",
        )


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Token ids that end a text: those of the model's generation settings, and the tokenizer's.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer, or None.
    """
    stops = getattr(model.generation_config, "eos_token_id", None)
    if stops is None:
        stops = getattr(model.config.get_text_config(), "eos_token_id", None)
    found = [] if stops is None else stops if isinstance(stops, list | tuple) else [stops]
    for token in found:
        if not isinstance(token, int) or isinstance(token, bool):
            raise DraftgymError(
                f"the model's eos_token_id is {stops!r}, not a token id or a list of them",
                "correct it in generation_config.json and config.json",
            )
    end = getattr(tokenizer, "eos_token_id", None)
    return frozenset(found if end is None else [*found, end])


def one_line(error: Exception) -> str:
    """What an exception says, shortened to one line."""
    return " ".join(str(error).split())[:300] or repr(error)
