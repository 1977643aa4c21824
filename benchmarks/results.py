"""What all measurements share: options, where figures come from, files that survive a kill."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Table, show
from draftgym.decoding import files
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import (
    describe_drafters,
    describe_host,
    describe_target,
    plain,
)
from draftgym.drafters.loading import find_checkpoints, load_drafters
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.decode.fitting import FittedPrompts, fit_prompts
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts

Result = dict[str, Any]
"""What a JSON file of figures holds."""
Record = dict[str, Any]
"""What was measured on one prompt."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is measured.

    Attributes:
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        drafters: Drafter checkpoints beside or instead of the shipped ones.
        threads: CPU threads; default: every core this process may use.
        device: auto (an accelerator if torch finds one), cpu, cuda, cuda:1, mps or xpu.
        backend: Whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
    """

    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    threads: int | None = None
    device: str = "auto"
    backend: Backend = "auto"

    def load(self, dtype: str = "float32") -> tuple[Target, dict[str, Drafter]]:
        """The target and its drafters."""
        target = load_target(self.target, dtype, self.threads, self.device, self.backend)
        return target, dict(load_drafters(target, self.drafters))


@dataclass(frozen=True, kw_only=True)
class PromptOptions(TargetOptions):
    """What is written.

    Attributes:
        prompts: heldout or train (shipped sets), or a JSON-lines file.
        per_category: Prompts of each category.
        max_new_tokens: Tokens per text at most.
        skip_long_prompts: Leave out prompts that do not fit the target, and count them.
    """

    prompts: str = "heldout"
    per_category: int = 5
    max_new_tokens: int = 96
    skip_long_prompts: bool = False

    def load_prompts(self) -> list[Prompt]:
        """The prompts, categories in turn."""
        chosen = load_prompts(self.prompts, limit_per_category=self.per_category)
        return interleave_categories(chosen)

    def fit(self, target: Target, prompts: Sequence[Prompt]) -> FittedPrompts:
        """The same as token ids, all of which fit."""
        return fit_prompts(target, prompts, self.max_new_tokens, self.skip_long_prompts)


def environment(
    settings: Any, target: Target | None = None, drafters: Mapping[str, Drafter] | None = None
) -> Result:
    """Where figures come from: settings, weights, dtype, threads, hardware, versions, command.

    Args:
        settings: The benchmark's options, a dataclass.
        target: What was measured, if it was loaded.
        drafters: Those that were loaded (`settings.drafters` names more than the shipped ones).
    """
    facts = {"settings": plain(asdict(settings)), **describe_host()}
    if target is not None:
        facts |= describe_target(target)
        found = find_checkpoints(target, settings.drafters) if drafters else {}
        facts["drafters"] = describe_drafters(drafters or {}, found)
    return facts


def finish(
    tables: Callable[[Result], list[Table]],
    settings: Any,
    figures: Mapping[str, Any],
    target: Target | None = None,
    drafters: Mapping[str, Drafter] | None = None,
    facts: Mapping[str, Any] | None = None,
    last: bool = True,
) -> Result:
    """Names the benchmark and where its figures come from, shows and writes them.

    Args:
        tables: The benchmark's function of this name.
        settings: Its options; `settings.json` is the file, if one is wanted.
        figures: What was measured.
        target: As `environment`.
        drafters: As `environment`.
        facts: What else is told of the environment.
        last: Whether nothing follows, so that the tables are shown.
    """
    module = sys.modules[tables.__module__].__spec__
    assert module is not None, "benchmarks are modules"
    known = {**(facts or {}), **environment(settings, target, drafters)}
    result: Result = plain({"benchmark": module.name, "environment": known, **figures})
    if settings.json is not None:  # first: whoever reads the tables may close the pipe
        write_json(settings.json, result)
    if last:
        show(tables(result))
    return result


def write_json(path: Path, body: Mapping[str, Any], indent: int | None = 1) -> None:
    """Replaces the file in one step: a kill leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, body, indent)


def check(settings: Any, *names: str) -> None:
    """Raises `DraftgymError` if one of these options is below 1 or the file cannot be written."""
    for name in names:
        if (value := getattr(settings, name)) < 1:
            raise DraftgymError(f"--{name.replace('_', '-')} is {value}", "give at least 1")
    if settings.json is not None:
        check_writable(settings.json)


class Partial:
    """Finished prompts of a result file, one JSON object a line, until the result is written.

    Args:
        result: The result file; prompts are kept in `<result>.partial.jsonl`.
        settings: What must not change when a run goes on.

    Raises:
        DraftgymError: The file belongs to other settings, or is damaged.
    """

    def __init__(self, result: Path, settings: Mapping[str, Any]) -> None:
        self.path = result.with_name(result.name + ".partial.jsonl")
        self.records: list[Record] = []
        if not self.path.exists():
            files.write_text(self.path, json.dumps(settings) + "\n")
            return
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        remedy = "delete it to start over, or name another file with --json"
        try:
            parsed = [files.parse_json(line, str(self.path), remedy) for line in whole.splitlines()]
            header, *self.records = parsed
        except ValueError as error:
            raise DraftgymError(f"{self.path} is damaged: {error}", remedy) from error
        changed = [key for key in settings if header.get(key) != settings[key]]
        if changed:
            raise DraftgymError(f"{self.path} was started with other {', '.join(changed)}", remedy)
        files.write_text(self.path, whole)
        print(
            f"going on after {len(self.records)} finished prompts of {self.path}", file=sys.stderr
        )

    def add(self, record: Record) -> None:
        """Keeps a finished prompt."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def done(self) -> None:
        """Removes the file: the result is written."""
        self.path.unlink()
