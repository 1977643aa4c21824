"""VSD's terms on toys where every path can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from draftgym.drafters.training.objectives import vsd_terms as vsd

VOCAB, DEPTH = 3, 3
PATHS = torch.tensor(list(itertools.product(range(VOCAB), repeat=DEPTH)))


class Toy:
    """Target and drafter over all paths of DEPTH tokens, each conditional on the tokens before."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.log_p, self.log_q = (self._tokens(generator) for _ in range(2))
        self.real = torch.ones_like(self.log_p, dtype=torch.bool)
        self.chances = vsd.keep_chances(self.log_p, self.log_q, self.real, 1.0)
        self.worth = vsd.utility(self.chances, self.real)

    @property
    def p(self) -> Tensor:
        """Probability of each path under the target `[P]`."""
        return self.log_p.sum(-1).exp()

    @property
    def q(self) -> Tensor:
        """The same under the drafter."""
        return self.log_q.sum(-1).exp()

    def _tokens(self, generator: torch.Generator) -> Tensor:
        """Log-probability of each token of each path `[P, DEPTH]`."""
        tables = [
            (torch.randn(*[VOCAB] * (k + 1), generator=generator).double()).log_softmax(-1)
            for k in range(DEPTH)
        ]
        columns = [table[tuple(PATHS[:, : k + 1].T)] for k, table in enumerate(tables)]
        return torch.stack(columns, -1)


@pytest.fixture(params=range(5))
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(request.param)


def test_the_toy_enumerates_distributions(toy: Toy) -> None:
    assert float(toy.p.sum()) == pytest.approx(1) and float(toy.q.sum()) == pytest.approx(1)


@pytest.mark.parametrize("whole", [False, True])
def test_the_bound_lies_below_the_marginal_and_is_tight_at_the_posterior(
    toy: Toy, whole: bool
) -> None:
    """For any drafter the bound is below log E_p[worth]; at q = posterior they are equal."""
    worth = vsd.utility(toy.chances, toy.real, whole)
    marginal = (toy.p * worth).sum().log()
    log_p, log_worth = toy.p.log(), worth.log()
    posterior = vsd.posterior_weights(log_p, worth)
    torch.testing.assert_close(posterior, toy.p * worth / (toy.p * worth).sum())
    for q in (toy.q, toy.p, torch.full_like(toy.q, 1 / len(PATHS))):
        assert vsd.bound(q, q.log(), log_p, log_worth) < marginal - 1e-3
    tight = vsd.bound(posterior, posterior.log(), log_p, log_worth)
    torch.testing.assert_close(tight, marginal)


def test_under_speculative_sampling_the_marginal_is_one_minus_total_variation(toy: Toy) -> None:
    """A path drawn from q is kept whole with chance sum_z min: what kappa stands for."""
    kappa = vsd.utility(toy.chances, toy.real, whole=True)
    by_tokens = torch.minimum(toy.log_p, toy.log_q).sum(-1).exp()
    torch.testing.assert_close((toy.q * kappa).sum(), by_tokens.sum())


def sampled_weights(toy: Toy, count: int, seed: int) -> Tensor:
    """The E-step's weights over all paths, from `count` draws; 0 for what was not drawn."""
    counts = np.random.default_rng(seed).multinomial(count, (toy.q / toy.q.sum()).numpy())
    drawn = torch.tensor(counts).nonzero()[:, 0]
    weights = torch.zeros_like(toy.q)
    weights[drawn] = vsd.posterior_weights(toy.p[drawn].log(), toy.worth[drawn])
    return weights


def test_the_sampled_e_step_converges_to_the_exact_posterior(toy: Toy) -> None:
    exact = vsd.posterior_weights(toy.p.log(), toy.worth)

    def error(count: int) -> float:
        gaps = [(sampled_weights(toy, count, seed) - exact).abs().sum() for seed in range(20)]
        return float(torch.stack(gaps).mean())

    errors = [error(count) for count in (2, 30, 1000, 3_000_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3 and errors[-1] < 0.02


def test_adaptive_weights_are_the_posterior_where_enough_paths_take_part(toy: Toy) -> None:
    exact = vsd.posterior_weights(toy.p.log(), toy.worth)
    share = float(vsd.effective_paths(exact)) / len(PATHS)
    loose = vsd.adaptive_weights(toy.p.log(), toy.worth, share * 0.99)
    torch.testing.assert_close(loose, exact)
    for wanted in (min(0.9, 1.3 * share), 0.95):
        flat = vsd.adaptive_weights(toy.p.log(), toy.worth, wanted)
        assert float(flat.sum()) == pytest.approx(1)
        assert float(vsd.effective_paths(flat)) == pytest.approx(wanted * len(PATHS), rel=1e-2)
        assert torch.equal(flat.argsort(stable=True), exact.argsort(stable=True))


def test_paths_that_are_worth_nothing_weigh_nothing() -> None:
    log_p = torch.tensor([[-1.0, -2.0, -torch.inf], [-1.0, -2.0, -3.0]])
    worth = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for weights in (vsd.adaptive_weights(log_p, worth), vsd.posterior_weights(log_p, worth)):
        assert weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert vsd.uniform_weights(log_p, worth)[0].tolist() == [0.5, 0.5, 0.0]


def test_em_steps_never_lower_the_marginal_chance_of_acceptance() -> None:
    """With kappa held fixed, q <- posterior of q kappa raises sum_z q kappa each time."""
    toy = Toy(11)
    kappa, q = vsd.utility(toy.chances, toy.real, whole=True), toy.q
    chances = []
    for _ in range(6):
        chances.append(float((q * kappa).sum()))
        q = vsd.posterior_weights(q.log(), kappa)
    assert chances == sorted(chances) and chances[-1] > chances[0] + 0.01


def test_reach_and_arrival_by_hand() -> None:
    chances = torch.tensor([0.5, 0.8, 1.0])
    real = torch.tensor([True, True, False])
    kept = vsd.reach(chances, real)
    assert kept.tolist() == pytest.approx([0.5, 0.4, 0.0])
    assert vsd.arrival(kept, real).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert float(vsd.utility(chances, real)) == pytest.approx(0.9)
    assert float(vsd.utility(chances, real, whole=True)) == pytest.approx(0.4)
    assert vsd.reach(chances, real, oracle=False).tolist() == [1.0, 1.0, 0.0]


def test_at_temperature_zero_only_the_targets_best_tokens_are_kept() -> None:
    log_p, log_q = torch.tensor([-0.1, -3.0]), torch.tensor([-2.0, -0.1])
    best = torch.tensor([True, False])
    assert vsd.keep_chances(log_p, log_q, best, 0.0).tolist() == [1.0, 0.0]
    sampled = vsd.keep_chances(log_p, log_q, best, 1.0)
    torch.testing.assert_close(sampled, torch.tensor([1.0, torch.tensor(-2.9).exp()]))
