"""Responses depend on their request alone, none is lost or doubled, and training reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from filelock import FileLock

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact import cache as caches
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.session import Session
from draftgym.drafters.training.data.corpus import load_corpus, read_metadata
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import Eagle3Args, train
from draftgym.rollouts.decode import batched, shared_passes
from draftgym.rollouts.decode.batched import Request, texts_together, write_batched
from draftgym.rollouts.decode.shared_passes import SharedPasses
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.responses.respond import RespondArgs, respond
from draftgym.rollouts.responses.responder import make_requests
from draftgym.rollouts.traces.shards import ShardWriter, shards_in
from tests.tiny_text import save_prompts, save_target

TOKENS = 10
SIZES = (3, 20, 5, 9, 14, 4, 7)


def requests_of(target: Target) -> list[Request]:
    """Prompts of several lengths, greedy and sampled in turn."""
    made = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, target.vocab_size, (n,), generator=made) for n in SIZES]
    return [Request(f"q{i}", "chat", i % 2 * 1.0, i, ids) for i, ids in enumerate(prompts)]


def texts_of(target: Target, batch_size: int) -> dict[str, list[int]]:
    written = write_batched(target, requests_of(target), TOKENS, batch_size)
    return {one.request.question_id: one.tokens for one in written}


@pytest.mark.parametrize("stops", [False, True])
def test_a_batched_text_is_the_text_written_alone(target: Target, stops: bool) -> None:
    if stops:  # so that texts end at different times
        stop = texts_of(target, 1)["q1"][4]
        target = replace(target, stop_tokens=frozenset([stop]))
    alone = SpeculativeDecoder(target, {}, PlainPolicy())
    expected = {
        r.question_id: alone.generate(r.prompt, TOKENS, r.temperature, r.seed).tokens
        for r in requests_of(target)
    }
    for batch_size in (1, 2, 3, 50):
        assert texts_of(target, batch_size) == expected
    if stops:
        assert expected["q1"][-1] == stop, "the stop token belongs to the response"
        assert len(expected["q1"]) < TOKENS


def test_free_places_are_refilled_at_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, int]] = []
    play = SharedPasses.play

    def counted(self: SharedPasses, sessions: Sequence[Session]) -> None:
        begun = sum(not session.unread for session in sessions)
        passes.append((begun, len(sessions) - begun))
        play(self, sessions)

    monkeypatch.setattr(SharedPasses, "play", counted)
    texts_of(target, 3)
    # Seven texts of ten tokens each, three at a time; prompts are read in the passes of others,
    # but that the first goes ahead, so that what all begin with is read once.
    assert passes[:3] == [(0, 1), (1, 2), (3, 0)]
    assert sum(begun for begun, _ in passes) == 7 * 9
    assert sum(reading for _, reading in passes) == 7
    assert [sum(some) for some in passes[1:20]] == [3] * 19


@pytest.fixture
def args(tmp_path: Path) -> RespondArgs:
    save_target(tmp_path / "target")
    return RespondArgs(
        out=tmp_path / "responses",
        prompts=str(save_prompts(tmp_path / "prompts.jsonl", per_category=3)),
        max_new_tokens=TOKENS,
        batch_size=4,
        shard_texts=5,
        target=str(tmp_path / "target"),
        dtype="float32",
        threads=1,
    )


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows = [
        row for shard in shards_in(folder) for row in pyarrow.parquet.read_table(shard).to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["id"], row["temperature"]))


def dies_after(monkeypatch: pytest.MonkeyPatch, texts: int, flushes: bool) -> None:
    """Makes the writer die, politely (what is finished is saved) or at once."""
    added: list[int] = []
    add, leave = ShardWriter.add, ShardWriter.__exit__

    def dying(self: ShardWriter, response: Any) -> None:
        if len(added) == texts:
            raise KeyboardInterrupt
        added.append(1)
        add(self, response)

    monkeypatch.setattr(ShardWriter, "add", dying)
    monkeypatch.setattr(ShardWriter, "__exit__", leave if flushes else lambda *_: None)


@pytest.mark.parametrize(("flushes", "saved"), [(True, 8), (False, 5)])
def test_no_text_is_lost_or_doubled_by_a_kill(
    args: RespondArgs, monkeypatch: pytest.MonkeyPatch, flushes: bool, saved: int
) -> None:
    whole = respond(replace(args, out=args.out.with_name("whole")))
    assert (whole.texts, whole.done_before) == (18, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_after(patch, 8, flushes)
        respond(args)
    (args.out / ".part-00009.parquet").write_bytes(b"cut off in the middle of a shard")
    assert len(rows_in(args.out)) == saved
    rest = respond(replace(args, batch_size=7, shard_texts=4))
    assert (rest.texts, rest.done_before) == (18 - saved, saved)
    assert rows_in(args.out) == rows_in(args.out.with_name("whole"))
    assert respond(args).texts == 0, "a finished folder stays as it is"


def test_more_prompts_leave_the_texts_that_are_there(args: RespondArgs) -> None:
    shared = replace(args, shares=(0.5, 0.5))
    respond(shared)
    before = rows_in(args.out)
    save_prompts(Path(args.prompts), per_category=6)
    assert respond(shared).done_before == len(before) == 9
    after = rows_in(args.out)
    assert len(after) == 18
    assert [row for row in after if row in before] == before


def test_each_temperature_gets_its_share_and_each_text_its_seed() -> None:
    prompts = [(Prompt(f"q{i}", "chat", ("?",)), torch.arange(i % 7 + 1)) for i in range(2000)]
    dealt = make_requests(prompts, (0.0, 1.0), (3, 1), seed=0)
    assert sorted(one.question_id for one in dealt) == sorted(p.question_id for p, _ in prompts)
    assert sum(one.temperature == 0 for one in dealt) == pytest.approx(1500, abs=80)
    every = make_requests(prompts, (0.0, 1.0), None, seed=0)
    assert len({(one.question_id, one.temperature) for one in every}) == 4000
    assert len({one.seed for one in every}) == 4000
    lengths = [len(one.prompt) for one in every]
    assert lengths == sorted(lengths, reverse=True)
    assert {one.temperature for one in make_requests(prompts, (0.0, 1.0), (0, 1), 0)} == {1.0}
    others = make_requests(prompts, (0.0, 1.0), None, seed=1)
    assert not {one.seed for one in others} & {one.seed for one in every}


def test_responses_train_a_drafter_of_their_target_and_of_no_other(
    args: RespondArgs, tmp_path: Path
) -> None:
    respond(args)
    target = load_target(args.target, "float32", 1)
    metadata = read_metadata(shards_in(args.out)[0])
    assert metadata["fingerprint"] == target.fingerprint
    assert metadata["settings"]["max_new_tokens"] == TOKENS
    corpus = load_corpus(args.out, 257, validation=3, target=target)
    lengths = [text.tokens.shape[0] - text.prompt_length for text in corpus.train]
    assert lengths == [TOKENS] * 12  # of 9 questions, at two temperatures each, 3 are set aside
    other = save_target(tmp_path / "other", seed=1)
    drafter = Eagle3Args(
        corpus=args.out,
        run=tmp_path / "run",
        target=str(other),
        dtype="float32",
        threads=1,
        trainer=TrainerConfig(minutes=0.01),
    )
    with pytest.raises(DraftgymError, match="written by another target") as caught:
        train(drafter)
    assert "draftgym respond" in caught.value.remedy


def test_a_folder_is_not_mixed(args: RespondArgs) -> None:
    respond(args)
    for changed in ({"max_new_tokens": 9}, {"seed": 1}, {"temperatures": (0.0,)}):
        with pytest.raises(DraftgymError, match="written with other settings"):
            respond(replace(args, **changed))
    prompts = Path(args.prompts)
    prompts.write_text(prompts.read_text().replace("chat number 0", "Chat number 0"))
    with pytest.raises(DraftgymError, match="'chat-0' was answered before with another text"):
        respond(args)
    with FileLock(args.out / ".lock"), pytest.raises(DraftgymError, match="another process"):
        respond(args)
    shard = shards_in(args.out)[0]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DraftgymError, match=shard.name):
        respond(args)


def test_settings_that_cannot_work_are_refused_before_loading(args: RespondArgs) -> None:
    wrong: list[dict[str, Any]] = [
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"shard_texts": 0},
        {"temperatures": ()},
        {"temperatures": (1.0, 1.0)},
        {"temperatures": (-1.0,)},
        {"shares": (1.0,)},
        {"shares": (0.0, 0.0)},
        {"shares": (2.0, -1.0)},
    ]
    for changed in wrong:
        with pytest.raises(DraftgymError) as caught:
            respond(replace(args, target="no/such-target", **changed))
        assert caught.value.remedy
    assert not args.out.exists()


def test_prompts_that_are_too_long_are_left_out(
    args: RespondArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(args, max_prompt_tokens=30)
    with Path(args.prompts).open("a") as file:
        file.write('{"question_id": "long", "turns": ["a question of more than thirty letters"]}')
    assert respond(short).texts == 18, "all but the long one"
    assert "left out" in capsys.readouterr().err
    assert read_metadata(shards_in(args.out)[0])["prompts"]["left_out_prompts"] == ["long"]
    with pytest.raises(DraftgymError, match="no prompt"):
        respond(replace(args, max_prompt_tokens=3))


def test_prompts_that_do_not_fit_are_refused_unless_asked_for(
    args: RespondArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(args.prompts).open("a") as file:
        for index in range(4):
            file.write(json.dumps({"question_id": f"long-{index}", "turns": ["x" * 300]}) + "\n")
    with pytest.raises(DraftgymError) as refused:
        respond(args)
    assert "4 of 13 prompts do not fit" in refused.value.problem
    for told in ("'long-0' (300 tokens), 'long-1'", "1 more", "256 positions"):
        assert told in refused.value.problem
    assert "--skip-long-prompts" in refused.value.remedy and not shards_in(args.out)
    assert respond(replace(args, skip_long_prompts=True)).texts == 18
    assert "4 of 13 prompts have more than" in capsys.readouterr().err


def test_what_prompts_begin_with_is_read_once(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And texts with it are those written alone."""
    rows: list[int] = []
    forward = target.compact.forward

    def counted(batch: Sequence[NewRows], *options: Any) -> Any:
        rows.append(sum(len(one.tokens) for one in batch))
        return forward(batch, *options)

    monkeypatch.setattr(target.decoder, "forward", counted)
    made = torch.Generator().manual_seed(1)
    first = torch.randint(4, 60, (12,), generator=made)
    rest = [torch.randint(4, 60, (n,), generator=made) for n in (5, 9, 1, 30)]
    requests = [
        Request(f"q{i}", "", i % 2 * 1.0, i, torch.cat([first, ids])) for i, ids in enumerate(rest)
    ]
    together = {
        one.request.question_id: one.tokens for one in write_batched(target, requests, 5, 3)
    }
    assert sum(rows) == 12 + sum(map(len, rest)) + 4 * 4
    for one in requests:
        (alone,) = write_batched(target, [one], 5, 1)
        assert together[one.question_id] == alone.tokens


def test_prompts_longer_than_a_pass_are_read_in_parts(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = texts_of(target, 3)
    monkeypatch.setattr(batched, "ROWS_TOGETHER", 8)
    monkeypatch.setattr(shared_passes, "ROWS_TOGETHER", 8)
    monkeypatch.setattr(caches, "ROWS_TOGETHER", 8)
    assert texts_of(target, 3) == whole


def test_speed_is_told_at_the_end(args: RespondArgs, capsys: pytest.CaptureFixture[str]) -> None:
    respond(args)
    told = capsys.readouterr().err
    assert re.search(r"responses: 180 tokens in [\d.]+ s, \d+ tokens/s\n", told)


@pytest.mark.parametrize(
    ("free", "together"), [(None, 64), (10**12, 512), (0, 1)], ids=["processor", "much", "none"]
)
def test_an_accelerator_takes_as_many_texts_as_its_memory_holds(
    target: Target, monkeypatch: pytest.MonkeyPatch, free: int | None, together: int
) -> None:
    monkeypatch.setattr("draftgym.rollouts.decode.batched.free_memory", lambda _: free)
    assert texts_together(target, 100) == together


def test_longer_texts_are_fewer_together(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftgym.rollouts.decode.batched.free_memory", lambda _: 1 << 22)
    short, long = (texts_together(target, positions) for positions in (64, 1024))
    assert 1 <= long < short < 512
