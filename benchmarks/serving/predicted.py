"""What the environment predicts of a server, beside what the server does.

    $ draftgym measure-host --users 1 2 4 8 --rows-each 1 2 3 5 9 --out runs/host.json
    $ draftgym train-serving --costs runs/host.json --places 8
    $ python -m benchmarks.serving.predicted --costs runs/host.json --json runs/predicted.json \
          --policies plain eagle3:2 'suffix:16@3>eagle3:2' runs/serving

The same held-out prompts are written twice, in the same order, so many at a time: by
`draftgym/Serving-v0`, from their traces and this host's costs, and by the server's own batch, on
this host. Nobody was tuned on them. Texts must be the traced ones. Policies take turns, each time
with other prompts in another order; the guard is off and no beginning is kept, for the environment
has neither.

What rounds took is told apart from what they should have taken: the costs are asked once more for
the very rounds that the server played. Choosing, and keeping what was accepted, is in no cost
model; it counts in what was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.report import Cell, Json, Table, number, titled
from benchmarks.results import Result, TargetOptions, check, finish
from draftgym.decoding.arms import PLAIN, parse_arm
from draftgym.decoding.costs.host_costs import HostCosts, make_server_costs
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import user_path
from draftgym.decoding.model.target import Target
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.play import Player, RulePlayer, Served, play
from draftgym.policies.folder import FORECAST, policy_name, read_body, read_kind
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule
from draftgym.policies.serving.stored import load_rule
from draftgym.policies.serving.tokens import load_forecast
from draftgym.rollouts.decode.fitting import encode_prompt
from draftgym.rollouts.decode.interleaved import turn_order
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.traces.counterfactual import hash_prompt
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet
from draftgym.serving.batching.batcher import Batcher, BatchSettings
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.batching.requests import Event, Finished, NewTokens, TextRequest
from draftgym.serving.batching.rounds import ROWS_ALONE
from draftgym.serving.batching.watching import NoWatch, RoundFacts
from draftgym.serving.planning.folders import holds_batches
from draftgym.serving.planning.predicted import RoundPrices

WARM_UP = 8
"""Tokens of every text that a policy writes before it is measured."""


@dataclass(frozen=True, kw_only=True)
class PredictedArgs(TargetOptions):
    """What is predicted and measured.

    Attributes:
        heldout: Folder of traces of texts that nobody was tuned on, of the very drafters.
        prompts: The set of prompts that they were traced of.
        costs: File of `draftgym measure-host`, of this host.
        policies: Arms, and folders of policies for batches.
        sessions: Texts that are written at a time.
        requests: Texts of each repeat.
        repeats: How often each policy is measured.
        prompt_rows: Rows of prompts beside texts that are being written.
        json: Write the figures to this file.
    """

    heldout: Path = Path("runs/heldout")
    prompts: str = "heldout"
    costs: Path = Path("runs/host.json")
    policies: tuple[str, ...] = (PLAIN, "eagle3:2", "suffix:16@3>eagle3:2")
    sessions: int = 8
    requests: int = 32
    repeats: int = 2
    prompt_rows: int = 64
    json: Path | None = None


@torch.no_grad()
def measure(args: PredictedArgs) -> Result:
    """Predicts, serves, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "sessions", "requests", "repeats", "prompt_rows")
    traces, (target, drafters) = read_traces(args.heldout), args.load()
    check_traced(traces, target, drafters)
    stage = Stage(args, traces, HostCosts.read(args.costs), target, drafters)
    predicted: dict[str, list[Figures]] = {spec: [] for spec in args.policies}
    measured: dict[str, list[Figures]] = {spec: [] for spec in args.policies}
    for spec in args.policies:
        stage.serve(spec, stage.order(spec, 0)[: args.sessions], WARM_UP)
    result: Result = {}
    for repeat in range(args.repeats):
        for spec in turn_order(args.policies, repeat):
            expected, order = stage.predict(spec, repeat)
            live = stage.serve(spec, order)
            predicted[spec].append(expected)
            measured[spec].append(live)
            speeds = " and ".join(f"{one.tokens / one.seconds:.1f}" for one in (expected, live))
            print(f"{name_of(spec)}: {speeds} tokens/s predicted and measured", file=sys.stderr)
        rows = [
            {
                "who": name_of(spec),
                "predicted": total(predicted[spec]),
                "measured": total(measured[spec]),
            }
            for spec in args.policies
        ]
        last = repeat == args.repeats - 1  # until then the file has what there is
        result = finish(tables, args, {"rows": rows}, target, drafters, last=last)
    return result


def check_traced(traces: TraceSet, target: Target, drafters: Mapping[str, Drafter]) -> None:
    """Raises `DraftgymError` where traces are of another target or of other drafters."""
    origin = traces.origin
    others = [
        name
        for name, fingerprint in origin.drafters.items()
        if name not in drafters or drafters[name].fingerprint != fingerprint
    ]
    if origin.target_fingerprint != target.fingerprint or others or origin.temperature:
        what = f"other drafters ({', '.join(others)})" if others else "another target, or noise"
        raise DraftgymError(
            f"these traces are of {what}",
            "trace the prompts with what is served: draftgym collect --prompts heldout",
        )


@dataclass(frozen=True)
class Figures:
    """What came of some texts.

    Attributes:
        tokens: Tokens written.
        seconds: Busy time.
        request_rounds: Rounds of texts.
        token_seconds: Mean seconds between the tokens of each text.
        first_token_seconds: Seconds to the first one of each.
        pieces: Seconds by phase, as far as known.
        by_costs: Seconds of the same rounds, drafting and passes, by the costs.
        unlike: Texts that are not the traced ones.
    """

    tokens: float
    seconds: float
    request_rounds: float
    token_seconds: Sequence[float]
    first_token_seconds: Sequence[float]
    pieces: Mapping[str, float] = field(default_factory=dict)
    by_costs: float = 0.0
    unlike: int = 0


def total(figures: Sequence[Figures]) -> Result:
    """Of several repeats together."""
    tokens, seconds, rounds, by_costs = (
        sum(getattr(one, name) for one in figures)
        for name in ("tokens", "seconds", "request_rounds", "by_costs")
    )
    each = np.concatenate([one.token_seconds for one in figures])
    first = np.concatenate([one.first_token_seconds for one in figures])
    pieces = {name: sum(one.pieces[name] for one in figures) for name in figures[0].pieces}
    return {
        "goodput": tokens / seconds,
        "goodput_by_repeat": [one.tokens / one.seconds for one in figures],
        "tokens_per_round": (tokens - len(each)) / rounds,
        "token_ms": 1e3 * float(np.median(each)),
        "first_token_ms": 1e3 * float(np.median(first)),
        "shares": {name: value / seconds for name, value in pieces.items()},
        "by_costs": by_costs / seconds,
        "unlike": sum(one.unlike for one in figures),
    }


class Stage:
    """The texts, in the environment and on the server.

    Args:
        args: The settings.
        traces: The texts.
        host: What rounds cost here.
        target: Who writes.
        drafters: Who drafts.
    """

    def __init__(
        self,
        args: PredictedArgs,
        traces: TraceSet,
        host: HostCosts,
        target: Target,
        drafters: Mapping[str, Drafter],
    ) -> None:
        self._args, self._traces, self._drafters = args, traces, dict(drafters)
        self._target, self._costs = target, partial(make_server_costs, host)
        self._settings = ServerSettings(
            args.sessions,
            args.requests,
            AtOnce(),
            costs=host,
            prompt_rows=args.prompt_rows,
            prompt_rows_alone=ROWS_ALONE,
        )
        prompts = {one.question_id: one for one in load_prompts(args.prompts)}
        self._prompts = {}
        for text in traces.texts:
            prompt = prompts.get(text.question_id)
            ids = None if prompt is None else encode_prompt(target, prompt)
            if ids is None or hash_prompt(ids) != text.prompt_hash:
                raise DraftgymError(
                    f"prompt {text.question_id} is not the one that was traced",
                    "name the set of prompts that the traces are of",
                )
            self._prompts[text.question_id] = ids

    def predict(self, spec: str, seed: int) -> tuple[Figures, list[str]]:
        """What the environment says, and which texts it wrote, in their order."""
        load, player = self._player(spec)
        served: Served = play(load, player, [seed])
        figures = Figures(
            float(served.tokens.sum()),
            float(served.seconds.sum()),
            float(served.played.sum()),
            served.token_seconds[0].tolist(),
            served.first_token_seconds[0].tolist(),
        )
        return figures, _names(load)

    def order(self, spec: str, seed: int) -> list[str]:
        """Which texts are written, in their order."""
        load, _ = self._player(spec)
        load.reset([np.random.default_rng(seed)])
        return _names(load)

    def serve(self, spec: str, names: Sequence[str], most: int | None = None) -> Figures:
        """What the server does with these texts."""
        watch, args = _Watched(), self._args
        policies = PolicySet(self._target, self._drafters, {spec: spec}, costs=self._costs)
        settings = BatchSettings(
            args.sessions, len(names), args.prompt_rows, guard=False, reuse=False
        )
        prices = RoundPrices(self._costs, self._traces.origin.drafters)
        batch = Batcher(self._target, self._drafters, policies, settings, watch, prices=prices)
        new = self._traces.origin.max_new_tokens if most is None else most
        heard: list[list[Event]] = [[] for _ in names]
        for name, one in zip(names, heard, strict=True):
            batch.submit(TextRequest(self._prompts[name], new), one.append)
        while batch.running or batch.waiting:
            batch.step()
        return watch.figures(heard, [self._text(name)[:new] for name in names])

    def _text(self, name: str) -> list[int]:
        (text,) = (one for one in self._traces.texts if one.question_id == name)
        tokens: list[int] = text.tokens.tolist()
        return tokens

    def _player(self, spec: str) -> tuple[Load, Player]:
        """Servers with the arms of a policy, and who plays it."""
        if not holds_batches(spec):
            load = self._load([spec], look_up=False)
            return load, RulePlayer(FixedRule(parse_arm(spec)), load)
        folder, origin = user_path(spec), self._traces.origin
        arms, plans = read_body(folder)["arms"], read_kind(folder) == FORECAST
        load = self._load(arms, look_up=plans)
        if plans:
            return load, PlannedPlayer(load_forecast(folder, origin), load)
        return load, RulePlayer(load_rule(folder, origin, load.drafters, self._costs), load)

    def _load(self, arms: Sequence[str], look_up: bool) -> Load:
        settings = ServerSettings(**{**vars(self._settings), "look_up": look_up})
        return make_load(self._traces, arms, settings)


class _Watched(NoWatch):
    """Adds up what rounds took."""

    def __init__(self) -> None:
        self._rounds: list[RoundFacts] = []

    def round(self, facts: RoundFacts) -> None:
        """See `Watch`."""
        self._rounds.append(facts)

    def figures(self, heard: Sequence[Sequence[Event]], expected: Sequence[list[int]]) -> Figures:
        """What came of it all."""
        written = [
            [token for event in events if isinstance(event, NewTokens) for token in event.tokens]
            for events in heard
        ]
        lasts = [event for events in heard for event in events[-1:]]
        ends = [event.statistics for event in lasts if isinstance(event, Finished)]
        pieces = {
            name: sum(getattr(facts.seconds, name) for facts in self._rounds)
            for name in ("choose", "draft", "verify", "commit")
        }
        each = [
            (told.seconds - told.first_token_seconds) / (len(text) - 1)
            for told, text in zip(ends, written, strict=True)
            if len(text) > 1
        ]
        return Figures(
            sum(map(len, written)),
            sum(pieces.values()),
            sum(len(facts.records) for facts in self._rounds),
            each,
            [told.first_token_seconds for told in ends],
            pieces,
            sum(sum(facts.predicted or ()) for facts in self._rounds),
            sum(one != other for one, other in zip(written, expected, strict=True)),
        )


def _names(load: Load) -> list[str]:
    return [load.texts.texts[text].question_id for text in load.requests.text[0]]


def name_of(spec: str) -> str:
    """How tables call a policy."""
    return policy_name(Path(spec)) if holds_batches(spec) else spec


def tables(result: Json) -> list[Table]:
    """A row for every policy: predicted, measured, and the one over the other."""

    def ratio(row: Json) -> str:
        return f"{row['measured']['goodput'] / row['predicted']['goodput']:.3f}"

    def both(key: str, form: str) -> Cell:
        return lambda row: f"{row['predicted'][key]:{form}} / {row['measured'][key]:{form}}"

    def share(key: str) -> Cell:
        return lambda row: f"{row['measured']['shares'][key]:.1%}"

    plain = next((row for row in result["rows"] if row["who"] == PLAIN), None)

    def over_plain(row: Json) -> str:
        if plain is None:
            return ""
        of = (row[key]["goodput"] / plain[key]["goodput"] for key in ("predicted", "measured"))
        return " / ".join(f"{one:.2f}" for one in of)

    settings = result["environment"]["settings"]
    return [
        Table.of(
            f"Predicted / measured, {settings['sessions']} sessions ({titled(result)['machine']})",
            result["rows"],
            {
                "who": number("who", ""),
                "tokens/s": both("goodput", ".1f"),
                "measured over predicted": ratio,
                "over plain": over_plain,
                "tokens a round": both("tokens_per_round", ".2f"),
                "ms a token, p50": both("token_ms", ".1f"),
                "first token, p50 ms": both("first_token_ms", ".0f"),
                "its rounds by the costs, over measured": lambda row: (
                    f"{row['measured']['by_costs']:.3f}"
                ),
                "choosing": share("choose"),
                "other texts": lambda row: str(row["measured"]["unlike"]),
            },
        )
    ]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(PredictedArgs, description=__doc__))
