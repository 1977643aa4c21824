"""Other engines in an evaluation: same prompts, same limits, same numbers; else a clear refusal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
import transformers

from benchmarks.report import markdown
from draftgym.decoding.decoder import Generation, PlainPolicy
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.embedded import gguf_target
from draftgym.decoding.model.target import Target, load_target, wrap_model
from draftgym.decoding.text.stops import Stops
from draftgym.rollouts.decode.evaluation import EvaluateArgs, compare, evaluate
from draftgym.rollouts.decode.interleaved import DecodedText, DecodeSettings
from draftgym.rollouts.peers.gguf_files import weight_files
from draftgym.rollouts.peers.loading import check_peers, load_peers
from draftgym.rollouts.peers.peer import Peer
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from draftgym.rollouts.report.calls import CallRow, baseline_told, make_calls
from draftgym.rollouts.report.rows import ALL, Evaluation
from tests.tiny import ONE_THREAD
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_text import byte_tokenizer, save_prompts, save_target, text_model, text_target

SETTINGS = DecodeSettings(max_new_tokens=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that nobody else sees."""
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def args(tmp_path: Path) -> EvaluateArgs:
    return EvaluateArgs(
        target=str(save_target(tmp_path / "target")),
        policies=("ngram:3",),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        max_new_tokens=12,
        dtype="float32",
        threads=1,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A GGUF file in Q8_0, which says so."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, setting=lambda one: one.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0))
    return path


def of_all(calls: Sequence[CallRow]) -> dict[str, CallRow]:
    """Rows over all prompts, by who wrote."""
    return {row.who: row for row in calls if row.category == ALL}


def test_transformers_writes_our_texts_in_the_same_run(
    args: EvaluateArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"json": tmp_path / "figures.json", "report": tmp_path / "report"}
    result = evaluate(replace(args, against=("transformers",), **files))
    calls = of_all(make_calls(result))
    peers = ["transformers", "transformers lookup"]
    assert sorted(list(calls)[:2]) == peers, "the baseline and its like are first"
    assert list(calls)[2:] == ["plain", "ngram:3"]
    for row in calls.values():
        assert row.identical_texts == row.prompts == 6
        assert (row.tokens, row.weights) == (72, "float32")
    assert next(iter(calls.values())).ratio.value == 1
    assert {row.policy for row in result.rows} == {"plain", "ngram:3"}, "peers tell no rounds"
    version = transformers.__version__
    assert result.environment["against"] == dict.fromkeys(peers, version)

    body = json.loads(files["json"].read_text())
    assert [row["who"] for row in body["calls"] if row["category"] == ALL] == list(calls)
    assert len(body["call_texts"]) == 4 * 6 and all(t["seconds"] > 0 for t in body["call_texts"])
    assert "| transformers lookup | float32 |" in markdown(files["json"])
    assert "Beside other engines" in (files["report"] / "index.html").read_text()
    shown = capsys.readouterr().out
    assert "beside other engines" in shown and "every text is plain decoding's" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_a_target_in_few_bits_stands_beside_its_like(
    args: EvaluateArgs, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_llama_cpp(monkeypatch)
    some = replace(args, target=f"{args.target}:int8", against=("transformers",))
    calls = make_calls(evaluate(some))
    assert all(row.identical_texts == row.prompts for row in calls), "generate()'s with its weights"
    assert {row.who: row.weights for row in calls}["plain"] == "int8"
    assert baseline_told(calls).endswith("the fastest peer over all prompts")
    peers = load_peers(["llama.cpp"], load_target(f"{file}:int8", "float32", 1), None, SETTINGS, 9)
    assert list(peers) == ["llama.cpp Q8_0", "llama.cpp Q8_0 lookup"], "no file has its numbers"


def counting(name: str, weights: str, log: list[str]) -> Peer:
    """A peer who writes 0, 1, 2, ... and tells when it was asked."""

    def write(ids: list[int], max_new_tokens: int) -> list[int]:
        log.append(name)
        return list(range(max_new_tokens))

    return Peer(name, "1", weights, write)


def test_peers_take_turns_and_another_text_is_found(tmp_path: Path) -> None:
    log: list[str] = []
    prompts = load_prompts(save_prompts(tmp_path / "prompts.jsonl"))
    peers = {name: counting(name, "Q4_1", log) for name in ("one", "two")}
    result = compare(
        text_target(), {}, {"plain": PlainPolicy()}, prompts, SETTINGS, progress=False, peers=peers
    )
    written = log[2:]  # the first two warm up
    assert sorted(written) == ["one"] * 6 + ["two"] * 6
    firsts = {written[0], written[2], written[4]}
    assert firsts == {"one", "two"}, "the order rotates, as that of policies"
    assert {one.policy for one in result.differences} == {"one", "two"}
    rows = of_all(make_calls(result))
    assert rows["one"].identical_texts == 0 and rows["plain"].identical_texts == 6


def test_every_turn_is_a_call_of_its_own(tmp_path: Path) -> None:
    """Peers keep nothing of the turn before, so neither do policies that stand beside them."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    target = wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)
    prompt = Prompt("talk", "chat", ("first", "second"))
    alone, beside = (
        compare(target, {}, {"plain": PlainPolicy()}, [prompt], SETTINGS, progress=False, **more)
        for more in ({}, {"peers": {"one": counting("one", "Q4_1", [])}})
    )
    assert [text.generation.reused > 0 for text in alone.texts] == [False, True]
    assert [text.generation.reused for text in beside.texts] == [0, 0]
    assert [text.prompt.question_id for text in beside.peer_texts] == ["talk", "talk#2"]


def test_ratios_are_to_the_fastest_peer_with_the_targets_numbers() -> None:
    seconds = {"plain": 2.0, "Q4": 0.5, "F32": 4.0, "F32 lookup": 1.0}
    weights = {"plain": "float32", "Q4": "Q4_1", "F32": "float32", "F32 lookup": "float32"}

    def text(who: str, category: str) -> DecodedText:
        tokens = Generation([1, 2, 3, 4 + (who == "Q4")])
        return DecodedText(Prompt(f"q-{category}", category, ("?",)), who, tokens, seconds[who])

    ours, theirs = (
        [text(who, category) for category in "ab" for who in names]
        for names in (["plain"], ["Q4", "F32", "F32 lookup"])
    )
    result = Evaluation({}, [], [], ours, {"plain": ["plain"]}, [], [], theirs, weights)
    calls = make_calls(result)
    assert [row.category for row in calls] == ["a"] * 4 + ["b"] * 4 + [ALL] * 4
    rows = of_all(calls)
    assert list(rows) == ["F32 lookup", "Q4", "F32", "plain"], "the baseline, peers by speed, ours"
    assert {who: row.ratio.value for who, row in rows.items()} == {
        "F32 lookup": 1.0,
        "Q4": 2.0,
        "F32": 0.25,
        "plain": 0.5,
    }
    assert rows["plain"].tokens_per_second == 2.0 and rows["plain"].seconds == 4.0
    assert [rows[who].identical_texts for who in ("Q4", "F32")] == [0, 2]
    assert "F32 lookup, the fastest peer with the target's very numbers" in baseline_told(calls)
    quantised = replace(result, weights=dict.fromkeys(weights, "Q4_1"))
    assert make_calls(quantised)[0].who == "Q4", "the fastest of all, where none has them"
    assert make_calls(replace(result, peer_texts=[])) == []


@pytest.mark.parametrize("dense", ["F32", "F16"])
def test_copies_hold_the_targets_very_numbers(dense: str, file: Path, cache: Path) -> None:
    ours = transformers.AutoModelForCausalLM.from_pretrained(gguf_target(file)).state_dict()
    target = load_target(str(file), "float32", 1)
    copy, published = weight_files(target, None, dense)
    assert (copy.kind, published.kind, published.path) == (dense, "Q8_0", file)
    assert copy.path.is_relative_to(cache) and copy.weights in ("float32", "float16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        copy.path.parent, gguf_file=copy.path.name, dtype=torch.float32
    ).state_dict()
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        torch.testing.assert_close(value.float(), theirs[key], rtol=0, atol=0)
    before = copy.path.stat().st_mtime_ns
    assert weight_files(target, None, dense)[0] == copy
    assert copy.path.stat().st_mtime_ns == before, "made once"
    fields = {
        name: gguf.GGUFReader(one.path).fields
        for name, one in {"copy": copy, "published": published}.items()
    }
    assert set(fields["copy"]) == set(fields["published"]), "it says all that the file says"


def test_a_split_file_is_copied_whole(file: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "parts.gguf", tensors_per_part=4)
    first = sorted(tmp_path.glob("parts-*.gguf"))[0]
    split, whole = (
        weight_files(load_target(str(path), "float32", 1), None, "F32") for path in (first, file)
    )
    assert split[1].path == first and split[1].kind == "Q8_0", "called after its largest tensor"
    for one, other in zip(
        *(gguf.GGUFReader(f[0].path).tensors for f in (split, whole)), strict=True
    ):
        assert one.name == other.name and (one.data == other.data).all()


class FakeLlama:
    """llama_cpp.Llama as far as the adapter knows it; counts on from the prompt's last token."""

    made: list[FakeLlama]

    def __init__(self, path: str, **options: Any) -> None:
        self.path, self.options, self.resets = Path(path), options, 0
        FakeLlama.made.append(self)

    def reset(self) -> None:
        """Forgets."""
        self.resets += 1

    def generate(self, ids: Sequence[int], temp: float) -> Iterator[int]:
        """Without an end."""
        assert temp == 0.0
        yield from range(ids[-1] + 1, ids[-1] + 100)


def fake_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLlama.made = []
    module = SimpleNamespace(__version__="0.0", Llama=FakeLlama)
    drafting = SimpleNamespace(LlamaPromptLookupDecoding=lambda **options: options)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", drafting)


def test_llama_cpp_is_asked_for_the_same_text(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_llama_cpp(monkeypatch)
    target = load_target(str(file), "float32", 1)
    settings = replace(SETTINGS, stops=Stops(token_ids=(30,)))
    peers = load_peers(["llama.cpp", "llama.cpp"], target, None, settings, longest=20)
    names = [f"llama.cpp {kind}{how}" for kind in ("F32", "F16", "Q8_0") for how in ("", " lookup")]
    assert list(peers) == names
    assert [peer.weights for peer in peers.values()][::2] == ["float32", "float16", "Q8_0"]
    write = peers[names[0]].write
    assert write([9, 10], 3) == [11, 12, 13], "no more than are asked for"
    assert write([9, 27], 8) == [28, 29, 30], "up to a stop token, which belongs to the text"
    assert FakeLlama.made[0].resets == 2, "nothing is kept"
    for one, lookup in zip(FakeLlama.made, [False, True] * 3, strict=True):
        assert one.options["n_threads"] == one.options["n_threads_batch"] == 1
        assert one.options["n_ctx"] == 20 + 2 * 8
        assert (one.options["draft_model"] is not None) is lookup


def test_a_users_own_file_is_the_only_one(
    args: EvaluateArgs, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_llama_cpp(monkeypatch)
    target = load_target(args.target, "float32", 1)
    with pytest.raises(DraftgymError, match=r"260 tokens, and target .* has 257"):
        load_peers(["llama.cpp"], target, file, SETTINGS, 20)
    peers = load_peers(["llama.cpp"], load_target(str(file), "float32", 1), file, SETTINGS, 20)
    assert list(peers) == ["llama.cpp Q8_0", "llama.cpp Q8_0 lookup"]


def test_openvino_genai_is_asked_for_the_same_text(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    made: list[SimpleNamespace] = []

    class Pipeline:
        def __init__(self, path: str, device: str, **options: Any) -> None:
            made.append(SimpleNamespace(path=path, device=device, **options))

        def generate(self, given: Any, config: Any) -> Any:
            ids, mask = (one.data.tolist() for one in given)
            assert mask == [[1] * len(ids[0])]
            assert config.do_sample is False and config.stop_token_ids == {1, 2}
            return SimpleNamespace(tokens=[list(range(config.max_new_tokens))])

    module = SimpleNamespace(
        __version__="0.0",
        LLMPipeline=Pipeline,
        SchedulerConfig=SimpleNamespace,
        GenerationConfig=SimpleNamespace,
        TokenizedInputs=lambda *given: given,
    )
    monkeypatch.setitem(sys.modules, "openvino_genai", module)
    target = load_target(str(file), "float32", 1)
    settings = replace(SETTINGS, stops=Stops(token_ids=(1,)))
    peers = load_peers(["openvino-genai"], target, None, settings, 20)
    names = [f"openvino-genai {k}{how}" for k in ("F16", "Q8_0") for how in ("", " lookup")]
    assert list(peers) == names
    assert peers[names[1]].write([5, 6], 3) == [0, 1, 2]
    assert all(one.INFERENCE_NUM_THREADS == 1 for one in made)
    assert not any(one.scheduler_config.enable_prefix_caching for one in made)
    assert [getattr(one, "INFERENCE_PRECISION_HINT", None) for one in made] == ["f32"] * 2 + [
        None
    ] * 2
    assert [hasattr(one, "prompt_lookup") for one in made] == [False, True] * 2


@pytest.mark.parametrize(
    ("name", "module"), [("llama.cpp", "llama_cpp"), ("openvino-genai", "openvino_genai")]
)
def test_what_is_not_installed_is_said_before_anything_is_computed(
    name: Any, module: str, args: EvaluateArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    monkeypatch.setattr(EvaluateArgs, "load", None)  # loading would fail otherwise
    with pytest.raises(DraftgymError, match=module) as refused:
        evaluate(replace(args, against=(name,)))
    assert refused.value.remedy.startswith("pip install ")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (replace(SETTINGS, temperature=1.0), "greedy"),
        (replace(SETTINGS, stops=Stops(strings=("x",))), "stop strings"),
    ],
)
def test_only_greedy_texts_that_end_by_tokens_are_compared(
    settings: DecodeSettings, match: str
) -> None:
    with pytest.raises(DraftgymError, match=match):
        check_peers(["transformers"], "smollm2-135m", None, settings)
    check_peers([], "smollm2-135m", None, settings)


def test_a_folder_needs_a_file_that_engines_read(
    args: EvaluateArgs, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_llama_cpp(monkeypatch)
    monkeypatch.setattr(EvaluateArgs, "load", None)
    with pytest.raises(DraftgymError, match="read GGUF files") as refused:
        evaluate(replace(args, against=("llama.cpp",)))
    assert "--against-gguf" in refused.value.remedy
    missing = tmp_path / "missing.gguf"
    with pytest.raises(DraftgymError, match=r"missing\.gguf"):
        evaluate(replace(args, against=("llama.cpp",), against_gguf=missing))
    with pytest.raises(DraftgymError, match="nobody reads"):
        evaluate(replace(args, against=("transformers",), against_gguf=file))


def test_images_are_not_compared(args: EvaluateArgs) -> None:
    shown = Prompt("seen", "chat", ("What is this?",), images=((Path("x.png"),),))
    with pytest.raises(DraftgymError, match="images"):
        peers = {"one": counting("one", "Q4_1", [])}
        compare(text_target(), {}, {}, [shown], SETTINGS, progress=False, peers=peers)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "module"), [("llama.cpp", "llama_cpp"), ("openvino-genai", "openvino_genai")]
)
def test_real_engines_write_the_real_targets_texts(
    name: Any, module: str, real: tuple[Target, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(module)
    monkeypatch.delenv("DRAFTGYM_CACHE")
    target, settings = real[0], replace(SETTINGS, max_new_tokens=24)
    prompts = load_prompts("heldout", limit_per_category=1)[:3]
    peers = load_peers([name], target, None, settings, 300)
    result = compare(target, {}, {}, prompts, settings, progress=False, peers=peers)
    rows = of_all(make_calls(result))
    dense = [row for row in rows.values() if row.weights in ("float32", "float16")]
    assert len(dense) >= 2 and all(row.identical_texts == row.prompts == 3 for row in dense)
