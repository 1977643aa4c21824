"""Where figures come from: what every result file says about its run."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, write_json
from draftgym.decoding.model.device import device_name
from draftgym.decoding.model.fingerprint import other_target
from draftgym.decoding.model.target import Target

ROOT = Path(__file__).resolve().parents[1]


def describe_host() -> dict[str, Any]:
    """Processor, versions, revision and command of this process."""
    import transformers

    return {
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "git_revision": git_revision(),
        "command": command_line(),
    }


def describe_target(target: Target) -> dict[str, Any]:
    """Which weights, in which numbers, where, and why in those and there."""
    return {
        "target": target.name,
        "fingerprint": target.fingerprint,
        "dtype": target.precision.dtype,
        "threads": target.precision.threads,
        "precision_reason": target.precision.reason,
        **describe_device(target),
    }


def describe_device(target: Target) -> dict[str, Any]:
    """Where a target computes, and why there."""
    return {
        "device": str(target.device),
        "device_name": target_device_name(target),
        "device_reason": target.precision.device_reason,
        **({"spread": target.precision.spread} if target.precision.spread else {}),
    }


def target_device_name(target: Target) -> str:
    """What a target computes on: the accelerator's name, or the processor's."""
    return cpu_name() if target.device.type == "cpu" else device_name(target.device)


def machine_of(facts: Mapping[str, Any]) -> str:
    """What figures ran on: the accelerator, where there was one, and the processor.

    Args:
        facts: `describe_host` and `describe_target`; older ones name no device.
    """
    elsewhere = facts.get("device", "cpu") != "cpu"
    return f"{facts['device_name']}, {facts['cpu']}" if elsewhere else str(facts["cpu"])


def note_other_device(
    what: str, before: Mapping[str, Any], target: Target, consequence: str
) -> None:
    """Says on standard error that something goes on elsewhere than it began.

    Args:
        what: What goes on, as in `traces runs/traces`.
        before: What it says of its target; older ones name no device.
        target: The target now.
        consequence: What that means for it.
    """
    began, now = before.get("device_name"), target_device_name(target)
    if began not in (None, now):
        told = f"note: {what} began on {began} and now runs on {now}: {consequence}"
        print(told, file=sys.stderr)


def describe_drafters(
    drafters: Mapping[str, Drafter], folders: Mapping[str, Path]
) -> dict[str, str | None]:
    """Folder of each drafter's weights (None: it has none), relative to the project if inside."""
    return {name: _short(folders[name]) if name in folders else None for name in drafters}


def check_run_folder(folder: Path, option: str = "--run") -> None:
    """Makes the folder that `option` names; raises `DraftgymError` where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DraftgymError(
            f"cannot write to {folder}: {error.strerror}", f"name another folder with {option}"
        ) from error


@contextmanager
def sole_writer(folder: Path, option: str = "--out") -> Iterator[None]:
    """Makes the folder that `option` names and keeps other writers out.

    The lock vanishes with its process, however that ends.

    Raises:
        DraftgymError: Another process writes there, or it cannot be made.
    """
    check_run_folder(folder, option)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DraftgymError(
            f"another process is writing to {folder}", f"wait for it, or name another {option}"
        ) from None
    except OSError as error:
        raise DraftgymError(
            f"cannot write to {folder}: {error.strerror}", f"name another folder with {option}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_run_config(
    folder: Path, settings: Any, target: Target, facts: Mapping[str, Any] | None = None
) -> None:
    """Writes `config.json` of a run folder: settings, command, revision, versions, target.

    Args:
        folder: The run folder.
        settings: A dataclass, possibly nested.
        target: What it runs on.
        facts: What else is told.

    Raises:
        DraftgymError: The folder has a run on another target.
    """
    path = folder / "config.json"
    if path.is_file():
        told_before = read_json(path, "repair it, or name another --run")
        before = told_before.get("fingerprint")
        if before not in (None, target.fingerprint):
            key, remedy = "fingerprint in its config.json", "name another --run"
            raise other_target(f"run {folder}", before, target, key, remedy)
        note_other_device(f"run {folder}", told_before, target, "its minutes are of both")
    told = {**(facts or {}), **describe_target(target), **describe_host()}
    write_json(path, {"settings": plain(asdict(settings)), **told})


def plain(value: Any) -> Any:
    """JSON form of nested settings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def cpu_name() -> str:
    """The processor's marketing name where the system tells it."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_model() -> str:
    """The name with the numbers behind it: virtual machines call many processors by one name."""
    facts = _cpu_facts()
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    return " ".join([cpu_name(), *numbers])


def _cpu_facts() -> dict[str, str]:
    """What the system says of the first processor; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def command_line() -> str:
    """How this process was started, without the folder that the project happens to lie in."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = Path(sys.argv[0])
    if program.stem == "draftgym" or (spec is not None and spec.name == "draftgym.__main__"):
        script = ["draftgym"]
    elif spec is not None:
        script = ["python", "-m", spec.name]
    else:
        script = ["python", _short(program)]
    return shlex.join([*script, *sys.argv[1:]])


@cache
def git_revision() -> str | None:
    """Commit of the code when first asked, `-dirty` if files were changed; None outside a clone."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _short(folder: Path) -> str:
    folder = folder.resolve()
    return str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)
