"""Drafts that OpenVINO compiled are torch's up to rounding; whoever cannot run them has torch's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from draftgym.decoding.drafting import Drafter, DraftShape, PrefixView
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.compiled.graph import CompiledGraph
from draftgym.decoding.model.compact.compiled.passes import CompiledPass
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters import compiled as compiled_module
from draftgym.drafters.compiled import CompiledDrafter, NetworkDrafter, compile_drafter
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.positions.recorded import RecordedText
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_small_lm

pytest.importorskip("openvino")

LENGTH = 150  # a cache grows behind 128
SHAPES = (DraftShape(4), DraftShape(1), DraftShape(3, 7))


def eagle3_with(**wiring: bool) -> Callable[[Target], NetworkDrafter]:
    """An EAGLE-3 head that is wired otherwise, its norms no ones."""

    def make(target: Target) -> NetworkDrafter:
        config = replace(tiny_eagle3(target).network.config, **wiring)
        torch.manual_seed(0)
        network = Eagle3Network(config, torch.arange(config.draft_vocab_size))
        for name, weight in network.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        return Eagle3Drafter(network.requires_grad_(False), target.decoder.embedding)

    return make


DRAFTERS: dict[str, Callable[[Target], NetworkDrafter]] = {
    "eagle3": tiny_eagle3,
    "eagle3 norm_before_residual": eagle3_with(norm_before_residual=True),
    "eagle3 norm_before_fc": eagle3_with(norm_before_fc=True),
    "eagle3 fc_norm, norm_output": eagle3_with(fc_norm=True, norm_output=True),
    "dflash": tiny_dflash,
}


def compiled(drafter: NetworkDrafter) -> NetworkDrafter:
    graphs = (drafter.step_graph(), drafter.catch_up_graph())
    drafter.compiled = CompiledDrafter(*(CompiledGraph(*graph, 1) for graph in graphs))
    return drafter


def text_for(drafter: NetworkDrafter, target: Target) -> RecordedText:
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(target.vocab_size, (LENGTH,), generator=noise)
    taps = torch.randn(LENGTH, drafter.network.fc.weight.shape[1], generator=noise)
    return RecordedText(tokens, 100, taps, drafter.tap_layers, GreedyRule())


def live(drafter: Drafter, text: RecordedText) -> list[Proposal]:
    """What is drafted as a text grows, by a few tokens or by many."""
    state, drawn = drafter.new_state(LENGTH), []
    for length in (2, 9, 10, 60, 125, 127, 131, LENGTH):
        view = PrefixView(text, length)
        drafter.catch_up(state, view)
        drawn += [drafter.propose(state, view, shape) for shape in SHAPES]
    return drawn


def same_bits(some: Sequence[Proposal], others: Sequence[Proposal]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a.logprobs, b.logprobs) for a, b in pairs)


def assert_same_but_rounding(some: Sequence[Proposal], others: Sequence[Proposal]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.parents.tolist() == other.parents.tolist()
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
    assert not same_bits(some, others), "these are other computations"


@pytest.mark.parametrize("name", DRAFTERS)
def test_live_drafts_are_torchs_up_to_rounding(target: Target, name: str) -> None:
    ours, theirs = compiled(DRAFTERS[name](target)), DRAFTERS[name](target)
    text = text_for(ours, target)
    assert_same_but_rounding(live(ours, text), live(theirs, text))


def test_a_small_lms_drafts_are_torchs_up_to_rounding(target: Target) -> None:
    ours, theirs = tiny_small_lm(target), tiny_small_lm(target)
    ours.decoder.compiled = CompiledPass(ours.decoder, 1)
    text = text_for(tiny_eagle3(target), target)
    assert_same_but_rounding(live(ours, text), live(theirs, text))


@pytest.mark.parametrize("name", DRAFTERS)
def test_many_places_are_drafted_at_by_torch(target: Target, name: str) -> None:
    """What traces record does not depend on whether passes are compiled."""
    ours, theirs = compiled(DRAFTERS[name](target)), DRAFTERS[name](target)
    text = text_for(ours, target)
    for few in (text.places()[-3:], text.places()):
        drawn = [drafter.propose_at_each(text, few, SHAPES) for drafter in (ours, theirs)]
        assert same_bits(*([one for some in rows for one in some] for rows in drawn))


@pytest.mark.parametrize("name", ["eagle3", "dflash"])
@pytest.mark.parametrize("what", ["forked", "copied", "long"])
def test_where_it_cannot_run_torch_does(
    target: Target, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = compiled(DRAFTERS[name](target)), DRAFTERS[name](target)
    text = text_for(ours, target)
    if what == "forked":
        monkeypatch.setattr(compiled_module, "has_forked", lambda: True)
    elif what == "copied":
        ours = pickle.loads(pickle.dumps(ours))
    else:
        monkeypatch.setattr(compiled_module, "MOST_POSITIONS", 0)
    assert same_bits(live(ours, text), live(theirs, text))


@pytest.mark.parametrize("name", ["eagle3", "dflash"])
@pytest.mark.parametrize(("gain", "is_taken"), [(1.5, True), (0.9, False)])
def test_compiling_is_chosen_by_trying_it(
    target: Target, name: str, gain: float, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = DRAFTERS[name](target)
    compile_drafter(drafter, target)
    assert drafter.compiled is None and not drafter.compiling, "it is too small"
    monkeypatch.setattr(compiled_module, "SMALLEST", 0)
    compile_drafter(drafter, target)
    assert "times as fast" in drafter.compiling
    monkeypatch.setattr(compiled_module, "_gain", lambda *_: gain)
    compile_drafter(drafter, target)
    assert (drafter.compiled is not None) == is_taken
    assert f"({gain:.2f} times as fast)" in drafter.compiling


def test_what_openvino_refuses_is_torchs(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DraftgymError("OpenVINO cannot compile the pass: no", "use --backend compact")

    monkeypatch.setattr(compiled_module, "SMALLEST", 0)
    monkeypatch.setattr(compiled_module, "CompiledGraph", refuse)
    drafter = tiny_eagle3(target)
    compile_drafter(drafter, target)
    assert drafter.compiled is None and "no" in drafter.compiling
