"""Write what engines take instead of a policy for batches: draft lengths by batch size.

    $ draftgym export-policy vllm spec.json --traces runs/traces --costs runs/host.json
    $ draftgym export-policy sglang adaptive.json --traces runs/traces --policy runs/serving

Without --policy the lengths are the fastest on the traces, for the costs of --costs. A policy is
played on them at every size, and the table is made of lengths next to its mean one; --heldout tells
what that loses, on other texts. Policies: a folder (forecasts and rules), a file that one of these
engines reads, an arm (eagle3:4), `adaptive` (SGLang's rule), `goodput` (SmartSpec's), and for
openvino confidence:0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.table import Table

from draftgym.agents.serving.named import named_policy
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json, write_text
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import BatchPolicy, batch_sizes, distil, tuned
from draftgym.envs.serving.kept import Kept, measure_kept, rule_policy
from draftgym.policies.serving.adaptive import AdaptiveLength
from draftgym.policies.serving.engines.openvino import confidence_to_openvino, to_openvino
from draftgym.policies.serving.engines.sglang import adaptive_to_sglang, to_sglang
from draftgym.policies.serving.engines.table import Export, LengthTable
from draftgym.policies.serving.engines.tensorrt_llm import to_tensorrt_llm
from draftgym.policies.serving.engines.vllm import to_vllm
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.statistics import Interval
from draftgym.rollouts.report.table import make_console
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet

ENGINES: dict[str, Callable[[LengthTable, str | None, str | None], Export]] = {
    "vllm": to_vllm,
    "sglang": to_sglang,
    "tensorrt-llm": to_tensorrt_llm,
    "openvino": to_openvino,
}
CONFIDENCE = "confidence:"
LEGEND = (
    "held-out texts; 95 % intervals: paired bootstrap over texts; of mixed batches, which are "
    "of the largest size, over servers"
)


@dataclass(frozen=True)
class ExportPolicyArgs:
    """Export a policy for batches to an engine."""

    engine: Annotated[Literal["vllm", "sglang", "tensorrt-llm", "openvino"], tyro.conf.Positional]
    """Who shall read it."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write."""
    traces: Path | None = None
    """Folder of traces that lengths are tuned on, or a policy is watched on: training texts."""
    policy: str | None = None
    """What is exported; without one, lengths that are tuned."""
    costs: str = "llama3.1-8b-h100"
    """What rounds cost: published costs by name, or a file of draftgym measure-host."""
    sizes: tuple[int, ...] = ()
    """Largest batch of each entry, ascending; default: powers of 2 to 64, or as far as measured."""
    drafter: str | None = None
    """Whose lengths, where several networks were traced."""
    match: int | None = None
    """For tensorrt-llm: newest tokens that must be found again for a copy to replace the draft."""
    method: str | None = None
    """What the engine calls the drafter; by default that goes by its name."""
    model: str | None = None
    """Name or folder of the drafter's weights, as the engine shall find them."""
    longest: int | None = None
    """Leave out texts of more new tokens: one that runs to its limit repeats itself."""
    heldout: Path | None = None
    """Folder of traces of other texts, to tell what the table keeps of the policy's gain."""
    json: Path | None = None
    """Write these figures to this file."""


def export_policy(args: ExportPolicyArgs) -> None:
    """Makes the table, writes the file, says how it is used and what is lost.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    for path in filter(None, (args.out, args.json)):
        check_writable(path, "name another file")
    if args.policy is not None and args.policy.startswith(CONFIDENCE):
        return _export_confidence(args, args.policy.removeprefix(CONFIDENCE))
    if args.traces is None:
        raise DraftgymError("nobody says on which texts", "name traces of some with --traces")
    settings = ServerSettings(costs=args.costs, look_up=False)
    sizes = batch_sizes(args.sizes, replace(settings, places=1).make_costs([]))
    policy, export = _export(args, _read(args.traces, args.longest), settings, sizes)
    write_text(args.out, export.text)
    print(f"{args.out}: {_lengths(export)}")
    for note in (*export.notes, *_unasked(args, policy, export)):
        print(f"  {note}")
    print(f"  {export.command.replace('{file}', str(args.out))}")
    if args.heldout is not None:
        heldout = _read(args.heldout, args.longest)
        itself = args.policy is None or export.table is None
        engine = policy if itself else rule_policy(export.played())
        kept = measure_kept(policy, engine, heldout, settings, sizes)
        _tell(policy.name, kept)
        if args.json is not None:
            told_of = {"policy": policy.name, "engine": args.engine, "costs": args.costs}
            write_json(args.json, {**told_of, "kept": [asdict(one) for one in kept]})


def _export(
    args: ExportPolicyArgs, traces: TraceSet, settings: ServerSettings, sizes: Sequence[int]
) -> tuple[BatchPolicy, Export]:
    """The policy, and what the engine is told; without one, that is the policy."""
    if args.match is not None and args.engine != "tensorrt-llm":
        raise DraftgymError(
            f"{args.engine} cannot look up before its network drafts",
            "leave --match out; of these engines tensorrt-llm alone can",
        )
    as_told, write = (args.model, args.method), ENGINES[args.engine]
    if args.policy is None:
        export = write(tuned(traces, settings, sizes, args.drafter, args.match), *as_told)
        return rule_policy(export.played()), export
    policy = named_policy(args.policy, traces, settings, args.drafter)
    if args.engine == "sglang" and isinstance(policy.rule, AdaptiveLength):
        return policy, adaptive_to_sglang(policy.rule, sizes[-1], *as_told)
    return policy, write(distil(policy, traces, settings, sizes, args.match), *as_told)


def _unasked(args: ExportPolicyArgs, policy: BatchPolicy, export: Export) -> list[str]:
    """What a table leaves out of its policy: lookups, where the engine asks none."""
    if export.table is None or args.match is not None:
        return []
    names = [name for name in drafter_names(policy.arms) if name in LOOKUPS]
    names = [name for name in names if name != export.table.drafter]
    hint = "; --match sets a lookup in front" if args.engine == "tensorrt-llm" else ""
    return [f"{', '.join(names)}: not asked there{hint}"] if names else []


def _lengths(export: Export) -> str:
    """What an engine drafts, as text."""
    if export.table is None:
        return "the rule itself"
    told = ", ".join(f"{a} to {b}: {length}" for a, b, length in export.table.ranges)
    return f"tokens of {export.table.drafter} by requests in the batch: {told}"


def _export_confidence(args: ExportPolicyArgs, threshold: str) -> None:
    """The rule that stops a chain at a token that is not likely enough: that is one number."""
    if args.engine != "openvino" or args.heldout is not None:
        raise DraftgymError(
            f"{CONFIDENCE}{threshold} stops where the drafter is not sure, and no table does",
            "of these engines openvino can; without --heldout, for nothing is lost",
        )
    write_text(args.out, confidence_to_openvino(threshold))
    print(f"{args.out}: for GenerationConfig, with continuous batching")


def _read(folder: Path, longest: int | None) -> TraceSet:
    traces = read_traces(folder)
    texts = [text for text in traces.texts if longest is None or len(text.tokens) <= longest]
    if not texts:
        raise DraftgymError(f"no text is as short as --longest {longest}", "give more")
    return replace(traces, texts=texts)


def _tell(name: str, kept: Sequence[Kept]) -> None:
    """What the table keeps, for people."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"What is kept of {name}",
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    for column in ("requests", "policy / plain", "export / plain", "export / policy", "gain kept"):
        table.add_column(column, justify="right")
    for one in kept:
        ratios = map(_interval, (one.policy, one.export, one.against, one.share))
        table.add_row(str(one.size or "mixed"), *ratios)
    console = make_console()
    console.print()
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)


def _interval(one: Interval | None) -> str:
    return "none to keep" if one is None else f"{one.value:.3f}\n({one.low:.3f} to {one.high:.3f})"


def main(arguments: Sequence[str]) -> None:
    """`draftgym export-policy`."""
    export_policy(
        tyro.cli(
            ExportPolicyArgs, args=arguments, description=__doc__, prog="draftgym export-policy"
        )
    )
