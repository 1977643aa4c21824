"""Heads that compress or hide images: the text is the target's, training sees what drafts see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import CatchUp, DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.checkpoint import load_drafter, save_checkpoint
from draftgym.drafters.convert import ConvertArgs, convert
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.images import ImageQueries
from draftgym.drafters.eagle3.unroll import Eagle3Unroller
from draftgym.drafters.positions.recorded import RecordedText, rounds_at_each
from draftgym.drafters.training.data.features import FeatureBatch, target_features
from draftgym.drafters.training.objectives.candidates import Candidates
from draftgym.policies.registry import make_policy
from tests.feature_context import FeatureContext, HeardRule
from tests.images.heads import ASKED, image_head, texts_about
from tests.tiny_images import picture

PAIRS: list[tuple[str, int | None]] = [
    *(("llava", queries) for queries in (None, 0, 1, 2, 5)),
    *(("qwen2_5_vl", queries) for queries in (0, 2)),
    *(("idefics3", queries) for queries in (1, 5)),
    *(("fast_vlm", queries) for queries in (None, 2)),
]
"""Every way to read images, and every kind of target with images that are kept and that are not.

How a kind lays out its images meets a head's way in the positions of its image tokens alone.
"""
LENGTH = 12
SHOWN = ([picture(1)], [picture(1), picture(2, 16, 40)])
SEEDS = [[1], [], [2, 3]]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[str, int | None]:
    """A kind of target, and a way to read images."""
    return request.param


@pytest.fixture
def target(pair: tuple[str, int | None], targets: dict[str, Target]) -> Target:
    """It, loaded as a user does."""
    return targets[pair[0]]


@pytest.fixture
def head(pair: tuple[str, int | None], target: Target) -> Eagle3Drafter:
    """A head for it that reads them so."""
    return image_head(target, pair[1])


@pytest.fixture(scope="module")
def batches(
    targets: dict[str, Target], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, FeatureBatch]:
    """What each target says of one picture, of none, and of two."""
    return {
        kind: target_features(
            target,
            texts_about(target, tmp_path_factory.mktemp(kind), SEEDS),
            image_head(target, None).tap_layers,
        )
        for kind, target in targets.items()
    }


@pytest.fixture
def batch(pair: tuple[str, int | None], batches: dict[str, FeatureBatch]) -> FeatureBatch:
    """What the target says."""
    return batches[pair[0]]


@pytest.mark.parametrize(
    ("arm", "images"),
    [("eagle3:3", SHOWN[0]), ("eagle3:3x6", SHOWN[1]), ("eagle3:3x6", [])],
    ids=("one", "two", "none"),
)
def test_drafts_never_change_text(
    target: Target, head: Eagle3Drafter, arm: str, images: list[Any]
) -> None:
    drafters = {"eagle3": head}
    decoder = SpeculativeDecoder(target, drafters, make_policy(arm, drafters, target))
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    for temperature in (0.0, 0.8):
        how = {"images": images, "temperature": temperature, "seed": 5}
        text = decoder.generate(ASKED, LENGTH, **how)
        assert text.tokens == plain.generate(ASKED, LENGTH, **how).tokens
        assert any(one.record.drafted for one in text.rounds)


@pytest.mark.parametrize("way", [CatchUp(), CatchUp(eager=True), CatchUp(full=True)], ids=str)
def test_proposals_depend_on_the_prefix_alone(
    target: Target, head: Eagle3Drafter, way: CatchUp
) -> None:
    """Whoever drafted before, and however the head caught up."""
    ids, inputs = target.encode_with_images(ASKED, SHOWN[1])
    drafted = []
    for arms in (["plain"] * 5, ["eagle3:2", "plain", "eagle3:3x5"]):
        drafters = {"eagle3": head}
        session = Session(target, ids, GreedyRule(), LENGTH, drafters, inputs=inputs)
        session.catching_up = way
        session.prefill()
        for arm in arms:
            play_round(session, make_policy(arm, drafters, target).arms[0])
        session.roll_back(len(ids) + 3)
        session.catch_up(head)
        drafted.append(head.propose(session.state_of(head), session, DraftShape(4, 9)))
    assert drafted[0].token_ids == drafted[1].token_ids
    assert drafted[0].parents.tolist() == drafted[1].parents.tolist()


def test_training_steps_equal_drafting(
    target: Target, head: Eagle3Drafter, batch: FeatureBatch
) -> None:
    unroller, steps = Eagle3Unroller(head.network, target, steps=3), 3
    anchors = batch.prompt_lengths[:, None] + torch.arange(4)
    offsets = anchors[..., None] + torch.arange(1, steps + 1)
    paths = batch.tokens[torch.arange(len(anchors))[:, None, None], offsets]
    outputs = unroller.outputs(batch, anchors, paths)
    trained = Candidates().scores(outputs, unroller.student_rows)
    for row in range(len(anchors)):
        for column, anchor in enumerate(anchors[row].tolist()):
            rule = HeardRule(batch.tokens[row])
            context = FeatureContext(batch, row, anchor + 1, rule)
            state = head.new_state(128)
            head.catch_up(state, context)
            head.propose(state, context, DraftShape(steps))
            torch.testing.assert_close(trained[row, column], torch.stack(rule.heard), **CLOSE)


def test_drafts_at_all_places_are_those_at_each(
    target: Target, head: Eagle3Drafter, batch: FeatureBatch
) -> None:
    length = int(batch.lengths[2])
    text = RecordedText(
        *(batch.tokens[2, :length], int(batch.prompt_lengths[2]), batch.taps[2, :length]),
        *(head.tap_layers, GreedyRule()),
    )
    shapes = [DraftShape(3), DraftShape(3, 6)]
    together = head.propose_at_each(text, text.places(), shapes)
    for place, drawn in zip(text.places(), together, strict=True):
        context = FeatureContext(batch, 2, place.length, GreedyRule())
        state = head.new_state(128)
        head.catch_up(state, context)
        for proposal, shape in zip(drawn, shapes, strict=True):
            alone = head.propose(state, context, shape.cut(place.room)) if place.room else proposal
            assert proposal.token_ids == alone.token_ids
    assert all(
        len(one.committed) == length - text.prompt_length - 1
        for one in rounds_at_each(head, text, shapes)
    )


def test_hidden_images_have_no_say_and_compressed_ones_do(
    target: Target, batch: FeatureBatch, head: Eagle3Drafter
) -> None:
    queries = head.network.config.image_queries
    unroller = Eagle3Unroller(head.network, target, steps=2)
    image = torch.isin(batch.tokens[0], torch.tensor(sorted(target.image_tokens)))
    anchors = batch.prompt_lengths[:, None]
    paths = batch.tokens.new_zeros(len(anchors), 1, 2)
    before = unroller.outputs(batch, anchors, paths)[0]
    taps = batch.taps.clone()
    taps[0, image] += 1.0
    after = unroller.outputs(replace(batch, taps=taps), anchors, paths)[0]
    assert torch.equal(before, after) == (queries == 0)


def test_an_image_takes_the_rows_that_its_queries_leave(
    target: Target, batch: FeatureBatch, head: Eagle3Drafter
) -> None:
    queries = head.network.config.image_queries
    context = FeatureContext(batch, 0, int(batch.lengths[0]), GreedyRule())
    state = head.new_state(128)
    head.catch_up(state, context)
    positions = len(context.tokens) - head.lag
    image = torch.isin(batch.tokens[0], torch.tensor(sorted(target.image_tokens)))
    runs = int((image[1:] & ~image[:-1]).sum())
    if queries is None:
        assert state.length == positions
    else:
        pieces = int(image.sum())
        left = min(max(queries - 1, 0) * runs, pieces)
        assert state.length == positions - pieces + left


def test_fresh_queries_leave_text_as_it_is(targets: dict[str, Target]) -> None:
    """Training begins with a global vector of nothing."""
    config = image_head(targets["llava"], 2).network.config
    assert not ImageQueries(config, 2).text_proj.weight.any()


def test_checkpoints_survive_a_round_trip(
    target: Target, head: Eagle3Drafter, tmp_path: Path, batch: FeatureBatch
) -> None:
    save_checkpoint(head.network, tmp_path / "head", target)
    loaded = load_drafter(tmp_path / "head", target)
    assert type(loaded) is type(head)
    assert isinstance(loaded, Eagle3Drafter)
    longest = {"max_position_embeddings": target.context_limit}
    assert loaded.network.config == replace(head.network.config, **longest)
    stored = head.network.state_dict()
    assert stored.keys() == loaded.network.state_dict().keys()
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, stored[name].to(torch.bfloat16).to(value.dtype)), name


def test_other_formats_have_no_place_for_queries(
    targets: dict[str, Target], tmp_path: Path
) -> None:
    target = targets["llava"]
    save_checkpoint(image_head(target, 2).network, tmp_path / "head", target)
    with pytest.raises(DraftgymError, match="image_queries is 2"):
        convert(ConvertArgs(tmp_path / "head", tmp_path / "other", "speculators", target.name))
    config = (tmp_path / "head" / "config.json").read_text(encoding="utf-8")
    damaged = config.replace('"image_queries": 2', '"image_queries": -1')
    (tmp_path / "head" / "config.json").write_text(damaged, encoding="utf-8")
    with pytest.raises(DraftgymError, match="image_queries is -1"):
        load_drafter(tmp_path / "head", target)


def test_a_head_for_images_drafts_under_rejection(target: Target, head: Eagle3Drafter) -> None:
    rule = make_rule("rejection", 1.0, 3, target.vocab_size)
    ids, inputs = target.encode_with_images(ASKED, SHOWN[0])
    session = Session(target, ids, rule, LENGTH, {"eagle3": head}, inputs=inputs)
    session.prefill()
    arm = make_policy("eagle3:3", {"eagle3": head}, target).arms[0]
    while not session.finished:
        play_round(session, arm)
    assert len(session.new_tokens) == LENGTH
