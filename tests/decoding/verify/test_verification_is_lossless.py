"""Promise: whatever is proposed, the committed text is as plain decoding would have it.

Greedy and coupled: the same text. Rejection: the same law, checked exactly by running the real rule
once for every way its coins can fall.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.base import Verdict, VerificationRule
from draftgym.decoding.verify.coupled import CoupledRule
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.decoding.verify.rules import make_rule

VOCAB = 4
TEMPERATURE = 0.7
Tokens = tuple[int, ...]


class Table:
    """A language model that is an arbitrary table of logits, one random row per prefix."""

    def __init__(self, seed: int, vocab: int = VOCAB, never: Sequence[int] = ()) -> None:
        self.seed, self.vocab, self.never = seed, vocab, list(never)
        self._rows: dict[Tokens, Tensor] = {}

    def logits(self, prefix: Tokens) -> Tensor:
        """Logits after `prefix`, shape `[vocab]`."""
        if prefix not in self._rows:
            key = random.Random(f"{self.seed}:{prefix}").getrandbits(60)
            row = 1.5 * torch.randn(self.vocab, generator=torch.Generator().manual_seed(key))
            row[self.never] = -math.inf
            self._rows[prefix] = row
        return self._rows[prefix]

    def probs(self, prefix: Tokens) -> list[float]:
        """softmax(logits / T) after `prefix`."""
        return (self.logits(prefix).double() / TEMPERATURE).softmax(-1).tolist()

    def law(self, length: int, start: Tokens = ()) -> dict[Tokens, float]:
        """Probability of every continuation of `start` up to `length` tokens in all."""
        law = {start: 1.0}
        for _ in range(length - len(start)):
            law = {
                (*prefix, token): mass * p
                for prefix, mass in law.items()
                for token, p in enumerate(self.probs(prefix))
            }
        return law

    def rows(self, prefix: Tokens, proposal: Proposal) -> Tensor:
        """What one verification pass returns: the row after the anchor and after every node."""
        prefixes = [prefix]
        for parent, token in zip(proposal.parents.tolist(), proposal.tokens.tolist(), strict=True):
            prefixes.append((*prefixes[parent + 1], token))
        return torch.stack([self.logits(p) for p in prefixes])


class ScriptedCoins(Coins):
    """Coins that fall as told, and then the first possible way; they note the probability."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(0)
        self.script = list(script)
        self.taken: list[int] = []
        self.untaken: list[list[int]] = []
        self.probability = 1.0

    def accept(self, mass: float, out_of: float) -> bool:
        """Accepts as scripted."""
        chance = min(1.0, mass / out_of) if mass > 0 else 0.0
        return bool(self._fall([1 - chance, chance]))

    def pick(self, weights: Tensor) -> int:
        """Picks as scripted."""
        return self._fall((weights.double() / weights.double().sum()).tolist())

    def _fall(self, chances: list[float]) -> int:
        possible = [side for side, chance in enumerate(chances) if chance > 0]
        step = len(self.taken)
        side = self.script[step] if step < len(self.script) else possible[0]
        self.untaken.append([] if step < len(self.script) else possible[1:])
        self.taken.append(side)
        self.probability *= chances[side]
        return side


def enumerate_coins(run: Callable[[Coins], Tokens]) -> dict[Tokens, float]:
    """The exact law of what `run` returns."""
    law: dict[Tokens, float] = defaultdict(float)
    pending: list[list[int]] = [[]]
    while pending:
        coins = ScriptedCoins(pending.pop())
        law[run(coins)] += coins.probability
        for step, sides in enumerate(coins.untaken):
            pending.extend([*coins.taken[:step], side] for side in sides)
    return law


def committed(proposal: Proposal, verdict: Verdict) -> Tokens:
    return (*proposal.tokens[verdict.path].tolist(), verdict.next_token)


def draft_chain(
    rule: VerificationRule,
    drafter: Table,
    prefix: Tokens,
    length: int,
    vocab: Tensor | None = None,
    least: float = 0.0,
) -> Proposal:
    """Drafts token by token, as an autoregressive drafter does, up to one below a probability."""
    tokens: Tokens = ()
    logprobs, probs = [], []
    for step in range(length):
        row = drafter.logits(prefix + tokens)
        row = row if vocab is None else row[vocab]
        token, logprob, full = rule.draft(row[None], [len(prefix) + step], vocab)
        tokens = (*tokens, int(token))
        logprobs.append(logprob)
        probs.append(full)
        if float(logprob.exp()) < least:
            break
    full_probs = None if probs[0] is None else torch.cat([p for p in probs if p is not None])
    return Proposal.chain(torch.tensor(tokens), torch.cat(logprobs), full_probs)


def tree(*nodes: tuple[int, int]) -> Proposal:
    """A deterministic proposal from (parent, token) pairs."""
    parents, tokens = (torch.tensor(column, dtype=torch.long) for column in zip(*nodes))  # noqa: B905
    return Proposal(tokens, parents, torch.zeros(len(nodes)))


def random_tree(rng: random.Random, vocab: int = VOCAB) -> Proposal:
    size = rng.randrange(8)
    nodes = [(rng.randrange(-1, node), rng.randrange(vocab)) for node in range(size)]
    return tree(*nodes) if nodes else Proposal.empty()


def decode(
    rule: VerificationRule, target: Table, propose: Callable[[Tokens], Proposal], length: int
) -> Tokens:
    text: Tokens = (0,)
    while len(text) < length:
        proposal = propose(text)
        verdict = rule.verify(proposal, target.rows(text, proposal), len(text) - 1)
        text += committed(proposal, verdict)
    return text[:length]


def draft_nothing(text: Tokens) -> Proposal:
    return Proposal.empty()


def chi_square(counts: dict[Tokens, int], law: dict[Tokens, float]) -> float:
    total = sum(counts.values())
    return sum((counts.get(x, 0) - total * p) ** 2 / (total * p) for x, p in law.items())


def assert_law_is_the_targets(law: dict[Tokens, float], target: Table, length: int = 3) -> None:
    """Completes shorter outcomes with the target's own law: by induction that covers all rounds."""
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-9)
    total: dict[Tokens, float] = defaultdict(float)
    for tokens, mass in law.items():
        for text, share in target.law(max(length, len(tokens)), tokens).items():
            total[text[:length]] += mass * share
    for text, mass in target.law(length).items():
        assert total[text] == pytest.approx(mass, abs=1e-6)


# --- rejection -----------------------------------------------------------------------------------


def sampled_chain_law(
    target: Table, drafter: Table, length: int = 2, vocab: Tensor | None = None
) -> tuple[dict[Tokens, float], set[int]]:
    """Exact law of one round's committed tokens, and the path lengths that occurred."""
    lengths: set[int] = set()

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        proposal = draft_chain(rule, drafter, (), length, vocab)
        verdict = rule.verify(proposal, target.rows((), proposal), -1)
        lengths.add(len(verdict.path))
        return committed(proposal, verdict)

    return enumerate_coins(run), lengths


@pytest.mark.parametrize("seed", range(3))
def test_rejection_of_sampled_chains_keeps_the_targets_law(seed: int) -> None:
    target, drafter = Table(seed), Table(100 + seed)
    law, lengths = sampled_chain_law(target, drafter)
    assert_law_is_the_targets(law, target)
    assert lengths == {0, 1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_rejection_of_chains_that_end_with_an_unsure_token_keeps_the_law(seed: int) -> None:
    target, drafter, drafted = Table(seed), Table(100 + seed), set()

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        proposal = draft_chain(rule, drafter, (), 2, least=1 / VOCAB)
        drafted.add(len(proposal))
        return committed(proposal, rule.verify(proposal, target.rows((), proposal), -1))

    assert_law_is_the_targets(enumerate_coins(run), target)
    assert drafted == {1, 2}


@pytest.mark.parametrize("vocab", [[1, 3], [2], [0, 1, 2]])
def test_rejection_keeps_the_law_with_a_restricted_draft_vocabulary(vocab: list[int]) -> None:
    target, drafter = Table(1), Table(101)
    law, lengths = sampled_chain_law(target, drafter, vocab=torch.tensor(vocab))
    assert_law_is_the_targets(law, target)
    assert max(lengths) == 2


def test_rejection_keeps_the_law_where_the_target_has_zeros() -> None:
    target = Table(2, never=[1])
    law, _ = sampled_chain_law(target, Table(102))
    assert_law_is_the_targets(law, target)


def test_rejection_accepts_everything_from_the_target_itself() -> None:
    target = Table(3)
    law, _ = sampled_chain_law(target, target)
    assert_law_is_the_targets(law, target)
    short = sum(mass for tokens, mass in law.items() if len(tokens) < 3)
    assert short < 1e-6
    rule = RejectionRule(TEMPERATURE, 7, VOCAB)
    for _ in range(50):
        proposal = draft_chain(rule, target, (), 2)
        assert rule.verify(proposal, target.rows((), proposal), -1).path == [0, 1]


def test_rejection_accepts_nothing_from_a_disjoint_drafter() -> None:
    target, drafter = Table(4, never=[0, 1]), Table(104, never=[2, 3])
    law, lengths = sampled_chain_law(target, drafter)
    assert_law_is_the_targets(law, target)
    assert lengths == {0}


TREES = {
    "empty": Proposal.empty(),
    "chain": tree((-1, 2), (0, 1)),
    "two siblings": tree((-1, 2), (-1, 0)),
    "whole vocabulary": tree((-1, 3), (-1, 1), (-1, 0), (-1, 2)),
    "branching twice": tree((-1, 1), (-1, 3), (0, 0), (0, 1), (1, 2), (1, 1), (1, 0)),
    "repeated sibling": tree((-1, 1), (-1, 1), (0, 2), (1, 3), (-1, 0)),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("never", [[], [1], [0, 2]])
def test_rejection_of_deterministic_trees_keeps_the_targets_law(
    name: str, never: list[int]
) -> None:
    target, proposal = Table(5, never=never), TREES[name]

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        return committed(proposal, rule.verify(proposal, target.rows((), proposal), -1))

    assert_law_is_the_targets(enumerate_coins(run), target)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sampled chain", "branching twice"])
def test_rejection_with_real_coins_matches_the_law(shape: str) -> None:
    target, drafter = Table(6), Table(106)
    rule = RejectionRule(TEMPERATURE, 12, VOCAB)
    counts: Counter[Tokens] = Counter()
    for _ in range(2500):
        text: Tokens = ()
        while len(text) < 2:
            sampling = shape == "sampled chain"
            proposal = draft_chain(rule, drafter, text, 2) if sampling else TREES[shape]
            verdict = rule.verify(proposal, target.rows(text, proposal), len(text) - 1)
            text += committed(proposal, verdict)
        counts[text[:2]] += 1
    # 99.9 % quantile with 15 degrees of freedom.
    assert chi_square(counts, target.law(2)) < 37.7


def test_rejection_refuses_a_tree_of_sampled_tokens() -> None:
    nodes = TREES["two siblings"]
    probs = torch.full((2, VOCAB), 1 / VOCAB)
    proposal = Proposal(nodes.tokens, nodes.parents, nodes.logprobs, probs)
    with pytest.raises(DraftgymError, match="tree of sampled tokens"):
        RejectionRule(1.0, 0, VOCAB).verify(proposal, torch.zeros(3, VOCAB), 0)


# --- coupled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_coupled_text_does_not_depend_on_the_proposals(seed: int) -> None:
    target, drafter, rng = Table(seed), Table(100 + seed), random.Random(seed)
    rule = CoupledRule(TEMPERATURE, seed, VOCAB)
    plain = decode(rule, target, draft_nothing, 30)
    assert decode(rule, target, lambda text: random_tree(rng), 30) == plain
    fresh = CoupledRule(TEMPERATURE, seed, VOCAB)
    assert decode(fresh, target, lambda text: draft_chain(fresh, drafter, text, 3), 30) == plain
    assert decode(CoupledRule(TEMPERATURE, seed + 1, VOCAB), target, draft_nothing, 30) != plain


def test_coupled_texts_have_the_targets_law() -> None:
    target = Table(7)
    counts = Counter(
        decode(CoupledRule(TEMPERATURE, seed, VOCAB), target, draft_nothing, 3)[1:]
        for seed in range(4000)
    )
    law = {text[1:]: mass for text, mass in target.law(3, (0,)).items()}
    assert chi_square(counts, law) < 37.7


def test_coupled_drafter_with_the_targets_logits_is_always_right() -> None:
    target = Table(8)
    for seed in range(20):
        rule = CoupledRule(TEMPERATURE, seed, VOCAB)
        proposal = draft_chain(rule, target, (0, 1), 5)
        verdict = rule.verify(proposal, target.rows((0, 1), proposal), 1)
        assert verdict.path == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pair", range(4))
def test_coupled_drafter_agrees_as_often_as_the_bound_says(pair: int) -> None:
    p, q = Table(pair), Table(200 + pair)
    gaps = zip(p.probs(()), q.probs(()), strict=True)
    distance = sum(abs(a - b) for a, b in gaps) / 2
    bound = (1 - distance) / (1 + distance)
    rule = CoupledRule(TEMPERATURE, 0, VOCAB)
    positions = range(4000)
    rule_q, _, _ = rule.draft(q.logits(()).expand(4000, VOCAB), positions)
    rule_p, _, _ = rule.draft(p.logits(()).expand(4000, VOCAB), positions)
    agreement = float((rule_p == rule_q).float().mean())
    assert agreement > bound - 4 * math.sqrt(0.25 / 4000)


def test_coupled_drafter_uses_the_noise_of_target_ids() -> None:
    """A restricted draft vocabulary picks what the target would pick among those tokens."""
    vocab = torch.tensor([1, 2, 5, 7])
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    rule = CoupledRule(1.0, 3, 8)
    masked = torch.full_like(logits, -math.inf)
    masked[:, vocab] = logits[:, vocab]
    wanted, _, _ = rule.draft(masked, range(50))
    tokens, logprobs, probs = rule.draft(logits[:, vocab], range(50), vocab)
    assert torch.equal(tokens, wanted)
    full = masked.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, full)
    assert probs is None


def test_coupled_margin_is_the_gap_between_the_two_best_scores() -> None:
    rule = CoupledRule(TEMPERATURE, 5, VOCAB)
    logits = Table(9).logits(())[None]
    verdict = rule.verify(Proposal.empty(), logits, 6, with_margins=True)
    best = (logits[0] / TEMPERATURE + rule.noise.row(7)).sort(descending=True)
    assert verdict.next_token == int(best.indices[0])
    assert verdict.margins == [pytest.approx(float(best.values[0] - best.values[1]))]


# --- greedy --------------------------------------------------------------------------------------


def one_hot_rows(*tokens: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float()


def test_greedy_walks_to_the_deepest_match() -> None:
    #            0        1        2       3       4 (wrong token)
    proposal = tree((-1, 0), (-1, 2), (1, 1), (2, 3), (2, 0))
    rows = one_hot_rows(2, 3, 1, 3, 1, 0)
    verdict = GreedyRule().verify(proposal, rows, 10, with_margins=True)
    assert verdict == Verdict([1, 2, 3], 1, [1.0, 1.0, 1.0, 1.0])


def test_greedy_stops_where_no_sibling_matches() -> None:
    proposal = tree((-1, 0), (-1, 2), (1, 1), (0, 3))
    assert GreedyRule().verify(proposal, one_hot_rows(2, 3, 3, 0, 0), 0) == Verdict([1], 3, [])
    assert GreedyRule().verify(proposal, one_hot_rows(1, 0, 0, 0, 0), 0) == Verdict([], 1, [])


@pytest.mark.parametrize("seed", range(8))
def test_greedy_text_does_not_depend_on_the_proposals(seed: int) -> None:
    target, drafter, rng = Table(seed), Table(100 + seed), random.Random(seed)
    rule = GreedyRule()
    plain = decode(rule, target, draft_nothing, 30)
    assert decode(rule, target, lambda text: random_tree(rng), 30) == plain
    assert decode(rule, target, lambda text: draft_chain(rule, drafter, text, 3), 30) == plain
    perfect = draft_chain(rule, target, (0,), 4)
    assert len(rule.verify(perfect, target.rows((0,), perfect), 0).path) == 4


# --- all rules -----------------------------------------------------------------------------------

RULES: list[tuple[str, float]] = [("greedy", 0.0), ("coupled", 1.0), ("rejection", 1.0)]


@pytest.mark.parametrize(("name", "temperature"), RULES)
def test_margins_come_one_per_committed_token(name: str, temperature: float) -> None:
    rule, target = make_rule(name, temperature, 0, VOCAB), Table(10)
    for proposal in TREES.values():
        verdict = rule.verify(proposal, target.rows((), proposal), 0, with_margins=True)
        assert len(verdict.margins) == len(verdict.path) + 1
        assert all(math.isnan(m) == (name == "rejection") for m in verdict.margins)
