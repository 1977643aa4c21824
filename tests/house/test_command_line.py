"""The scripts do what they say, and answer mistakes with a remedy instead of a stack trace."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draftgym import cli
from draftgym.agents.scheduler import evaluation as scheduler_evaluation
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.decoding.text.stream import TextStream
from tests.tiny_text import byte_tokenizer, save_drafters, save_prompts, save_target

ROOT = Path(__file__).resolve().parents[2]
EXACT = ["--dtype", "float32", "--threads", "1"]
QUESTION = "Grüße 🙂, why?"


@dataclass(frozen=True)
class Files:
    """What a user has on disk.

    Attributes:
        target: Model folder.
        drafters: Drafter folders.
        prompts: Prompt file.
    """

    target: Path
    drafters: list[Path]
    prompts: Path

    @property
    def options(self) -> list[str]:
        """Options that both scripts take."""
        return ["--target", str(self.target), "--drafters", *map(str, self.drafters), *EXACT]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cost models of tiny targets do not belong into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAFTGYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A tiny target, its drafters and prompts, saved."""
    folder = tmp_path_factory.mktemp("user")
    save_target(folder / "target")
    target = load_target(str(folder / "target"), "float32", 1)
    drafters = save_drafters(target, folder)
    return Files(folder / "target", drafters, save_prompts(folder / "prompts.jsonl", 1))


def start(script: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a script as a user does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    environment.pop("COLUMNS", None)  # the width of a test runner's terminal
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", env=environment, timeout=1000
    )


Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs a script in this process (importing torch again takes seconds)."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


def plain_text(files: Files, tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
    """What plain decoding writes."""
    target = load_target(str(files.target), "float32", 1)
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    return target.decode(decoder.generate(QUESTION, tokens, temperature, seed).tokens)


@pytest.mark.slow
def test_generate_streams_plain_decodings_text_and_shows_rounds(files: Files) -> None:
    done = start(
        "generate.py",
        *("--prompt", "-", "--stream", "--stats", "--max-new-tokens", "40"),
        *files.options,
        stdin=QUESTION,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain_text(files, 40) + "\n"
    for word in ["suffix~0.7>eagle3:3x6~0.06", "verify", "tokens/s", "40 tokens"]:
        assert word in done.stderr


def test_evaluate_prints_a_table_and_writes_json(
    files: Files, script: Script, tmp_path: Path
) -> None:
    result = tmp_path / "new" / "result.json"
    status, out, err = script(
        "evaluate.py",
        *("--prompts", str(files.prompts), "--policies", "eagle3", "entropy:1"),
        *("--max-new-tokens", "12", "--json", str(result), *files.options),
    )
    assert status == 0, err
    body = json.loads(result.read_text())
    totals = {row["policy"]: row for row in body["rows"] if row["category"] == "all"}
    assert list(totals) == ["plain", "eagle3", "entropy:1"]
    assert all(row["identical_texts"] == row["prompts"] == 3 for row in totals.values())
    assert all(row["predicted_seconds"] > 0 for row in body["rows"])
    assert "predicted" in out
    assert body["differences"] == []
    facts = body["environment"]
    assert facts["dtype"] == "float32" and facts["verification"] == "greedy"
    assert facts["command"].startswith("python evaluate.py --prompts")
    assert facts["drafters"]["eagle3"].endswith("eagle3") and facts["drafters"]["ngram"] is None
    for word in ["policy", "speed-up", "entropy:1", "all", "3/3"]:
        assert word in out


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_status_2_and_no_traceback() -> None:
    done = start("generate.py", "--prompt", "x", "--target", "./nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert "remedy: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["generat"], "did you mean 'generate'?"), (["nonsense", "--help"], "draftgym --help")],
)
def test_an_unknown_verb_is_answered_with_a_remedy(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["draftgym", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_the_same_seed_gives_the_same_sampled_text_whatever_the_policy(
    files: Files, script: Script
) -> None:
    expected = plain_text(files, 24, temperature=1.0, seed=5)
    assert expected != plain_text(files, 24, temperature=1.0, seed=6)
    sampling = ["--temperature", "1", "--seed", "5", "--max-new-tokens", "24"]
    for policy in ("dflash:3", "random"):
        choice = ["--prompt", QUESTION, "--policy", policy]
        status, out, _ = script("generate.py", *choice, *sampling, *files.options)
        assert status == 0 and out == expected + "\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "  "], "the prompt is empty"),
        (["--prompt", "word " * 60], "300 tokens"),
        (["--prompt", "x", "--target", "smollm2-135"], "did you mean 'smollm2-135m'"),
        (["--prompt", "x", "--target", "./nowhere"], "unknown target"),
        (["--prompt", "x", "--policy", "./nowhere"], "does not exist"),
        (["--prompt", "x", "--policy", "egle3"], "did you mean 'eagle3'"),
        (["--prompt", "x", "--policy", "TARGET"], "remedy"),
        (["--prompt", "x", "--temperature", "-1"], "temperature -1.0"),
        (["--prompt", "x", "--verification", "coupled"], "temperature above 0"),
        (["--prompt", "x", "--verification", "greedi"], "did you mean 'greedy'"),
        (["--prompt", "x", "--max-new-tokens", "0"], "at least one"),
        (["--prompt", "x", "--dtype", "float8"], "unknown dtype"),
        (["--prompt", "x", "--threads", "0"], "below one"),
    ],
)
def test_generate_answers_mistakes(
    files: Files, script: Script, arguments: list[str], says: str
) -> None:
    arguments = [str(files.target) if part == "TARGET" else part for part in arguments]
    status, out, err = script("generate.py", *files.options, *arguments)
    assert status == 2 and out == ""
    assert says in err and "remedy" in err and "Traceback" not in err


def cut(path: Path) -> None:
    """Half a file, as an interrupted download leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def poison(path: Path) -> None:
    """One weight becomes NaN."""
    tensors = load_file(path)
    weights = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
    weights.view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"caf\xe9", "byte 4 is 0xe9"),
        ("wide".encode("utf-16"), "byte 1 is 0xff"),
        (b"\xed\xa0\x80", "byte 1 is 0xed"),
    ],
)
def test_a_pipe_that_is_not_utf8_is_refused_before_anything_is_loaded(
    data: bytes, says: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
    status, out, err = script("generate.py", "--prompt", "-", "--target", "./nowhere")
    assert (status, out) == (2, "") and says in err and "remedy: convert it" in err


def test_half_a_character_is_refused(files: Files, script: Script) -> None:
    """As a shell hands over a byte that is not UTF-8."""
    status, out, err = script("generate.py", "--prompt", "caf\udce9", "--target", "./nowhere")
    assert (status, out) == (2, "") and "half a character" in err
    with pytest.raises(DraftgymError, match="half a character"):
        load_target(str(files.target), "float32", 1).encode("caf\udce9")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--scheduler=fixed"], ("fixed",)),
        (["--scheduler", "fixed", "oracle"], ("fixed", "oracle")),
        (["--cells", "2", "--scheduler=fixed", "--rounds=3"], ("fixed",)),
        (["--scheduler=fixed", "oracle", "--seed=1"], ("fixed", "oracle")),
        (["--scheduler"], ()),
    ],
)
def test_schedulers_are_compared_however_the_option_is_written(
    arguments: list[str], wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(scheduler_evaluation, "evaluate_schedulers", seen.append)
    cli.run("evaluate", arguments)
    assert [args.scheduler for args in seen] == [wanted]


@pytest.mark.parametrize("damage", [cut, poison])
@pytest.mark.parametrize("which", ["target", "drafter"])
def test_damaged_weights_are_refused(
    files: Files,
    script: Script,
    tmp_path: Path,
    damage: Callable[[Path], None],
    which: str,
) -> None:
    target = save_target(tmp_path / "target")
    drafter = save_drafters(load_target(str(target), "float32", 1), tmp_path)[0]
    damage((target if which == "target" else drafter) / "model.safetensors")
    arguments = ["--target", str(target), "--drafters", str(drafter), *EXACT]
    status, out, err = script("generate.py", "--prompt", "x", *arguments)
    assert status == 2 and out == ""
    assert "remedy" in err and "Traceback" not in err
    assert (
        "NaN" if damage is poison else "damaged" if which == "drafter" else "cannot load"
    ) in err


def test_a_drafter_of_another_target_is_refused(
    files: Files, script: Script, tmp_path: Path
) -> None:
    other = save_target(tmp_path, seed=9)
    arguments = ["--target", str(other), "--drafters", str(files.drafters[0]), *EXACT]
    status, _, err = script("generate.py", "--prompt", "x", *arguments)
    assert status == 2 and "another target" in err and "remedy" in err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"question_id": 1, "turns": ["a"]}\n{broken\n', "line 2"),
        ('{"question_id": 1, "turns": []}\n', "line 1"),
        ('{"question_id": "long-one", "turns": ["' + "word " * 60 + '"]}\n', "'long-one'"),
    ],
)
def test_evaluate_names_the_line_or_the_prompt(
    files: Files, script: Script, tmp_path: Path, lines: str, says: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text(lines)
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--policies", "plain"]
    status, out, err = script("evaluate.py", *arguments, *files.options)
    assert status == 2 and out == ""
    assert says in err and "remedy" in err and "Traceback" not in err


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_streamed_text_is_the_text_and_no_piece_is_half_a_character(size: int) -> None:
    text = "zażółć gęślą jaźń 🙂🌳  e\u0301 line\n\n  end 🙂 "
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces: list[str] = []
    stream = TextStream(tokenizer.decode, pieces.append)
    for begin in range(0, len(ids), size):
        stream.add(ids[begin : begin + size])
    assert len(pieces) > len(text) / (2 * size)  # it streams, it does not wait for the end
    stream.close()
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_of_broken_bytes_is_still_the_decoded_text() -> None:
    tokenizer = byte_tokenizer()
    ids = torch.randint(1, 257, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    out = io.StringIO()
    stream = TextStream(tokenizer.decode, out.write)
    for token in ids:
        stream.add([token])
    stream.close()
    assert out.getvalue() == tokenizer.decode(ids)
