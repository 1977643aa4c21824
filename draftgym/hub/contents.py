"""What a folder holds that can be shared, and which of its files are.

Nothing that is unpickled goes either way: names end as one of `SHARED` says, or a file stays where
it is. A kind is seen from the files, never from a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.drafters.formats import recognise
from draftgym.drafters.formats.files import tensor_names, weight_files
from draftgym.drafters.loading import kind_of
from draftgym.policies.folder import BODY, read_body
from draftgym.policies.folder import kind_of as kind_of_policy
from draftgym.rollouts.traces.file import read_origin
from draftgym.rollouts.traces.shards import shards_in

What = Literal["drafter", "policy", "traces"]
CARD = "README.md"
SHARED: dict[What, tuple[str, ...]] = {
    "drafter": (".safetensors", ".json", ".md"),
    "policy": (".safetensors", ".json", ".md"),
    "traces": (".parquet", ".md"),
}
"""Ends of the names of files that are shared."""
PATTERNS = sorted({f"*{ending}" for endings in SHARED.values() for ending in endings})


@dataclass(frozen=True)
class Shared:
    """A folder that can be shared.

    Attributes:
        folder: Where it lies.
        what: Drafter, policy or traces.
        kind: Which of them: `eagle3`, `router`, ...; `traces` for traces.
        target: Name of the target that it is for, as far as the folder tells.
        fingerprint: Hash of that target's weights, likewise.
    """

    folder: Path
    what: What
    kind: str
    target: str | None
    fingerprint: str | None

    @property
    def repo_type(self) -> str:
        """What the Hub calls it."""
        return "dataset" if self.what == "traces" else "model"

    @property
    def files(self) -> list[Path]:
        """The files that are shared; hidden ones are locks and unfinished writes."""
        return [path for path in self._all if self._is_shared(path)]

    @property
    def left_out(self) -> list[str]:
        """Names of the others."""
        return [path.name for path in self._all if not self._is_shared(path)]

    def _is_shared(self, path: Path) -> bool:
        return path.suffix in SHARED[self.what] and path.is_file()

    @property
    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))


def contents_of(folder: Path) -> Shared:
    """Sees what a folder holds.

    Raises:
        DraftgymError: Nothing that can be shared, damaged files, or weights that are a pickle.
    """
    if (folder / BODY).is_file():
        body = read_body(folder)
        return _named(folder, "policy", kind_of_policy(body), body)
    if folder.is_dir() and (shards := shards_in(folder)):
        origin = read_origin(shards[0])
        return Shared(folder, "traces", "traces", origin.target, origin.target_fingerprint)
    if (folder / "config.json").is_file():
        return _drafter(folder)
    raise DraftgymError(
        f"{folder} holds no drafter (config.json), policy ({BODY}) or traces (part-*.parquet)",
        "name a folder that a trainer or draftgym collect wrote (of a run, the one in it)",
    )


def _drafter(folder: Path) -> Shared:
    weights = weight_files(folder)
    if not all(path.suffix == ".safetensors" and path.is_file() for path in weights):
        raise DraftgymError(
            f"{folder} has no weights in safetensors",
            "name a checkpoint folder (of a run, the one in it); pickles are neither pushed nor "
            "pulled, for they can run code: draftgym convert makes safetensors of a drafter's",
        )
    body, names = read_json(folder / "config.json", "copy it again"), tensor_names(folder)
    kind = kind_of(folder)
    if kind is None:
        raise DraftgymError(f"{folder} holds no drafter that draftgym reads", "name another folder")
    form = recognise(body, names)
    if form is None:  # a small LM, or a store of responses
        return _named(folder, "drafter", kind, body.get("draftgym", {}))
    origin = form.origin(body)
    return Shared(folder, "drafter", kind, origin.name, origin.fingerprint)


def _named(folder: Path, what: What, kind: str, told: dict[str, object]) -> Shared:
    said = (told.get("target"), told.get("target_fingerprint"))
    target, fingerprint = (None if one is None else str(one) for one in said)
    return Shared(folder, what, kind, target, fingerprint)
