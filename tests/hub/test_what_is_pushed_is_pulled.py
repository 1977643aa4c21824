"""What is shared comes back byte for byte, with a card that the Hub understands, and no pickle."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard, constants
from safetensors.torch import load_file, save_file

from draftgym import cli
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json, write_text
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.drafters.loading import load_drafters
from draftgym.drafters.suffix.store import save_store
from draftgym.hub.cards import card_of, hub_id
from draftgym.hub.contents import contents_of
from draftgym.hub.pull import PullArgs, pull
from draftgym.hub.push import PushArgs, push
from draftgym.policies.serving.rule import FixedRule
from draftgym.policies.serving.stored import load_rule, save_rule
from draftgym.rollouts.traces.file import read_traces, trace_table
from draftgym.rollouts.traces.shards import ShardWriter
from tests.handmade.traces import handmade_traces
from tests.hub.endpoint import TOKEN, Endpoint, endpoint
from tests.tiny import tiny_eagle3

TRACES = handmade_traces({"eagle3:2": lambda signals, hidden: 1 + (signals[:, 0] > 1).astype(int)})
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A hub of one's own, to which one may write."""
    with endpoint() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def drafter(target: Target, tmp_path: Path) -> Path:
    """The checkpoint of a run."""
    folder = tmp_path / "run" / "checkpoint"
    save_checkpoint(tiny_eagle3(target).network, folder, target)
    write_text(folder / "README.md", "# Mine\n")
    write_json(tmp_path / "run" / "config.json", {})
    lines = [{"loss": 2.0}, {"best_acceptance_length": 1.5}, {"best_acceptance_length": 1.75}]
    write_text(tmp_path / "run" / "metrics.jsonl", "".join(json.dumps(one) + "\n" for one in lines))
    return folder


def policy(folder: Path) -> Path:
    figures = {"validation_tokens_per_second": 41.5, "rounds": 7, "validation_r2": float("nan")}
    save_rule(FixedRule(parse_arm("eagle3:2")), TRACES.origin, folder, figures)
    return folder


def traces(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ".lock").touch()
    with ShardWriter(folder, lambda texts: trace_table(texts, TRACES.origin), 4) as writer:
        for text in TRACES.texts:
            writer.add(text)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Everything but the card and what is hidden."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != "README.md" and not path.name.startswith(".")
    }


def test_a_drafter_goes_round_byte_for_byte(
    hub: Endpoint, drafter: Path, target: Target, tmp_path: Path
) -> None:
    push(PushArgs(drafter, "me/head"))
    back = pull(PullArgs("me/head", tmp_path / "back"))
    assert back == tmp_path / "back" and bytes_of(back) == bytes_of(drafter)
    assert load_drafters(target, [back], shipped=tmp_path)["eagle3"].max_draft_length > 0
    in_cache = pull(PullArgs("me/head"))
    assert in_cache.is_relative_to(tmp_path / "cache") and bytes_of(in_cache) == bytes_of(drafter)


def test_a_policy_goes_round_byte_for_byte(hub: Endpoint, tmp_path: Path) -> None:
    push(PushArgs(policy(tmp_path / "policy"), "me/rule"))
    back = pull(PullArgs("me/rule", tmp_path / "back"))
    assert bytes_of(back) == bytes_of(tmp_path / "policy")
    assert str(load_rule(back, TRACES.origin).arms[0]) == "eagle3:2"


def test_traces_go_round_as_a_dataset(hub: Endpoint, tmp_path: Path) -> None:
    push(PushArgs(traces(tmp_path / "traces"), "me/traces"))
    assert ("dataset", "me/traces") in hub.repositories and len(hub.repositories) == 1
    for name in ("me/traces", "datasets/me/traces"):
        back = pull(PullArgs(name, tmp_path / name.replace("/", "-")))
        assert bytes_of(back) == bytes_of(tmp_path / "traces")
        assert read_traces(back).origin == TRACES.origin


def test_cards_fill_the_fields_of_the_hub(hub: Endpoint, drafter: Path, tmp_path: Path) -> None:
    push(PushArgs(drafter, "me/head", base_model="owner/target"))
    card = ModelCard(hub.files("model", "me/head")["README.md"].decode())
    assert card.text.strip() == "# Mine"
    fields = card.data.to_dict()
    assert fields["base_model"] == "owner/target" and fields["library_name"] == "draftgym"
    assert fields["tags"] == ["draftgym", "speculative-decoding", "eagle3"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("acceptance_length", 1.75)

    rule = ModelCard(card_of(contents_of(policy(tmp_path / "policy")), None, "me/rule"))
    (result,) = rule.data.eval_results
    assert (result.metric_type, result.metric_value) == ("tokens_per_second", 41.5)
    assert "draftgym pull me/rule FOLDER" in rule.text

    data = DatasetCard(card_of(contents_of(traces(tmp_path / "traces")), None, "me/traces"))
    assert "traces" in data.data.tags and "eagle3:2" in data.text
    assert data.data.configs[0]["data_files"] == "part-*.parquet"


@pytest.mark.parametrize("name", ["eagle3", "dflash", "small-lm", "router", "scheduler"])
def test_what_ships_can_be_shared(name: str) -> None:
    shared = contents_of(SHIPPED / f"{name}-smollm2-135m")
    card = ModelCard(card_of(shared, hub_id(shared.target), "me/it"))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not shared.left_out and {"README.md"} < {path.name for path in shared.files}


def test_a_store_of_responses_is_a_drafter(target: Target, tmp_path: Path) -> None:
    save_store([[1, 2, 3, 4]], tmp_path / "store", target, 100)
    shared = contents_of(tmp_path / "store")
    assert (shared.what, shared.kind, shared.fingerprint) == (
        "drafter",
        "suffix",
        target.fingerprint,
    )


def test_an_owners_fields_stay_and_a_second_push_changes_nothing(
    hub: Endpoint, drafter: Path, tmp_path: Path
) -> None:
    write_text(drafter / "README.md", "---\nlicense: mit\ntags: [mine]\n---\n# Mine\n")
    push(PushArgs(drafter, "me/head"))
    first = hub.files("model", "me/head")
    card = ModelCard(first["README.md"].decode())
    assert (card.data.license, card.data.tags) == ("mit", ["mine"])
    push(PushArgs(pull(PullArgs("me/head", tmp_path / "back")), "me/head"))
    assert hub.files("model", "me/head") == first


def test_a_push_replaces_what_was_there(hub: Endpoint, tmp_path: Path) -> None:
    folder = traces(tmp_path / "traces")
    push(PushArgs(folder, "me/traces"))
    there = hub.files("dataset", "me/traces")
    there["LICENSE"] = b"by hand"
    (folder / "part-00001.parquet").unlink()
    push(PushArgs(folder, "me/traces"))
    left = hub.files("dataset", "me/traces")
    assert set(left) == {"LICENSE", "README.md", "part-00000.parquet"}


def test_branches_and_private_repositories(
    hub: Endpoint, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(PushArgs(drafter, "me/head", private=True, revision="next"))
    assert hub.repositories["model", "me/head"].private and not hub.files("model", "me/head")
    assert (pull(PullArgs("me/head", revision="next")) / "config.json").is_file()
    with pytest.raises(DraftgymError, match="no such revision"):
        pull(PullArgs("me/head", revision="never"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DraftgymError, match="not for you"):
        pull(PullArgs("me/head", revision="other"))


def test_pickles_are_neither_pushed_nor_pulled(
    hub: Endpoint, drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(load_file(drafter / "model.safetensors"), drafter / "pytorch_model.bin")
    (drafter / "notes.md").mkdir()
    push(PushArgs(drafter, "me/head"))
    assert "notes.md, pytorch_model.bin" in capsys.readouterr().err
    assert "pytorch_model.bin" not in hub.files("model", "me/head")
    (drafter / "model.safetensors").unlink()
    with pytest.raises(DraftgymError, match="no weights in safetensors"):
        push(PushArgs(drafter, "me/head"))

    there = hub.files("model", "me/head")
    there |= {
        "evil.pkl": b"",
        "code.py": b"",
        "deep/model.safetensors": b"",
        "pytorch_model.bin": b"",
    }
    back = pull(PullArgs("me/head", tmp_path / "back"))
    assert set(bytes_of(back)) == {"config.json", "model.safetensors"}
    assert set(hub.sent) == {"README.md", "config.json", "model.safetensors"}
    del there["model.safetensors"]
    hub.repositories["model", "me/head"].commit("main", there)
    with pytest.raises(DraftgymError, match="pickles are neither pushed nor pulled"):
        pull(PullArgs("me/head", tmp_path / "again"))
    assert not (tmp_path / "again").exists() and "pytorch_model.bin" not in hub.sent


def test_weights_of_several_files_go_round(hub: Endpoint, drafter: Path, tmp_path: Path) -> None:
    tensors = load_file(drafter / "model.safetensors")
    (drafter / "model.safetensors").unlink()
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, drafter / file)
    write_json(drafter / "model.safetensors.index.json", {"weight_map": where})
    push(PushArgs(drafter, "me/head"))
    assert bytes_of(pull(PullArgs("me/head", tmp_path / "back"))) == bytes_of(drafter)


def test_without_a_network_what_was_pulled_is_there(
    hub: Endpoint, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(PushArgs(drafter, "me/head"))
    online = pull(PullArgs("me/head"))
    asked = list(hub.sent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()  # sessions ask once whether they are offline
    assert pull(PullArgs("me/head")) == online and hub.sent == asked
    for act in (lambda: pull(PullArgs("me/other")), lambda: push(PushArgs(drafter, "me/head"))):
        with pytest.raises(DraftgymError, match="out of reach") as refused:
            act()
        assert "HF_HUB_OFFLINE" in str(refused.value)
    monkeypatch.undo()
    huggingface_hub.close_session()


def test_without_a_hub_the_remedy_is_told(
    hub: Endpoint, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for act in (lambda: pull(PullArgs("me/head")), lambda: push(PushArgs(drafter, "me/head"))):
            with pytest.raises(DraftgymError, match=r"out of reach|cannot reach") as refused:
                act()
            assert "check the network" in refused.value.remedy


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda folder: pull(PullArgs("me/nothing")), "not there"),
        (lambda folder: pull(PullArgs("a/b/c/d")), "no name of a repository"),
        (lambda folder: pull(PullArgs("me/nothing", folder)), "exists already"),
        (lambda folder: push(PushArgs(folder.parent, "me/it")), "of a run, the one in it"),
        (lambda folder: push(PushArgs(folder / "nowhere", "me/it")), "name a folder"),
    ],
)
def test_mistakes_are_answered(
    hub: Endpoint, drafter: Path, act: Callable[[Path], object], says: str
) -> None:
    with pytest.raises(DraftgymError, match=says) as refused:
        act(drafter)
    assert refused.value.remedy


def test_who_may_not_write_is_told_about_tokens(
    hub: Endpoint, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(DraftgymError, match="HF_TOKEN"):
        push(PushArgs(drafter, "me/head"))


def test_damaged_fields_of_a_card_are_refused(drafter: Path) -> None:
    write_text(drafter / "README.md", "---\ntags: [\n---\n")
    with pytest.raises(DraftgymError, match=r"README\.md"):
        card_of(contents_of(drafter), None, "me/head")


def test_the_commands_print_where_it_lies(
    hub: Endpoint, drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run("push", [str(drafter), "me/head", "--private"])
    assert capsys.readouterr().out.startswith(hub.url)
    cli.run("pull", ["me/head", str(tmp_path / "back")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "back")
