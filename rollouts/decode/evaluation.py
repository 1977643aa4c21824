"""What `evaluate.py` does: policies over prompts, a table, and the same figures as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.cost_model import CostModel, note_extrapolation
from draftgym.decoding.decoder import PlainPolicy, RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import LAZY_KV_ONLY, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json
from draftgym.decoding.model.few_bits import form_of
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import describe_drafters, describe_host, describe_target
from draftgym.decoding.round import RoundRecord
from draftgym.decoding.text.stops import NO_STOPS
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING
from draftgym.drafters.loading import find_checkpoints
from draftgym.policies.registry import all_policies, make_policy, shipped_router
from draftgym.rollouts.decode.fitting import fit_prompts, read_prompt
from draftgym.rollouts.decode.interleaved import DecodeSettings, decode_prompts, write
from draftgym.rollouts.decode.options import CatchUpOptions
from draftgym.rollouts.peers.loading import PeerName, check_peers, load_peers
from draftgym.rollouts.peers.peer import Peer
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.report.as_json import report_json
from draftgym.rollouts.report.calls import make_calls
from draftgym.rollouts.report.page import write_report
from draftgym.rollouts.report.plots import require_matplotlib
from draftgym.rollouts.report.rows import (
    Evaluation,
    SecondsPredictor,
    find_differences,
    make_arm_costs,
    make_rows,
)
from draftgym.rollouts.report.stalls import find_stalls
from draftgym.rollouts.report.table import print_report


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(CatchUpOptions):
    """Compare policies on real decoding.

    Attributes:
        policies: Whom to compare: plain, a drafter (eagle3), a drafter with a draft length
            (eagle3:6) or a tree's depth and nodes (eagle3:5x16), random, entropy (tuned
            threshold), entropy:1.5 (nats), the bandits ucb and ucb-time, survival (how likely a
            path must be to be verified), router (the shipped one), or the folder of a trained
            policy. Those that choose take arms, as in random@eagle3:2,ngram:8,plain. Default: what
            `generate` uses by default, each drafter alone, random, entropy and the shipped router.
            Plain decoding always runs: it is the reference for text and speed.
        prompts: heldout or train (shipped sets), or a JSON-lines file with question_id, category,
            turns and perhaps system. All turns are played, each behind plain decoding's own
            answers to those before; the second turn of question 81 is called 81#2.
        categories: Keep only these categories.
        limit_per_category: Keep at most this many prompts of each category.
        turns: Play at most this many turns of each prompt.
        skip_long_prompts: Leave out prompts that do not fit the target with `max_new_tokens`, and
            count them; else they are refused before anything is written.
        against: Other engines that write the same prompts in the same run, one after the other with
            the policies: llama.cpp, transformers (its generate()), openvino-genai. Each has rows
            for plain decoding and for its own prompt lookup, with the target's very numbers and,
            where there is one, with the GGUF file as published. A table of whole calls tells
            tokens/s, the ratio to the fastest of them with these numbers, whose text is the
            target's own, and in which numbers each holds the weights. Greedy texts only.
        against_gguf: The GGUF file that llama.cpp and openvino-genai read, where the target is a
            folder or a Hub id: the same model in that format. The default target and targets that
            are .gguf files need none.
        json: Write the figures to this file, with everything needed to judge them.
        report: Write plots, the figures and a page that shows them and every text, coloured by who
            drafted it, into this folder (needs matplotlib). Open its index.html in a browser.
    """

    policies: tuple[str, ...] | None = None
    prompts: str = "heldout"
    categories: tuple[str, ...] | None = None
    limit_per_category: int | None = None
    turns: int | None = None
    skip_long_prompts: bool = False
    against: tuple[PeerName, ...] = ()
    against_gguf: Path | None = None
    json: Path | None = None
    report: Path | None = None


def evaluate(args: EvaluateArgs) -> Evaluation:
    """Runs what the command line asks for, prints the table and writes the files.

    Raises:
        DraftgymError: Anything the user can mend; found before decoding starts.
    """
    args.check()
    check_peers(args.against, args.target, args.against_gguf, args.settings)
    prompts = load_prompts(
        args.prompts,
        limit_per_category=args.limit_per_category,
        categories=args.categories,
        turns=args.turns,
    )
    if args.json is not None:
        check_writable(args.json)
    if args.report is not None:
        check_writable(args.report / "index.html", "name another folder with --report")
        require_matplotlib()
    target, drafters = args.load()
    args = args.as_asked_by(target)
    check_peers(args.against, args.target, args.against_gguf, args.settings)
    fitted = fit_prompts(
        *(target, prompts, args.max_new_tokens, args.skip_long_prompts),
        all_turns=True,
        with_images=True,
    )
    policies = chosen_policies(args.policies, drafters, target, args.seed)
    peers = load_peers(args.against, target, args.against_gguf, args.settings, fitted.longest)
    environment = describe_run(args, target, drafters) | fitted.describe()
    if peers:
        environment["against"] = {name: peer.version for name, peer in peers.items()}
    predict = None
    settings = args.settings
    shaped = settings.rule(target).shaping is not None
    if settings.catching_up == LAZY_KV_ONLY and not shaped:  # what the cost model knows
        longest = args.max_new_tokens + fitted.longest
        arms = [arm for policy in policies.values() for arm in policy.arms]
        model = load_cost_model(target, drafters, arms, longest)
        note_extrapolation(model, longest)
        environment["costs"] = model.sureness() | {"longest_text": longest}
        predict = cost_predictor(model)
    result = compare(
        *(target, drafters, policies, fitted.prompts, args.settings, environment, predict),
        peers=peers,
    )
    if args.json is not None:  # files first: whoever reads the table may close the pipe
        write_json(args.json, report_json(result))
    page = None if args.report is None else write_report(args.report, result, target)
    print_report(
        *(result.environment, result.rows, result.differences, result.stalls),
        calls=make_calls(result),
    )
    if page is not None:
        print(f"\nreport: {page}")
    return result


def compare(
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
    prompts: Sequence[Prompt],
    settings: DecodeSettings,
    environment: Mapping[str, Any] | None = None,
    predict_seconds: SecondsPredictor | None = None,
    progress: bool = True,
    peers: Mapping[str, Peer] | None = None,
) -> Evaluation:
    """Decodes every prompt with every policy and sums up.

    Args:
        target: The target.
        drafters: Drafters by name.
        policies: Policies by name; plain decoding is added where it is missing.
        prompts: What to write about.
        settings: How.
        environment: Goes into the result as it is.
        predict_seconds: A cost model, to show how well it predicts the measured seconds.
        progress: Whether to show a progress bar.
        peers: Other engines by name, which write the same prompts.
    """
    peers = peers or {}
    policies = dict(policies) if PLAIN in policies else {PLAIN: PlainPolicy(), **policies}
    dealt = interleave_categories(prompts)
    written = decode_prompts(target, drafters, policies, dealt, settings, progress, peers)
    texts = [text for text in written if text.policy in policies]

    rows = make_rows(texts, list(policies), predict_seconds)
    differences = find_differences(
        written, lambda text: plain_margins(target, text.prompt, settings)
    )
    return Evaluation(
        environment=dict(environment or {}),
        rows=rows,
        differences=differences,
        texts=texts,
        choices={name: [str(arm) for arm in policy.arms] for name, policy in policies.items()},
        arm_costs=make_arm_costs(texts, predict_seconds) if predict_seconds else [],
        stalls=find_stalls(texts),
        peer_texts=[text for text in written if text.policy in peers],
        weights=_weights(target, policies, peers),
    )


def _weights(
    target: Target, policies: Mapping[str, RoutingPolicy], peers: Mapping[str, Peer]
) -> dict[str, str]:
    """In which numbers all who write hold the weights; nothing where only policies do."""
    if not peers:
        return {}
    ours = dict.fromkeys(policies, form_of(target.name)[1] or target.precision.dtype)
    return ours | {name: peer.weights for name, peer in peers.items()}


def plain_margins(target: Target, prompt: Prompt, settings: DecodeSettings) -> list[float]:
    """Margins of a prompt's plain text, written again: recording them slows a measured one."""
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    ids, inputs = read_prompt(target, prompt)
    return write(plain, ids, settings.of(prompt), with_margins=True, inputs=inputs).margins


def cost_predictor(model: CostModel) -> SecondsPredictor:
    """Seconds of a round by a cost model, the decision left out."""

    def seconds(one: RoundRecord) -> float:
        return model.round_seconds(one.asked, len(one.drafted), one.context)

    return seconds


def chosen_policies(
    specs: Sequence[str] | None, drafters: Mapping[str, Drafter], target: Target, seed: int = 0
) -> dict[str, RoutingPolicy]:
    """Policies by the name that tables show; None stands for every policy there is.

    Raises:
        DraftgymError: An unknown policy, or two of one name.
    """
    policies: dict[str, RoutingPolicy] = {}
    if specs is None:
        form = target.decoder.draws_trees, target.device.type == "cpu"
        specs = all_policies(drafters, shipped_router(target), *form)
    for spec in specs:
        policy = make_policy(
            spec, drafters, target, seed, partial(load_cost_model, target, drafters)
        )
        if policy.name in policies:
            raise DraftgymError(
                f"policy {policy.name!r} is named twice", "name every policy once in --policies"
            )
        policies[policy.name] = policy
    return policies


def describe_run(
    args: EvaluateArgs, target: Target, drafters: Mapping[str, Drafter]
) -> dict[str, Any]:
    """Everything needed to judge the figures and to measure them again."""
    return {
        **describe_target(target),
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        "prompts": args.prompts,
        "categories": list(args.categories) if args.categories else None,
        "limit_per_category": args.limit_per_category,
        **_settings_told(args.settings),
        "catching_up": str(args.settings.catching_up),
        "verification": args.settings.rule(target).name,
        **describe_host(),
    }


def _settings_told(settings: DecodeSettings) -> dict[str, Any]:
    """The settings, without what was not asked for."""
    told = asdict(settings)
    if settings.stops == NO_STOPS:
        del told["stops"]
    if settings.sampling == PLAIN_SAMPLING:
        del told["sampling"]
    return told


def check_writable(path: Path, remedy: str = "name another file with --json") -> None:
    """Raises `DraftgymError` now rather than after an hour of decoding."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DraftgymError(
            f"cannot make the folder of {path}: {error.strerror}", remedy
        ) from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DraftgymError(f"cannot write {path}", remedy)
