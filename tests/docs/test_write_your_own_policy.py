"""The page "Write your own policy" holds a policy that plays, live and replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.rollouts.replay.play import play_policy
from tests.docs.test_documentation import ROOT, blocks
from tests.tiny import numbered_target
from tests.traces import save_traces, tiny_traces

PAGE = ROOT / "docs" / "extend" / "policy.md"


def test_the_pages_policy_plays_live_and_replayed(
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, reader = blocks(PAGE, "python")[0], numbered_target(target)
    assert len(code.splitlines()) < 40
    monkeypatch.setattr(reader, "encode", lambda text: torch.tensor([9, 8, 7, 9, 8]))
    monkeypatch.setattr("draftgym.decoding.model.target.load_target", lambda *_, **__: reader)
    monkeypatch.setattr("draftgym.drafters.loading.load_drafters", lambda *_: drafters)
    monkeypatch.chdir(tmp_path)
    traces = tiny_traces(target, drafters, arms=("ngram:8", "eagle3:3x6"), max_new_tokens=24)
    (tmp_path / "runs").mkdir()
    save_traces(traces, tmp_path / "runs" / "traces")
    page: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), page)
    told = capsys.readouterr().out
    assert "tokens a round" in told and "times plain decoding" in told
    policy, text = page["CopyFirst"](), page["text"]  # type: ignore[operator]
    plain = SpeculativeDecoder(reader, {}, PlainPolicy()).generate("any", 48)
    assert text.tokens == plain.tokens, "a policy never changes the text"  # type: ignore[attr-defined]

    numbered = numbered_target(target)
    decoder = SpeculativeDecoder(numbered, drafters, policy)
    for i, played in enumerate(play_policy(traces, policy)):
        live = decoder.generate(f"{i}", 24)
        arms = [str(decoded.record.arm) for decoded in live.rounds]
        assert played.question_id == f"p{i}" and played.tokens == len(live.tokens) - 1
        assert played.chosen.tolist() == [arms.count(str(arm)) for arm in policy.arms]


def test_the_pages_policy_copies_where_two_tokens_occurred_before(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    definition = blocks(PAGE, "python")[0].partition("target = ")[0]
    page: dict[str, object] = {}
    exec(compile(definition, PAGE.name, "exec"), page)
    signals = np.zeros((3, 12), np.float32)
    signals[:, page["REPEAT"]] = np.array([0, 1, 2]) / 4  # type: ignore[index]
    actions, _ = page["CopyFirst"]().predict({"signals": signals})  # type: ignore[operator]
    assert actions.tolist() == [1, 1, 0]
