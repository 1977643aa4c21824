"""Traces that others published: what they tell is exact, what they do not tell is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks.routers.joint import CASCADE, EARLY_STOP, GRAFT, Tuner
from benchmarks.routers.published import PublishedArgs, compare
from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.advantage import AdvantageArgs, train_advantage
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.neural import NeuralArgs, train_neural
from draftgym.agents.router.train import train_router
from draftgym.cli import run
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.positions.recorded import RecordedText, matched
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.envs.cell.texts import ChainTable
from draftgym.policies.routers.learned import load_learned_policy
from draftgym.policies.routers.rules import EntropyPolicy, FixedPolicy
from draftgym.rollouts.import_traces import ImportArgs, import_traces
from draftgym.rollouts.replay.oracle import walk_optimal, walk_single
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.replay.tune_entropy import TuneEntropyArgs, tune
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.published import (
    PublishedText,
    split_by_category,
    trace_published,
    write_traces,
)
from draftgym.rollouts.traces.specdecode_bench import read_specdecode_bench
from draftgym.rollouts.traces.trace import TraceSet
from tests.published.files import line, random_files, random_line, write_files

QUICK = RouterPPO(n_envs=8, n_steps=8, batch_size=32, width=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published files."""
    return random_files(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def traces(folder: Path) -> TraceSet:
    """The same as traces."""
    return trace_published(read_specdecode_bench(folder))


def stored(folder: Path) -> dict[str, dict[str, list[int]]]:
    """What the files say, by the name of the text."""
    found = {}
    for file in folder.glob("*.jsonl"):
        for text in map(json.loads, file.read_text().splitlines()):
            found[f"{file.stem.removeprefix('combined_')}/{text['id']}"] = text
    return found


def test_texts_of_another_length_are_left_out_and_counted(folder: Path, traces: TraceSet) -> None:
    names = {text.question_id for text in traces.texts}
    assert names == {f"{kind}/{i}" for kind in ("code", "math") for i in range(6)}
    assert sorted(traces.origin.host["left_out"].values()) == [1, 1, 1, 1]
    assert {text.category for text in traces.texts} == {"code", "math"}


def test_the_origin_says_what_it_is(traces: TraceSet) -> None:
    origin = traces.origin
    assert origin.target == "Llama-3.1-8B-Instruct" and origin.verification == "greedy"
    assert "2601.11580" in origin.host["published"]
    assert not origin.holds_states and not traces.tells_drafts
    assert origin.cost_model.host["costs"] == "llama3.1-8b-h100"
    assert not any(text.hidden.size for text in traces.texts)
    assert all(np.isnan(text.signals[:, :3]).all() for text in traces.texts)
    assert "eagle" not in traces.texts[0].drafts and "eagle" not in traces.texts[0].logprobs


def test_a_chain_commits_what_was_published_up_to_its_length(
    folder: Path, traces: TraceSet
) -> None:
    for text in traces.texts:
        told = stored(folder)[text.question_id]["acc_eagle"]["acc_len"]
        assert len(told) == len(text.tokens)
        for length in (1, 2, 3, 5, 8):
            arm = text.arms[f"eagle:{length}"]
            for anchor in range(len(text)):
                left = len(text) - anchor
                assert arm.committed[anchor] == min(told[anchor + 1], length + 1, left)
                assert arm.drafted[anchor] == arm.depth[anchor] == length


@pytest.mark.parametrize("drafter", [NgramDrafter(), SuffixDrafter()], ids=lambda one: one.name)
def test_lookups_do_what_ours_do_asked_live(
    folder: Path, traces: TraceSet, drafter: Drafter
) -> None:
    found = 0
    for text in traces.texts:
        body = stored(folder)[text.question_id]
        whole = body["prompt_token_ids"] + body["generated_token_ids"]
        for anchor in range(len(text)):
            length = text.prompt_tokens + anchor + 1
            seen = RecordedText(  # the prefix alone, as a drafter meets it
                torch.tensor(whole[:length]), text.prompt_tokens, torch.zeros(0), (), GreedyRule()
            )
            state = drafter.new_state(length)
            drafter.catch_up(state, seen)
            for arm in [one for one in text.arms if one.startswith(drafter.name)]:
                shape = DraftShape(parse_arm(arm).length)
                proposal = drafter.propose(state, seen, shape)
                made, drafts = text.arms[arm], text.drafts[drafter.name].tokens[anchor]
                assert drafts[: len(proposal)].tolist() == list(proposal.token_ids)
                assert made.drafted[anchor] == len(proposal)
                assert made.committed[anchor] == matched(proposal, whole[length:])
                assert text.matches[drafter.name][anchor] == proposal.match
                found += made.committed[anchor] > 1
    assert found > 50


def handmade(tmp_path: Path) -> TraceSet:
    """Two equal texts: `7 8 9` stands in the prompt, and the text writes it again."""
    texts = [line(name, [7, 8, 9, 5], [7, 8, 9, 5, 2], [1, 2, 3, 9, 1]) for name in "ab"]
    folder = write_files(tmp_path / "hand", {"hand": texts})
    return trace_published(read_specdecode_bench(folder), ["eagle:2", "ngram:8"])


def test_an_episode_by_hand(tmp_path: Path) -> None:
    """Rounds may begin behind 7, 8, 9 and 5; a chain of two commits 2, 3, 2 and 1 there.

    Lookup needs two tokens that occurred before: behind `7 8` it copies `9 5 7 8`, of which `9 5`
    is right, and behind `9` the text has two tokens left.
    """
    traces = handmade(tmp_path)
    text = traces.texts[0]
    assert text.arms["eagle:2"].committed.tolist() == [2, 3, 2, 1]
    assert text.arms["ngram:8"].committed.tolist() == [1, 3, 2, 1]
    assert text.arms["ngram:8"].drafted.tolist() == [0, 4, 4, 4]
    arms = [parse_arm(arm) for arm in ("eagle:2", "ngram:8", "plain", "ngram:8>eagle:2")]
    replay = Replay(traces, arms, 1)
    first = replay.step(np.array([0]))
    assert first.committed.tolist() == [2] and not first.done[0]
    second = replay.step(np.array([1]))
    assert second.committed.tolist() == [2] and second.done[0]
    cost = traces.origin.cost_model
    wanted = cost.target_seconds(3, 4) + 2.13526175e-3 + 2 * 8.41429603e-7 + 4 * 8.41429603e-7
    assert first.seconds[0] == pytest.approx(wanted)
    lookup = 0.005875 * (5.88590713e-3 + 2.10103129e-5)
    assert second.seconds[0] == pytest.approx(cost.target_seconds(5, 6) + lookup)
    again = Replay(traces, arms, 1)
    assert again.step(np.array([3])).committed.tolist() == [2], "nothing is found: EAGLE drafts"
    assert replay.observe()["hidden"].shape == (1, 0)


def test_they_come_back_from_disk_as_they_were(traces: TraceSet, tmp_path: Path) -> None:
    write_traces(traces, tmp_path / "kept")
    back = read_traces(tmp_path / "kept")
    assert back.origin == traces.origin and back.origin.host == traces.origin.host
    for mine, theirs in zip(traces.texts, back.texts, strict=True):
        assert mine.question_id == theirs.question_id and mine.prompt_hash == theirs.prompt_hash
        for name in ("tokens", "signals", "hidden"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        for arm, made in mine.arms.items():
            np.testing.assert_array_equal(made.committed, theirs.arms[arm].committed)
        assert mine.drafts.keys() == theirs.drafts.keys() == {"ngram", "suffix"}
    with pytest.raises(DraftgymError, match="there are traces in"):
        write_traces(traces, tmp_path / "kept")


def test_the_split_follows_from_the_ids_alone(traces: TraceSet) -> None:
    train, heldout = split_by_category(traces, 0.5)
    again = replace(traces, texts=traces.texts[::-1])
    assert _names(split_by_category(again, 0.5)[1]) == _names(heldout)
    assert not _names(train) & _names(heldout)
    for category in ("code", "math"):
        assert len(heldout.only([category]).texts) == 3
    for share in (0.0, 1.0):
        with pytest.raises(DraftgymError, match="cannot be set aside"):
            split_by_category(traces, share)


def _names(traces: TraceSet) -> set[str]:
    return {text.question_id for text in traces.texts}


def test_cascades_and_grafts_of_lookups_follow_and_others_are_refused(traces: TraceSet) -> None:
    known = ["ngram:8>eagle:5", "ngram:8@3>eagle:5", "suffix:16~0.5>eagle:3", "ngram:8+suffix:8"]
    traces.check_arms(map(parse_arm, known))
    for arm in ("eagle:5+ngram:8", "eagle:5~0.1", "ngram:8>eagle:5~0.1"):
        with pytest.raises(DraftgymError, match="tokens that eagle drafted") as caught:
            Replay(traces, [parse_arm(arm)])
        assert "draftgym collect" in caught.value.remedy
        assert not traces.tells(parse_arm(arm))


def test_who_reads_what_nobody_published_is_refused(
    folder: Path, traces: TraceSet, tmp_path: Path
) -> None:
    arms = parse_arm("eagle:3"), parse_arm("ngram:8")
    write_traces(traces, tmp_path / "kept")
    neural = NeuralArgs(
        traces=tmp_path / "kept", first="eagle:3", second="ngram:8", out=tmp_path / "n"
    )
    refused = [
        lambda: play_policy(traces, EntropyPolicy(*arms, threshold=1.0)),
        lambda: tune(TuneEntropyArgs(traces=tmp_path / "kept", output=tmp_path / "t.json")),
        lambda: train_neural(neural),
        lambda: ChainTable(traces, ["eagle:8"]),
    ]
    for ask in refused:
        with pytest.raises(DraftgymError, match="do not hold") as caught:
            ask()
        assert caught.value.remedy


def test_arms_that_nobody_measured_are_refused(folder: Path) -> None:
    published = read_specdecode_bench(folder)
    for arm, word in [
        ("eagle:21", "at most 20"),
        ("eagle:2x4", "chain"),
        ("dflash:2", "choose from eagle, ngram, suffix"),
        ("ngram:99", "at most 16"),
        ("ngram:2x4", "ngram:2"),
    ]:
        with pytest.raises(DraftgymError) as caught:
            trace_published(published, [arm])
        assert word in caught.value.remedy
    short = PublishedText("a", "b", [1, 2], [3, 4, 5], {"eagle": [1]})
    with pytest.raises(DraftgymError, match="1 numbers of eagle for 2 positions"):
        trace_published(replace(published, texts=[short]))
    with pytest.raises(DraftgymError, match="no text of"):
        trace_published(replace(published, texts=[]))


def test_damaged_files_are_named_by_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = random_line("1", 9, rng)
    for damage, word in [
        ("not json", "line 2"),
        ("[1]", "line 2"),
        (json.dumps({key: whole[key] for key in whole if key != "acc_eagle"}), "acc_eagle"),
        (json.dumps(whole | {"prompt_token_ids": ["x"]}), "line 2"),
        (json.dumps(whole | {"acc_eagle": {"acc_len": 3}}), "line 2"),
    ]:
        file = tmp_path / "combined_math.jsonl"
        file.write_text(json.dumps(whole) + "\n" + damage + "\n")
        with pytest.raises(DraftgymError, match=word) as caught:
            read_specdecode_bench(tmp_path)
        assert "line 2" in caught.value.problem
    with pytest.raises(DraftgymError, match=r"no combined_\*\.jsonl"):
        read_specdecode_bench(tmp_path / "nowhere")


def test_the_optimum_and_rules_are_found_on_them(traces: TraceSet) -> None:
    arms = [parse_arm(arm) for arm in traces.origin.arms]
    for text in price_traces(traces, arms):
        best = walk_optimal(text).seconds
        assert all(best <= walk_single(text, arm).seconds + 1e-12 for arm in arms)
    found = Tuner(traces, arms).families()
    assert CASCADE in found and EARLY_STOP not in found and GRAFT not in found
    assert found[CASCADE].parts[-1].drafter == "eagle"


def test_the_command_writes_what_routers_are_trained_and_judged_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    run("import-traces", ["specdecode-bench", str(folder), "--out", str(out)])
    told = capsys.readouterr().out
    assert "code: 3 texts" in told and "left out: 1 texts of math" in told
    settings = RouterArgs(
        traces=out / "train",
        run=tmp_path / "router",
        arms=("eagle:3", "ngram:8", "ngram:8>eagle:3", "plain"),
        rounds=256,
        ppo=QUICK,
        threads=1,
    )
    policy = train_router(settings)
    heldout = read_traces(out / "heldout")
    router = load_learned_policy(policy, heldout.origin)
    assert not router.reads_states
    played = play_policy(heldout, router)
    assert sum(text.tokens for text in played) == heldout.positions
    figures = compare(
        PublishedArgs(
            traces=(out / "train",),
            heldout=(out / "heldout",),
            batches=(1, 64),
            policies=(policy,),
        )
    )
    assert set(figures["cells"]) == {
        f"{one} {b}" for one in ("code", "math", "all") for b in (1, 64)
    }
    for cell in figures["cells"].values():
        assert cell["gains"]["oracle"][0] >= 0 and str(policy) in cell["gains"]


def test_regression_learns_from_them(traces: TraceSet, tmp_path: Path) -> None:
    write_traces(traces, tmp_path / "kept")
    args = AdvantageArgs(
        traces=tmp_path / "kept",
        arms=("eagle:3", "ngram:8"),
        out=tmp_path / "advantage",
        sweeps=0,
        walks=1,
    )
    assert train_advantage(args).name == "advantage"


def test_environments_play_them(traces: TraceSet) -> None:
    env = gym.make("draftgym/RouterReplay-v0", traces=traces, arms=["eagle:3", "ngram:8", "plain"])
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen) and seen["hidden"].shape == (0,)
    done = False
    while not done:
        seen, _, done, _, _ = env.step(0)
        assert env.observation_space.contains(seen)


def test_a_format_of_ones_own_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="no format is called"):
        import_traces(ImportArgs(format="other", folder=tmp_path))


def test_one_arm_alone_is_what_replay_says(traces: TraceSet) -> None:
    arm = parse_arm("suffix:16>eagle:5")
    walks = [walk_single(text, arm) for text in price_traces(traces, [arm])]
    played = play_policy(traces, FixedPolicy(arm))
    for walk, text in zip(walks, played, strict=True):
        assert walk.rounds == text.rounds and walk.seconds == pytest.approx(text.seconds)
