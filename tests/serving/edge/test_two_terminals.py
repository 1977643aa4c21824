"""`draftgym edge serve` and `draftgym edge device`, as a user starts them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import draftgym.serving.edge
from draftgym.cli import run
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.serving.edge import protocol
from draftgym.serving.edge.server import command
from tests.tiny_text import save_target

QUESTION = "Grüße, why? Grüße, why?"
EXACT = ["--dtype", "float32", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with a tokenizer; it is also a small LM that always agrees."""
    return save_target(tmp_path_factory.mktemp("target"))


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """A server in a process of its own; where it listens."""
    words = ["edge", "serve", "--target", str(folder), *EXACT, "--port", "0", "--users", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "draftgym", *words, *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        found = re.match(r"127\.0\.0\.1:(\d+): serving", process.stdout.readline())
        assert found
        yield f"localhost:{found[1]}"
        process.send_signal(signal.SIGTERM)
        assert "texts, " in process.stdout.read()
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def ask(address: str, folder: Path, drafter: str, *options: str) -> None:
    """A device writes an answer to standard output."""
    own = ["--drafter", drafter, "--tokenizer", str(folder), *EXACT]
    asked = ["--server", address, "--prompt", QUESTION, "--max-new-tokens", "24"]
    run("edge", ["device", *own, *asked, *options])


def certificate(folder: Path) -> list[str]:
    """A key and a certificate of localhost that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, pem = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9"]
    made += ["-keyout", str(key), "-out", str(pem), "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(made, check=True, capture_output=True)
    return [str(pem), str(key)]


@pytest.mark.slow
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS and token"])
def test_a_server_and_devices_write_plain_decodings_text(
    folder: Path, tmp_path: Path, secured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target(str(folder), "float32", 1)
    plain = SpeculativeDecoder(target, {}, PlainPolicy()).generate(QUESTION, 24)
    serve: list[str] = []
    device: list[str] = []
    if secured:
        pem, key = certificate(tmp_path)
        serve = ["--token", "secret", "--tls-cert", pem, "--tls-key", key]
        device = ["--token", "secret", "--tls-ca", pem]
    state = ["--state", str(tmp_path / "state.json")]
    with server(folder, *serve) as address:
        for drafter, more in (("ngram", state), (str(folder), [])):
            ask(address, folder, drafter, *device, *more)
            shown = capsys.readouterr()
            assert shown.out == target.decode(plain.tokens) + "\n"
            assert re.search(r"24 tokens in \d+ rounds .* bytes up, \d+ down", shown.err)
    ask(address, folder, "ngram", *device, *state)
    assert capsys.readouterr().out == "", "it is written already"
    with pytest.raises(SystemExit):
        ask(address, folder, "ngram", *device, *state, "--seed", "1")
    assert "of another text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--scheduler", "p2p"], "no server can"),
        (["--scheduler", "heterogeneous@given"], "no server can"),
        (["--scheduler", "homogenous"], "did you mean"),
        (["--users", "0"], "--users is 0"),
        (["--server-factor", "2"], "of no host"),
        (["--tls-cert", "cert.pem"], "half of a TLS key pair"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"], "nowhere.pem"),
        (["--token", "Grüße"], "no header can carry"),
        (["--message-bytes", "2000"], "--message-bytes is 2000"),
        (["--host", "nowhere.invalid"], "choose another --host or --port"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    folder: Path, options: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("edge", ["serve", "--target", str(folder), *EXACT, *options])
    assert what in capsys.readouterr().err


def test_files_that_are_no_key_pair_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pem, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing", encoding="utf-8")
    for pair in ((pem, other), (pem, pem), (str(empty), key)):
        with pytest.raises(SystemExit):
            run(
                "edge",
                ["serve", "--target", str(folder), "--tls-cert", pair[0], "--tls-key", pair[1]],
            )
        assert "are no certificate and key" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ask("localhost:1", folder, "ngram", "--tls-ca", str(empty))
    assert "name a PEM file" in capsys.readouterr().err


def test_a_device_says_when_nobody_listens(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftgym.serving.edge.devices.device.TRIES", 1)
    with pytest.raises(SystemExit):
        ask("localhost:1", folder, "ngram")
    assert "draftgym edge serve" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(DraftgymError, match=r"grpc.*\n.*draftgym\[edge\]"):
        protocol.require_edge()
    with pytest.raises(DraftgymError, match="not installed"):
        command.serve(command.EdgeServeArgs())


@pytest.mark.parametrize("words", [["serve"], ["lab"], ["device", "--server", "x:1"]])
def test_commands_name_protobuf_where_it_is_missing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draftgym.serving, "edge", draftgym.serving.edge)
    for name in [name for name in sys.modules if name.startswith("draftgym.serving.edge")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(SystemExit):
        run("edge", words)
    assert "pip install 'draftgym[edge]'" in capsys.readouterr().err
