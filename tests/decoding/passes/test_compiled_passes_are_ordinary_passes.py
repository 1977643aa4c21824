"""A pass that OpenVINO compiled gives what torch's gives, and its texts are plain decoding's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import Memory, PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.compiled import passes as compiled_module
from draftgym.decoding.model.compact.compiled.passes import CompiledPass
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.precision import choose_precision
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.policies.routers.rules import FixedPolicy
from tests.compact_models import compact_model
from tests.tiny import ONE_THREAD, tiny_drafters, tiny_model

pytest.importorskip("openvino")

CAPACITY, TAPS = 48, (1, 4)
ARMS = ("ngram:4", "eagle3:3", "eagle3:3x7", "dflash:4", "dflash:4x8", "small:3x5")
PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 5, 9])
MODELS = {
    "llama": tiny_model,
    "qwen2": lambda: tiny_model("qwen2"),
    "qwen3": lambda: tiny_model("qwen3"),
    "biases": lambda: compact_model("llama biases"),
    "olmo2": lambda: compact_model("olmo2"),
    "granite": lambda: compact_model("granite"),
    "smollm3": lambda: compact_model("smollm3", use_sliding_window=False, sliding_window=None),
}
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
DEPTHS = torch.tensor([0, 1, 1, 2])


def target_of(model: Any, backend: str = "openvino") -> Target:
    return wrap_model(model, None, "tiny", ONE_THREAD, backend=backend)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def target() -> Target:
    return target_of(tiny_model())


def random_tokens(count: int, seed: int) -> Tensor:
    return torch.randint(4, 60, (count,), generator=torch.Generator().manual_seed(seed))


def passes(decoder: Decoder) -> list[PassOutput]:
    """A chain, a tree of which one path is kept, a chain behind it, and one after a roll-back."""
    cache, outputs = decoder.new_cache(CAPACITY), []
    for tokens in (random_tokens(9, 0), random_tokens(1, 1)):
        outputs += decoder.forward([NewRows(cache, tokens)], TAPS)
        cache.keep(len(tokens))
    tree = NewRows(cache, random_tokens(4, 2), cache.length + DEPTHS, TREE)
    outputs += decoder.forward([tree], TAPS)
    cache.keep(torch.tensor([0, 1, 3]))
    outputs += decoder.forward([NewRows(cache, random_tokens(3, 3), logits_from=1)], TAPS)
    cache.keep(3)
    cache.roll_back(11)
    outputs += decoder.forward([NewRows(cache, random_tokens(2, 4))])
    return outputs


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_gives_what_torchs_gives(name: str) -> None:
    model = MODELS[name]()
    ours, theirs = (target_of(model, backend).compact for backend in ("openvino", "compact"))
    assert ours.compiled is not None and theirs.compiled is None
    for one, other in zip(passes(ours), passes(theirs), strict=True):
        for part in ("logits", "hidden", "taps"):
            torch.testing.assert_close(
                getattr(one, part), getattr(other, part), atol=1e-4, rtol=1e-4
            )


def test_caches_grow_by_steps_that_no_draft_decides(target: Target) -> None:
    """What is not filled is read, too; and rows would round otherwise in another cache."""
    seen = []
    for length in (5, 96, 97, 200):
        for rows in (1, 9):
            cache = target.decoder.new_cache(210)
            cache.reserve(length)
            cache.length = length
            target.decoder.forward([NewRows(cache, random_tokens(rows, 0))])
            seen.append(cache.keys.shape[2])
    assert seen == [128] * 4 + [210] * 4
    assert cache.capacity == 210


def test_what_a_pass_gave_stays_when_the_next_one_runs(target: Target) -> None:
    cache = target.decoder.new_cache(CAPACITY)
    (first,) = target.decoder.forward([NewRows(cache, random_tokens(3, 0))], TAPS)
    before = [part.clone() for part in (first.logits, first.hidden, first.taps)]
    target.decoder.forward([NewRows(cache, random_tokens(3, 1))], TAPS)
    after = (first.logits, first.hidden, first.taps)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("arm", ARMS)
def test_texts_are_plain_decodings(target: Target, arm: str, temperature: float) -> None:
    drafters = tiny_drafters(target)
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    drafting = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
    text = plain.generate(PROMPT, 30, temperature).tokens
    assert drafting.generate(PROMPT, 30, temperature).tokens == text
    torchs = SpeculativeDecoder(target_of(tiny_model(), "compact"), {}, PlainPolicy())
    assert torchs.generate(PROMPT, 30, temperature).tokens == text


def test_a_second_turn_goes_on_from_the_cache(target: Target) -> None:
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    memory = Memory()
    first = decoder.generate(PROMPT, 8, memory=memory)
    longer = torch.tensor([*PROMPT.tolist(), *first.tokens, 8, 3, 9])
    second = decoder.generate(longer, 8, memory=memory)
    assert second.reused > len(PROMPT)
    assert second.tokens == decoder.generate(longer, 8).tokens


def test_many_rows_several_texts_and_large_caches_are_torchs(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = target.compact.compiled
    assert run is not None
    few, many = (NewRows(target.decoder.new_cache(80), random_tokens(n, 0)) for n in (3, 40))
    assert run.takes([few], True) and len(many.tokens) > run.most_rows
    assert not run.takes([many], True) and not run.takes([few, few], True)
    assert not run.takes([few], with_logits=False)
    run.make_room([few])
    monkeypatch.setattr(compiled_module, "MOST_POSITIONS", 79)
    assert not run.takes([few], True)


@pytest.mark.parametrize("name", ["qwen3_moe mixed", "mistral window", "phi3"])
def test_what_cannot_be_compiled_says_why(name: str) -> None:
    model = compact_model(name)
    with pytest.raises(DraftgymError, match="compiled pass knows") as refusal:
        target_of(model)
    assert "--backend compact" in refusal.value.remedy
    assert target_of(model, "auto").compact.compiled is None


def test_without_openvino_its_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name == "openvino" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert not choose_precision("float32", 1).compiles
    with pytest.raises(DraftgymError, match="not installed") as refusal:
        target_of(tiny_model())
    assert "draftgym[openvino]" in refusal.value.remedy


@pytest.mark.parametrize(("gain", "is_taken"), [(1.5, True), (0.9, False)])
def test_compiling_is_chosen_by_trying_it(
    monkeypatch: pytest.MonkeyPatch, gain: float, is_taken: bool
) -> None:
    may = replace(ONE_THREAD, compiles=True)
    assert wrap_model(tiny_model(), None, "tiny", may).compact.compiled is None, "it is too small"
    monkeypatch.setattr(compiled_module, "SMALLEST", 0)
    monkeypatch.setattr(compiled_module, "_gain", lambda *_: gain)
    target = wrap_model(tiny_model(), None, "tiny", may)
    assert (target.compact.compiled is not None) == target.precision.compiles == is_taken
    assert f"({gain:.2f} times as fast)" in target.precision.reason


def test_the_trial_runs_both_and_leaves_nothing_behind(target: Target) -> None:
    decoder = target_of(tiny_model(), "compact").compact
    assert compiled_module._gain(decoder, CompiledPass(decoder, 1)) > 0
    assert decoder.compiled is None


def test_a_copy_runs_without_the_compiled_pass(target: Target) -> None:
    """It stays in the process that made it; a cache that was begun with it still grows."""
    cache = target.decoder.new_cache(200)
    copied, its_cache = pickle.loads(pickle.dumps((target, cache)))
    assert copied.compact.compiled is None
    copied.decoder.forward([NewRows(its_cache, random_tokens(140, 0))])
    texts = [
        SpeculativeDecoder(t, {}, PlainPolicy()).generate(PROMPT, 12) for t in (target, copied)
    ]
    assert texts[0].tokens == texts[1].tokens


def _write(target: Target, into: Any) -> None:
    into.send(SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, 12).tokens)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no process forks here"
)
def test_a_forked_process_writes_with_torch(target: Target) -> None:
    """OpenVINO's threads stay with its parent: a compiled pass would wait for them for ever."""
    text = SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, 12).tokens
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_write, args=(target, there))
    child.start()
    assert here.poll(300), "it hangs"
    assert here.recv() == text
    child.join()
