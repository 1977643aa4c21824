"""Who chooses for a server's batch in the comparison: arms, engines' rules, forecasts, the oracle.

Everything that is tuned is tuned on training texts, and nobody is told what kind of text it serves.
Forecasts choose from the network's chains and those of one lookup, that of the best cascade: every
lookup is asked for every request in every round, and a second one costs more than it brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from draftgym.agents.serving.fit import ForecastFitting, fit_forecast
from draftgym.decoding.arms import PLAIN, Arm, Cascade, parse_arm
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.distil import BatchPolicy
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.envs.serving.tune import best_lengths
from draftgym.policies.serving.adaptive import SGLANG, AdaptiveLength
from draftgym.policies.serving.by_size import TENSORRT_EXAMPLE, LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule, Ladder, ServingRule
from draftgym.policies.serving.tokens import TokenForecast
from draftgym.rollouts.traces.trace import TraceSet

ORACLE, FORECAST, MEAN = "oracle of rounds", "forecast, seed", "forecasts, mean"
ALL = "all"
MATCHES = (2, 3, 4, 6)
"""Match lengths from which on a cascade copies, to choose from."""
LONG = 3
"""Tokens of a draft from which on it is worth a cascade."""
TUNED_AT = 16
"""Requests in the batches that cascades and forecasts are made with."""


class Contenders:
    """Everybody, tuned on training texts.

    Args:
        traces: Training texts, with chains of one network and of drafters that look up.
        settings: The server.
        sizes: Batch sizes of tables.
        seeds: How many forecasts.
        fitting: How they are fitted.

    Attributes:
        notes: What was chosen, for tables.

    Raises:
        DraftgymError: The traces have another number of networks than one.
    """

    def __init__(
        self,
        traces: TraceSet,
        settings: ServerSettings,
        sizes: Sequence[int],
        seeds: int,
        fitting: ForecastFitting,
    ) -> None:
        self._traces, self._settings, self._sizes = traces, settings, tuple(sizes)
        chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None]
        networks = [name for name in drafter_names(chains) if name not in LOOKUPS]
        if len(networks) != 1:
            raise DraftgymError(
                f"chains of {', '.join(networks) or 'no network'} in these traces",
                "compare batches on traces of one network's chains, and of lookups",
            )
        self.network = networks[0]
        self.lengths = sorted(arm.length for arm in chains if arm.drafter == self.network)
        self.lookups = [arm for arm in chains if arm.drafter in LOOKUPS]
        self.singles = (Arm(PLAIN, 0), *chains)
        self.notes: dict[str, str] = {}
        self.first = self._best_first()
        mine = (self.network, self.first.drafter)
        self.planned = tuple(arm for arm in self.singles if arm.drafter in (PLAIN, *mine))
        self._ladders = {"": self.ladder(None), " in cascade": self.ladder(self.first)}
        self._fixed = {arm: FixedRule(arm) for arm in (*self.singles, *self._other_cascades())}
        self._forecasts = [self._forecast(fitting, seed) for seed in range(seeds)]

    def ladder(self, first: Arm | None) -> Ladder:
        """The network's chains, behind a lookup if one is given."""
        return Ladder.of(self.network, self.lengths, first)

    def _other_cascades(self) -> list[Arm]:
        """Cascades of every lookup from few matching tokens on, whatever was tuned."""
        longest = {one.drafter: one for one in sorted(self.lookups, key=lambda one: one.length)}
        firsts = [replace(one, least=least) for one in longest.values() for least in MATCHES[:2]]
        chains = [Arm(self.network, length) for length in self.lengths if length >= LONG]
        made = [Cascade.of([first, chain]) for first in firsts for chain in chains]
        return [arm for arm in made if arm not in self._ladders[" in cascade"].arms.values()]

    def all(self) -> Iterator[BatchPolicy]:
        """Every contender; the oracle of rounds is not among them."""
        for arm, rule in self._fixed.items():
            yield self._of_rule(str(arm), (arm,), lambda load, rule=rule: rule)  # type: ignore[misc]
        for where, ladder in self._ladders.items():
            yield from self._rules(where, ladder)
        for seed, forecast in enumerate(self._forecasts):
            yield BatchPolicy(
                f"{FORECAST} {seed}",
                self.planned,
                lambda load, forecast=forecast: PlannedPlayer(forecast, load),  # type: ignore[misc]
                looks=True,
            )

    def _rules(self, where: str, ladder: Ladder) -> Iterator[BatchPolicy]:
        arms = tuple(ladder.arms.values())
        if where:
            for arm in arms[1:]:
                yield self._of_rule(str(arm), (arm,), lambda load, arm=arm: FixedRule(arm))  # type: ignore[misc]
        texts = self._texts(arms)
        schedule = best_lengths(texts, self._settings, ladder, self._sizes)
        self.notes[f"table{where}"] = str(schedule)
        example = {
            size: int(ladder.lengths[ladder.index(k)]) for size, k in TENSORRT_EXAMPLE.items()
        }
        candidates = {
            size: replace(
                one,
                candidates=tuple(
                    sorted({int(ladder.lengths[ladder.index(k)]) for k in one.candidates})
                ),
            )
            for size, one in SGLANG.items()
        }
        yield self._of_rule(
            f"table by size (vLLM){where}", arms, lambda load: LengthBySize(ladder, schedule)
        )
        yield self._of_rule(
            f"documented schedule (TensorRT-LLM){where}",
            arms,
            lambda load: LengthBySize(ladder, example),
        )
        yield self._of_rule(
            f"adaptive (SGLang){where}",
            arms,
            lambda load: AdaptiveLength(ladder, load.texts.drafters, candidates),
        )
        yield self._of_rule(
            f"goodput (SmartSpec){where}", arms, lambda load: GoodputLength(ladder, load.costs)
        )

    @staticmethod
    def _of_rule(
        name: str, arms: tuple[Arm, ...], make: Callable[[Load], ServingRule]
    ) -> BatchPolicy:
        return BatchPolicy(name, arms, lambda load: RulePlayer(make(load), load))

    def _texts(self, arms: Sequence[Arm], look_up: bool = False) -> ServedTexts:
        costs = self._settings.make_costs(drafter_names(arms))
        return ServedTexts(self._traces, arms, costs.model, look_up)

    def _servers(self, texts: ServedTexts, requests: int, look_up: bool = False) -> Load:
        settings = replace(
            self._settings,
            places=TUNED_AT,
            requests=requests,
            arrivals=AtOnce(),
            copies=1,
            look_up=look_up,
        )
        return Load(texts, settings, settings.make_costs(texts.drafters), 8)

    def _best_first(self) -> Arm:
        """The lookup that is best asked first, before a chain of middling length."""
        chain = Arm(self.network, self.lengths[len(self.lengths) // 2])
        rates: dict[Arm, float] = {}
        for lookup in self.lookups:
            for match in MATCHES:
                first = replace(lookup, least=match)
                arm = Cascade.of([first, chain])
                load = self._servers(self._texts([arm]), 32)
                player = RulePlayer(FixedRule(arm), load)
                rates[first] = play(load, player, range(load.count)).goodput
        best = max(rates, key=lambda first: rates[first])
        self.notes["cascade"] = str(best)
        return best

    def _forecast(self, fitting: ForecastFitting, seed: int) -> TokenForecast:
        texts = self._texts(self.planned, look_up=True)
        return fit_forecast(self._servers(texts, 128, look_up=True), fitting, seed)


def played_arms(contenders: Sequence[BatchPolicy]) -> Mapping[bool, tuple[Arm, ...]]:
    """Every arm of those who look and of those who do not, so that texts are laid out twice."""
    return {
        looks: tuple(
            dict.fromkeys(arm for one in contenders if one.looks is looks for arm in one.arms)
        )
        for looks in (False, True)
    }
