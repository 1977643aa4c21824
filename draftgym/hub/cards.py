"""Cards: a folder's README.md with the fields above it that the Hub reads.

Fields that a README has already are its owner's, and win. So what was pulled is pushed again as it
was.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData, RepoCard

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.model.embedded import EMBEDDED_TARGETS
from draftgym.decoding.model.few_bits import form_of
from draftgym.drafters.training.loop.progress import SELECTS
from draftgym.hub.contents import CARD, Shared
from draftgym.policies.folder import ROUTER, SCHEDULER, read_body
from draftgym.rollouts.traces.file import read_origin
from draftgym.rollouts.traces.shards import shards_in

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
USE = {
    "drafter": "draftgym generate --target {target} --drafters {folder} --policy {kind}",
    "policy": "draftgym generate --target {target} --policy {folder}",
    "traces": "draftgym train-router --traces {folder}",
}
"""What a card without words of its own tells to do with a folder."""


def card_of(shared: Shared, base_model: str | None, repo: str) -> str:
    """The card as Markdown.

    Args:
        shared: The folder.
        base_model: Hub id of its target; None for the one that it names.
        repo: Where it will lie.

    Raises:
        DraftgymError: The folder's README.md begins with fields that cannot be read.
    """
    path = shared.folder / CARD
    fields = _fields(shared, base_model or hub_id(shared.target), repo).to_dict()
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else _words(shared, repo)
        card = RepoCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except Exception as error:  # YAML's, or bytes that are no text
        raise DraftgymError(
            f"{path}: {str(error).splitlines()[0]}", "mend the fields between its --- lines"
        ) from error
    card.data = CardData(**{**fields, **card.data.to_dict()})
    return str(card)


def hub_id(target: str | None) -> str | None:
    """The Hub id behind a target's name; None where it has none."""
    if target is None:
        return None
    name, _ = form_of(target)
    if name in EMBEDDED_TARGETS:
        return EMBEDDED_TARGETS[name].hub
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _fields(shared: Shared, base_model: str | None, repo: str) -> CardData:
    tags = ["draftgym", "speculative-decoding", shared.kind]
    if shared.what == "traces":
        files = {"config_name": "default", "data_files": "part-*.parquet"}  # for its viewer
        return DatasetCardData(tags=tags, task_categories=["text-generation"], configs=[files])
    learned, results = shared.kind in (ROUTER, SCHEDULER), _results(shared)
    return ModelCardData(
        library_name="draftgym",
        tags=tags,
        base_model=base_model,
        pipeline_tag="reinforcement-learning" if learned else "text-generation",
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _results(shared: Shared) -> list[EvalResult]:
    """Figures on texts set aside, as far as provenance has them."""
    figures = _of_policy(shared) if shared.what == "policy" else _of_run(shared)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="texts-set-aside",
            dataset_name="texts of the training corpus that were set aside",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=value,
        )
        for name, value in figures.items()
    ]


def _of_policy(shared: Shared) -> dict[str, float]:
    """What its trainer noted as `validation_...`."""
    provenance = read_body(shared.folder).get("provenance", {})
    return {
        name.removeprefix("validation_"): value
        for name, value in provenance.items()
        if name.startswith("validation_") and _is_figure(value)
    }


def _of_run(shared: Shared) -> dict[str, float]:
    """The best acceptance length of the run whose `checkpoint` this is; nothing elsewhere."""
    try:
        lines = (shared.folder.resolve().parent / "metrics.jsonl").read_text(encoding="utf-8")
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
        read_json(shared.folder.resolve().parent / "config.json", "")
    except (DraftgymError, OSError, ValueError):
        return {}
    best = [entry[f"best_{SELECTS}"] for entry in entries if f"best_{SELECTS}" in entry]
    return {SELECTS: best[-1]} if best and _is_figure(best[-1]) else {}


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _words(shared: Shared, repo: str) -> str:
    """A card for a folder that has none."""
    target = shared.target or "TARGET"
    use = USE[shared.what].format(target=target, folder="FOLDER", kind=shared.kind)
    pulled = f"datasets/{repo}" if shared.what == "traces" else repo
    rows = {"target": f"`{target}`", "fingerprint": f"`{shared.fingerprint or 'unknown'}`"}
    if shared.what == "traces":
        origin = read_origin(shards_in(shared.folder)[0])
        rows |= {
            "arms": ", ".join(f"`{arm}`" for arm in origin.arms),
            "texts": f"{origin.verification}, temperature {origin.temperature:g}, at most "
            f"{origin.max_new_tokens} new tokens, {origin.dtype}",
        }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    name = shared.kind if shared.what == "traces" else f"{shared.what} ({shared.kind})"
    return (
        f"# {name.capitalize()} for {target}\n\nMade by draftgym, for speculative decoding.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"    draftgym pull {pulled} FOLDER\n    {use}\n"
    )
