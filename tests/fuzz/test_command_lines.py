"""Any command line ends with status 0 or 2 and a message, and leaves no file behind.

Nothing is loaded: what is tested is all that stands before it, parsing and checks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym import cli
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model import target as target_module
from draftgym.drafters.training.objectives import small_lm as objective_module
from draftgym.envs.load.settings import ServerSettings
from draftgym.hub import pull as pull_module
from draftgym.serving.edge.devices import drafting as device_module
from draftgym.serving.http import main as serve_module
from draftgym.serving.http import server as server_module

RESOLVERS = (target_module, objective_module, device_module)
"""Who has `resolve_target` by name; imported before it is replaced, so only then."""

VERBS = sorted(cli.COMMANDS)
VALUES = st.sampled_from(
    [
        *("", " ", "-1", "0", "1", "2", "1e400", "nan", "inf", "0.5", "9" * 30, "9" * 5000, "None"),
        *("True", "é", "\udce9", "x" * 300, "x" * 5000, "~", "~nobody/x", "/dev/null", "/", "."),
        *("train", "heldout", "mine.jsonl", "eagle3:2", "ngram:8", "plain", "a=b", "--", "-", "*"),
        *("eagle3", "small-lm", "module:name", "entropy:1", "random@plain", "greedy", "goodput"),
    ]
) | st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=6)


def options_of(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a verb's help lists."""
    found: list[str] = []
    for first in ([], ["eagle3"], ["--scheduler"]):
        with pytest.raises(SystemExit):
            cli.run(verb, [*first, "--help"])
        found += re.findall(r"--[a-z][a-z0-9.-]+", capsys.readouterr().out)
    return sorted({*found, "--nonsense"} - {"--help"})


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_line_is_understood_or_refused(
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def stop(*_: object) -> str:
        raise DraftgymError("nothing is loaded here", "-")

    for module in RESOLVERS:
        monkeypatch.setattr(module, "resolve_target", stop)
    monkeypatch.setattr(pull_module, "snapshot_download", stop)
    monkeypatch.setattr(ServerSettings, "make_costs", stop)  # published costs need no loading
    # A server checks its target, then all else, and would listen before it loads.
    monkeypatch.setattr(serve_module, "resolve_target", str)
    monkeypatch.setattr(server_module, "listen", stop)
    names = st.sampled_from(options_of(verb, capsys))
    option = st.tuples(names, st.lists(VALUES, max_size=2)).map(lambda one: [one[0], *one[1]])
    joined = st.tuples(names, VALUES).map(lambda one: ["=".join(one)])
    lines = st.lists(option | joined | VALUES.map(lambda one: [one]), max_size=4)

    @given(lines)
    def runs(parts: list[list[str]]) -> None:
        try:
            cli.run(verb, [word for part in parts for word in part])
            status: object = 0
        except SystemExit as stopped:
            status = stopped.code or 0
        out, err = capsys.readouterr()
        assert status in (0, 2)
        assert status == 0 or err.strip() or out.strip()
        assert "Traceback" not in err
        written = [path for path in Path.cwd().rglob("*") if path.is_file()]
        assert [path.name for path in written if path.name != ".lock"] == []

    runs()
