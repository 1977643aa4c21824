"""How sure the target is, as observations tell it: exact, and the same alone and among others."""

from __future__ import annotations

import torch

from draftgym.decoding.session import confidence


def rows(count: int) -> torch.Tensor:
    """Logits of a large vocabulary; of the last row all are alike."""
    made = 4 * torch.randn(count, 50_000, generator=torch.Generator().manual_seed(0))
    made[-1] = 3.0
    return made


def test_confidence_is_entropy_margin_and_first_probability() -> None:
    logprobs = rows(8).double().log_softmax(-1)
    best = logprobs.topk(2).values.exp()
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    wanted = torch.stack([entropy, best[:, 0] - best[:, 1], best[:, 0]], -1).float()
    torch.testing.assert_close(confidence(rows(8)), wanted, atol=1e-5, rtol=1e-5)


def test_a_row_has_the_same_confidence_among_others() -> None:
    together = confidence(rows(8))
    assert all(
        torch.equal(confidence(row[None])[0], its)
        for row, its in zip(rows(8), together, strict=True)
    )


def test_logits_are_left_as_they_are() -> None:
    logits = rows(3)
    confidence(logits)
    assert torch.equal(logits, rows(3))
