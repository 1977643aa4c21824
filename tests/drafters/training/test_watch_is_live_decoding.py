"""What training watches is what live decoding of the greedy texts set aside would accept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.data.corpus import Corpus, Text
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.drafters.training.loop import watch as watch_module
from draftgym.drafters.training.loop.watch import Watch, make_watch, summarise_rounds
from draftgym.policies.routers.rules import FixedPolicy
from tests.drafters.training.setups import KINDS, greedy_texts, objective_of


@pytest.mark.parametrize("kind", KINDS)
def test_the_watch_sees_the_rounds_of_live_decoding(
    target: Target, tmp_path: Path, kind: str
) -> None:
    objective_of(kind, target).export(tmp_path, target)
    texts = greedy_texts(target, [4, 7, 5], 24)
    figures = Watch(target, FeatureCache(None, target, ()), texts)(tmp_path)
    drafter = load_folder(tmp_path, target)
    arms = {"chain": f"{kind}:4", "tree": f"{kind}:4x8"}
    if kind == "small":  # drafts at one position at a time
        arms.pop("tree")
    lengths = {}
    for name, arm in arms.items():
        decoder = SpeculativeDecoder(target, {kind: drafter}, FixedPolicy(parse_arm(arm)))
        rounds = [
            item.record
            for text in texts
            for item in decoder.generate(
                text.tokens[: text.prompt_length], len(text.tokens) - text.prompt_length
            ).rounds
        ]
        lengths[f"{name}_acceptance_length"] = np.mean([len(r.committed) for r in rounds])
        if name == "chain":
            for k in range(1, 5):
                share = np.mean([len(r.committed) > k for r in rounds])
                assert figures[f"accepted_{k}"] == pytest.approx(share)
    found = {name: figures[name] for name in figures if name.endswith("_acceptance_length")}
    assert found == pytest.approx(lengths)
    assert figures["acceptance_length"] == pytest.approx(np.mean(list(lengths.values())))


def test_the_figures_are_means_over_rounds() -> None:
    rounds = {"chain": np.array([1, 1, 2, 4]), "tree": np.array([3, 5])}
    assert summarise_rounds(rounds, 3) == {
        "acceptance_length": 3.0,
        "chain_acceptance_length": 2.0,
        "tree_acceptance_length": 4.0,
        "accepted_1": 0.5,
        "accepted_2": 0.25,
        "accepted_3": 0.25,
    }


def test_only_greedy_texts_are_watched(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    greedy, sampled, hot = greedy_texts(target, [4, 7, 5], 24)
    sampled, hot = replace(sampled, temperature=1.0), replace(hot, temperature=0.3)
    features = FeatureCache(None, target, ())
    watch = make_watch(target, features, Corpus([greedy], [sampled, greedy, hot]))
    assert watch is not None and watch.texts == [greedy]
    assert capsys.readouterr().out == ""
    assert make_watch(target, features, Corpus([greedy], [sampled, hot])) is None
    assert "no greedy text" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_the_watch_is_limited_in_texts_and_tokens(
    target: Target, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective_of(kind, target).export(tmp_path, target)
    features = FeatureCache(None, target, ())
    texts = greedy_texts(target, [4, 7, 5], 24)
    short = [Text(text.tokens[: text.prompt_length + 9], text.prompt_length) for text in texts]
    few = Watch(target, features, short[:2])(tmp_path)
    assert few != Watch(target, features, texts)(tmp_path)
    monkeypatch.setattr(watch_module, "RESPONSE_TOKENS", 9)
    monkeypatch.setattr(watch_module, "TEXTS_OF_A_SMALL_LM" if kind == "small" else "TEXTS", 2)
    assert Watch(target, features, texts)(tmp_path) == pytest.approx(few)
