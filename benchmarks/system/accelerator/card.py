"""Tables and card of `benchmarks.system.accelerator`."""

from __future__ import annotations

from benchmarks.report import Cell, Json, Table, interval, number, titled
from benchmarks.system.losslessness import NEAR_TIE


def tables(result: Json) -> list[Table]:
    """A table per part that has figures."""
    tell = {"speed": _speeds, "texts": _texts, "rounds": _rounds, "graphs": _graphs}
    parts = result["parts"]
    found = [name for name in tell if "rows" in parts.get(name, {})]
    return [tell[name](parts[name], titled(result)) for name in found]


def _speeds(part: Json, facts: Json) -> Table:
    title = (
        "speed: {target}, {dtype}, {machine}; greedy, up to {settings[max_new_tokens]} tokens, "
        "whole calls"
    )
    columns: dict[str, Cell] = {
        "who": number("who", ""),
        "tokens/s (median)": number("median", ".1f"),
        "p10 to p90": lambda row: " to ".join(f"{one:.1f}" for one in row["p10_p90"]),
        "over plain": lambda row: interval(row["ratio"], ".2f"),
        "text as plain": lambda row: f"{row['same_as_plain']}/{row['prompts']}",
    }
    notes = [
        "tokens/s of single prompts; over plain: tokens over seconds of all prompts, with a 95 % "
        "interval (paired bootstrap over prompts)"
    ]
    return Table.of(title.format(**facts), part["rows"], columns, lambda r: r["ratio"][0], notes)


def _texts(part: Json, facts: Json) -> Table:
    columns: dict[str, Cell] = {
        "who": number("who", ""),
        "prompts": number("prompts", ""),
        "same text": number("same", ""),
        "near ties": number("near_ties", ""),
        "different": number("different", ""),
    }
    notes = [
        "the processor reads plain decoding's texts in one pass: would it have chosen the same?",
        f"near ties: the first other token was at most {NEAR_TIE:g} (logits) behind",
    ]
    notes += [_difference(one) for one in part["differences"]]
    title = "texts in {dtype} on {machine}: are they plain decoding's, token for token?"
    return Table.of(
        title.format(machine=facts["machine"], dtype=part["dtype"]),
        part["rows"],
        columns,
        notes=notes,
    )


def _difference(one: Json) -> str:
    margin = "unknown" if one["margin"] is None else f"{one['margin']:.2g}"
    return (
        f"{one['policy']}: {one['question_id']} from token {one['index']} "
        f"({one['plain_token']} -> {one['policy_token']}), margin {margin}"
    )


def _rounds(part: Json, facts: Json) -> Table:
    columns: dict[str, Cell] = {
        "who": number("who", ""),
        "reads": number("reads", ".1f"),
        "uploads": number("uploads", ".1f"),
        "operations": number("operations", ".0f"),
    }
    notes = [
        "reads: copies to the processor and waits for sizes; uploads: copies the other way; "
        "operations: all that torch starts, views left out"
    ]
    if any("kernels" in row for row in part["rows"]):
        columns["kernels"] = number("kernels", ".0f")
        columns["busy"] = lambda row: f"{row['busy']:.0%}" if "busy" in row else ""
        notes.append("busy: share of time in which a kernel runs, prompt included")
    notes += [f"{row['who']}: {row['profiler']}" for row in part["rows"] if "profiler" in row]
    title = "what a mean round moves and starts: {target}, {dtype}, {machine}"
    return Table.of(title.format(**facts), part["rows"], columns, notes=notes)


def _graphs(part: Json, facts: Json) -> Table:
    columns: dict[str, Cell] = {
        "rows": number("rows", ""),
        "ordinary": _timed("ordinary"),
        "fixed shape": _timed("fixed"),
        "CUDA graph": _timed("captured"),
        "gain": lambda row: f"{row['ordinary_ms'] / row['captured_ms']:.2f}",
        "difference": number("difference", ".1g"),
    }
    title = (
        f"a pass behind {part['context']} of {part['capacity']} positions, ms: "
        "{target}, {dtype}, {machine}"
    )
    notes = [
        "medians, with half their range in per cent; gain: ordinary over CUDA graph",
        "difference: of logits, the largest to those of the ordinary pass",
        "decoding does not use graphs: this is what it could gain",
    ]
    return Table.of(title.format(**facts), part["rows"], columns, notes=notes)


def _timed(name: str) -> Cell:
    return lambda row: f"{row[f'{name}_ms']:.2f} ({row[f'{name}_spread']:.0%})"


def card(result: Json) -> str:
    """The result for readers, in Markdown."""
    facts = titled(result)
    rows = {
        "machine": facts["machine"],
        "device": f"{facts['device']} ({facts['device_reason']})",
        "dtype": f"{facts['dtype']} ({facts['precision_reason']})",
        "torch": f"{facts['torch']}, transformers {facts['transformers']}",
        "threads": str(facts["threads"]),
        "target": f"{facts['target']}, fingerprint `{facts['fingerprint']}`",
        "revision": str(facts["git_revision"]),
        "command": f"`{facts['command']}`",
    }
    told = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    sections = [f"# draftgym on {facts['device_name']}", "\n".join(told)]
    lines = []
    for name, part in result["parts"].items():
        how = f"failed: {part['error']}" if "error" in part else part.get("summary", "measured")
        lines.append(f"* {name} ({part['seconds']:.0f} s): {how}")
        left_out = part.get("left_out", {}).items()
        lines += [f"* {name}: {who} was left out: {why}" for who, why in left_out]
    sections += ["\n".join(lines), *(table.markdown() for table in tables(result))]
    return "\n\n".join(sections) + "\n"
