"""What the Hub's client can meet, as errors with a remedy.

Address, token and offline mode are those of every Hugging Face program: `HF_ENDPOINT`, `HF_TOKEN`
(or `hf auth login`), `HF_HUB_OFFLINE=1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

from draftgym.decoding.errors import DraftgymError

DATASETS = "datasets/"
"""What stands before the name of a dataset, as in its address."""
KNOWN: tuple[tuple[type[Exception], str, str], ...] = (
    (
        errors.GatedRepoError,
        "asks who wants it",
        "agree to its terms on its page, and give a token of yours (HF_TOKEN, or hf auth login)",
    ),
    (
        errors.RepositoryNotFoundError,
        "is not there, or not for you",
        "check the name (owner/name); a private one needs a token (HF_TOKEN, or hf auth login)",
    ),
    (
        errors.RevisionNotFoundError,
        "has no such revision",
        "name a branch, a tag or a whole commit hash with --revision",
    ),
    (
        errors.OfflineModeIsEnabled,
        "is out of reach: HF_HUB_OFFLINE is set",
        "unset it; offline, only what was pulled before can be used",
    ),
    (
        errors.LocalEntryNotFoundError,
        "is out of reach, and was not pulled before",
        "check the network, HF_ENDPOINT and HF_HUB_OFFLINE; what was pulled once needs neither",
    ),
    (
        errors.HFValidationError,
        "is no name of a repository",
        "give owner/name, as in the address of its page",
    ),
)
"""What an error means, and what to do about it; the first that fits counts."""


@contextmanager
def told_simply(repo: str) -> Iterator[None]:
    """Whatever the Hub's client raises becomes a `DraftgymError`.

    Args:
        repo: Whom it is about.
    """
    try:
        yield
    except DraftgymError:
        raise
    except Exception as error:  # those of an HTTP library, too, which is another from time to time
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the disk, which says where
        for kind, problem, remedy in KNOWN:
            if isinstance(error, kind):
                raise DraftgymError(f"{repo} {problem}", remedy) from error
        raise _other(repo, error) from error


def _other(repo: str, error: Exception) -> DraftgymError:
    reason = (str(error) or repr(error)).splitlines()[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return DraftgymError(
            f"the Hub refuses {repo}: {reason}",
            "give a token that may write there (HF_TOKEN, or hf auth login)",
        )
    if status is not None:
        return DraftgymError(f"the Hub refuses {repo}: {reason}", "mend what it names; try again")
    return DraftgymError(
        f"cannot reach {constants.ENDPOINT} for {repo}: {reason}",
        "check the network and HF_ENDPOINT",
    )
