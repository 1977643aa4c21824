"""The objectives train what the drafters do: same logits, no leaks, the right labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import Candidates
from draftgym.drafters.training.objectives.unroll import Unroller, pick_anchors
from draftgym.drafters.vocabulary import from_d2t
from tests.drafters.training.setups import (
    block_outputs,
    dflash_drafter,
    eagle3_drafter,
    plain,
    unroller_of,
)
from tests.feature_context import FeatureContext, HeardRule, random_batch

STEPS = 4  # of `unroller_of`
SIZES = [(5, 9), (3, 14), (7, 6)]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


WIRINGS: list[dict[str, bool]] = [
    {},
    {"norm_before_residual": True},
    {"norm_before_fc": True, "norm_output": True},
    {"fc_norm": True},
]


def student_scores(unroller: Unroller[Any], outputs: Tensor) -> Tensor:
    """Logits of some outputs over the whole draft vocabulary."""
    return Candidates().scores(outputs, unroller.student_rows)


def step_logits(unroller: Unroller[Any], batch: FeatureBatch) -> list[Tensor]:
    """Logits of every step over its usable queries, text by text, as training makes them."""
    anchors, valid = pick_anchors(batch, None, 0)
    offsets = anchors[..., None] + torch.arange(1, unroller.depth + 1)
    usable = valid[..., None] & (offsets < batch.lengths[:, None, None])
    rows = torch.arange(len(anchors))[:, None, None]
    paths = batch.tokens[rows, offsets.clamp(max=batch.tokens.shape[1] - 1)]
    logits = student_scores(unroller, unroller.outputs(batch, anchors, paths))
    return [logits[:, :, step][usable[:, :, step]] for step in range(unroller.depth)]


def queries(batch: FeatureBatch, step: int) -> list[tuple[int, int]]:
    """(row, position) of the queries that must be used at a step, by the definition."""
    return [
        (row, position)
        for row, (prompt, length) in enumerate(
            zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
        )
        for position in range(prompt - 1, length)
        if position + step + 2 < length
    ]


def drafted_logits(
    drafter: Eagle3Drafter | DFlashDrafter, batch: FeatureBatch, row: int, length: int, draft: int
) -> list[Tensor]:
    """Logits of drafting `draft` tokens behind the first `length` of a text, fed with the text."""
    rule = HeardRule(torch.cat([batch.tokens[row], torch.zeros(draft, dtype=torch.long)]))
    context = FeatureContext(batch, row, length, rule)
    state = drafter.new_state(128)
    drafter.catch_up(state, context)
    drafter.propose(state, context, DraftShape(draft))
    return rule.heard


@pytest.mark.parametrize("wiring", WIRINGS, ids=str)
def test_eagle3_training_steps_equal_sequential_drafting(
    target: Target, wiring: dict[str, bool]
) -> None:
    drafter = eagle3_drafter(target, **wiring)
    batch = random_batch(target, drafter.tap_layers, SIZES)
    trained = step_logits(unroller_of(drafter, target), batch)
    assert len(trained) == STEPS
    for step, logits in enumerate(trained):
        wanted = queries(batch, step)
        assert logits.shape[0] == len(wanted)
        for got, (row, position) in zip(logits, wanted, strict=True):
            drafted = drafted_logits(drafter, batch, row, position + 2, step + 1)[step]
            torch.testing.assert_close(got, drafted, **CLOSE)


def test_eagle3_teacher_is_the_target_after_the_same_tokens(target: Target) -> None:
    """The loss, recomputed from drafting and from the target's own logits."""
    drafter = eagle3_drafter(target)
    batch = random_batch(target, drafter.tap_layers, SIZES, seed=1)
    objective = plain(unroller_of(drafter, target), decay=0.7)
    expected = 0.0
    for step in range(STEPS):
        losses = []
        for row, position in queries(batch, step):
            drafted = drafted_logits(drafter, batch, row, position + 2, step + 1)[step]
            label = position + step + 2
            teacher = F.linear(batch.hidden[row, label - 1], target.decoder.head)[:40].softmax(-1)
            covered = int(batch.tokens[row, label]) < 40
            losses.append(float(-(teacher * drafted.log_softmax(-1)).sum()) if covered else 0.0)
        expected += 0.7**step * sum(losses) / len(queries(batch, 0))
    assert float(objective(batch).loss) == pytest.approx(expected, rel=1e-4)


def test_dflash_training_blocks_equal_drafting(target: Target) -> None:
    drafter = dflash_drafter(target)
    batch = random_batch(target, drafter.tap_layers, SIZES)
    unroller = unroller_of(drafter, target)
    anchors = torch.tensor([[5, 9, 12], [3, 8, 15], [11, 7, 8]])
    logits = student_scores(unroller, block_outputs(unroller, batch, anchors))
    for row in range(3):
        for block, anchor in enumerate(anchors[row].tolist()):
            drafted = drafted_logits(drafter, batch, row, anchor + 1, drafter.max_draft_length)
            torch.testing.assert_close(logits[row, block], torch.stack(drafted), **CLOSE)


def test_dflash_loss_is_cross_entropy_of_drafting_with_the_text(target: Target) -> None:
    drafter = dflash_drafter(target)
    batch = random_batch(target, drafter.tap_layers, SIZES, seed=2)
    objective = plain(unroller_of(drafter, target), math.exp(-1 / 2.0), "hard", anchors=99)
    ids = from_d2t(drafter.network.d2t).tolist()
    total, count = 0.0, 0
    for row in range(3):
        prompt, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        for anchor in range(prompt, length - 1):
            drafted = drafted_logits(drafter, batch, row, anchor + 1, drafter.max_draft_length)
            count += 1
            for k, logits in enumerate(drafted, start=1):
                if anchor + k < length and int(batch.tokens[row, anchor + k]) in ids:
                    label = ids.index(int(batch.tokens[row, anchor + k]))
                    weight = math.exp(-(k - 1) / 2.0)
                    total -= weight * float(logits.log_softmax(-1)[label])
    assert float(objective(batch).loss) == pytest.approx(total / count, rel=1e-4)


def garbled(batch: FeatureBatch) -> FeatureBatch:
    """The batch with other contents behind the end of every text."""
    pad = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    return replace(
        batch,
        tokens=batch.tokens.masked_fill(pad, 17),
        taps=batch.taps.masked_fill(pad[..., None], 3.0),
        hidden=batch.hidden.masked_fill(pad[..., None], -2.0),
    )


def longer(batch: FeatureBatch) -> FeatureBatch:
    """The batch with more padding."""
    return replace(
        batch,
        tokens=F.pad(batch.tokens, (0, 6)),
        taps=F.pad(batch.taps, (0, 0, 0, 6)),
        hidden=F.pad(batch.hidden, (0, 0, 0, 6)),
    )


def shuffled(batch: FeatureBatch) -> FeatureBatch:
    """The batch with its texts in another order."""
    order, rows = torch.tensor([2, 0, 1]), ("tokens", "lengths", "prompt_lengths", "taps", "hidden")
    return FeatureBatch(*(getattr(batch, name)[order] for name in rows))


@pytest.mark.parametrize("change", [garbled, longer, shuffled])
@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_padding_and_order_do_not_change_the_loss(
    target: Target, kind: str, change: Callable[[FeatureBatch], FeatureBatch]
) -> None:
    drafter = eagle3_drafter(target) if kind == "eagle3" else dflash_drafter(target)
    batch = random_batch(target, drafter.tap_layers, SIZES)

    def loss(of: FeatureBatch) -> float:
        return float(plain(unroller_of(drafter, target))(of).loss)

    assert loss(change(batch)) == pytest.approx(loss(batch), rel=1e-5)


def test_texts_of_a_batch_do_not_see_each_other(target: Target) -> None:
    drafter = eagle3_drafter(target)
    unroller = unroller_of(drafter, target)
    together = random_batch(target, drafter.tap_layers, SIZES)
    alone = random_batch(target, drafter.tap_layers, SIZES[:1])
    for joint, single in zip(
        step_logits(unroller, together), step_logits(unroller, alone), strict=True
    ):
        torch.testing.assert_close(joint[: len(single)], single, **CLOSE)


def test_the_prompt_is_never_a_label(target: Target) -> None:
    """With the first response token as the anchor, the first label is the second one."""
    drafter = eagle3_drafter(target)
    batch = random_batch(target, drafter.tap_layers, [(6, 8)])
    batch = replace(batch, tokens=batch.tokens % 40)  # all of them can be drafted
    objective = plain(unroller_of(drafter, target))
    hidden = batch.hidden.clone()
    hidden[:, :6] = 9.0
    assert torch.equal(objective(replace(batch, hidden=hidden)).loss, objective(batch).loss)
    hidden[:, 6] = 9.0
    assert not torch.equal(objective(replace(batch, hidden=hidden)).loss, objective(batch).loss)


@pytest.mark.parametrize("cut", [7, 10])
def test_the_future_never_reaches_an_eagle3_query(target: Target, cut: int) -> None:
    """Step k at position t may read taps up to t and tokens up to t + 1 + k, and must read them."""
    drafter = eagle3_drafter(target)
    unroller = unroller_of(drafter, target)
    batch = random_batch(target, drafter.tap_layers, [(4, 12)])
    taps, tokens = batch.taps.clone(), batch.tokens.clone()
    taps[:, cut:] += 1.0
    tokens[:, cut + 1 :] = (tokens[:, cut + 1 :] + 1) % target.vocab_size
    before = step_logits(unroller, batch)
    other_taps = step_logits(unroller, replace(batch, taps=taps))
    other_tokens = step_logits(unroller, replace(batch, tokens=tokens))
    for step in range(STEPS):
        for i, (_, position) in enumerate(queries(batch, step)):
            same_taps = torch.allclose(before[step][i], other_taps[step][i], atol=1e-6)
            same_tokens = torch.allclose(before[step][i], other_tokens[step][i], atol=1e-6)
            assert same_taps == (position < cut)
            assert same_tokens == (position + 1 + step < cut + 1)


def test_a_dflash_block_sees_taps_before_its_anchor_and_nothing_else(target: Target) -> None:
    drafter = dflash_drafter(target)
    unroller = unroller_of(drafter, target)
    batch = random_batch(target, drafter.tap_layers, [(4, 14)])
    anchors = torch.tensor([[6, 9, 13, 4]])
    before = block_outputs(unroller, batch, anchors)[0]
    for cut in (6, 9, 12):
        taps = batch.taps.clone()
        taps[:, cut:] += 1.0  # the anchor's own tap and later ones do not exist when drafting
        after = block_outputs(unroller, replace(batch, taps=taps), anchors)[0]
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
        assert same == [anchor <= cut for anchor in anchors[0].tolist()]
    for block, anchor in enumerate(anchors[0].tolist()):
        tokens = batch.tokens.clone()
        tokens[:, anchor] = (tokens[:, anchor] + 1) % target.vocab_size
        after = block_outputs(unroller, replace(batch, tokens=tokens), anchors)[0]
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
        assert same == [other != block for other in range(4)]


def test_a_dflash_block_does_not_see_other_blocks(target: Target) -> None:
    drafter = dflash_drafter(target)
    unroller = unroller_of(drafter, target)
    batch = random_batch(target, drafter.tap_layers, [(4, 14)])
    few = block_outputs(unroller, batch, torch.tensor([[8]]))[0, 0]
    many = block_outputs(unroller, batch, torch.tensor([[7, 9, 8, 8, 5, 6, 10]]))[0, 2]
    torch.testing.assert_close(few, many, **CLOSE)


def test_every_response_token_but_the_last_is_an_anchor_once(target: Target) -> None:
    batch = random_batch(target, (), SIZES)
    for most in (99, 4):
        anchors, valid = pick_anchors(batch, most, seed=most)
        for row, (prompt, response) in enumerate(SIZES):
            picked = anchors[row][valid[row]].tolist()
            allowed = set(range(prompt, prompt + response - 1))
            assert len(picked) == len(set(picked)) == min(most, len(allowed))
            assert set(picked) <= allowed


def test_labels_outside_the_draft_vocabulary_are_skipped(target: Target) -> None:
    """A text of uncovered tokens alone has no loss, no gradient and no agreement."""
    eagle3, dflash = eagle3_drafter(target), dflash_drafter(target)
    for objective in (plain(unroller_of(eagle3, target)), plain(unroller_of(dflash, target))):
        batch = random_batch(target, objective.tap_layers, [(4, 10)])
        output = objective(replace(batch, tokens=torch.full_like(batch.tokens, 45)))
        assert float(output.loss) == 0.0
        assert [float(x) for x in output.agreement] == [0.0] * len(output.agreement)


def test_eagle3_agreement_counts_by_hand(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Always guessing token 7: right for 2 of 5, 2 of 4, 1 of 3 and 1 of 2 labels."""
    drafter = eagle3_drafter(target)
    batch = random_batch(target, drafter.tap_layers, [(3, 6)])
    tokens = torch.tensor([[1, 1, 1, 9, 8, 7, 50, 8, 7]])  # labels of step 0: 8, 7, 50, 8, 7
    guess = F.one_hot(torch.tensor(7), 40).float() * 5
    monkeypatch.setattr(Candidates, "scores", lambda self, x, head: guess.expand(len(x), 40))
    output = plain(unroller_of(drafter, target))(replace(batch, tokens=tokens))
    assert [float(x) for x in output.agreement] == pytest.approx([2 / 5, 2 / 4, 1 / 3, 1 / 2])


def test_dflash_agreement_and_loss_count_by_hand(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always guessing token 7, over blocks at anchors 3 to 7 of a text of 9 tokens."""
    drafter = dflash_drafter(target)
    batch = random_batch(target, drafter.tap_layers, [(3, 6)])
    tokens = torch.tensor([[1, 1, 1, 9, 8, 7, 50, 8, 42]])  # 50 can be drafted, 42 cannot
    guess = F.one_hot(torch.tensor(7), 43).float() * 32
    monkeypatch.setattr(Candidates, "scores", lambda self, x, head: guess.expand(len(x), 43))
    output = plain(unroller_of(drafter, target), 1.0, "hard")(replace(batch, tokens=tokens))
    # Labels by offset: 8 7 50 8 42 | 7 50 8 42 | 50 8 42 | 8 42
    assert [float(x) for x in output.agreement] == pytest.approx([1 / 5, 1 / 4, 0.0, 0.0])
    labels, right, anchors = 4 + 3 + 2 + 1, 2, 5
    total = math.log(math.exp(32) + 42) * labels - 32 * right
    assert float(output.loss) == pytest.approx(total / anchors, rel=1e-5)


def test_texts_shorter_than_the_draft_depth_give_finite_numbers(target: Target) -> None:
    eagle3, dflash = eagle3_drafter(target), dflash_drafter(target)
    for objective in (plain(unroller_of(eagle3, target, 7)), plain(unroller_of(dflash, target))):
        output = objective(random_batch(target, objective.tap_layers, [(4, 4), (9, 4)]))
        assert torch.isfinite(torch.stack([output.loss, *output.agreement])).all()
