"""A small LM is a Hugging Face folder.

It computes what transformers computes, transformers drafts with it, and what ships of it is bit for
bit enough to make it again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter, Place
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.loading import load_drafters
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.drafters.small_lm.network import (
    AssembleArgs,
    assemble_from,
    assemble_small_lm,
    load_small_lm,
    pack_small_lm,
    save_small_lm,
)
from draftgym.drafters.small_lm.vocabulary import FILE, write_draft_ids
from draftgym.drafters.training.objectives.small_lm import cut_layers, kept_layers, load_model
from tests.tiny import tiny_model, tiny_target
from tests.tiny_text import save_target

PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A tiny target with a tokenizer, its weights exact in bfloat16 like those of most models."""
    folder = save_target(tmp_path_factory.mktemp("target"))
    model = load_model(str(folder)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return load_target(str(folder), "float32", 1)


SOME = torch.arange(0, 257, 2)
"""A draft vocabulary."""


VOCABULARIES = {"all tokens": None, "a draft vocabulary": SOME}


@pytest.fixture(scope="module")
def saved(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small LMs with some of the target's layers, slightly changed, by their vocabularies."""
    network = cut_layers(load_model(target.name), [0, 1, 2, 3, 5])
    with torch.no_grad():
        network.model.layers[1].mlp.down_proj.weight *= 1.25
    root = tmp_path_factory.mktemp("saved")
    for name, ids in VOCABULARIES.items():
        save_small_lm(network, root / name, target, ids)
    return root


@pytest.fixture(params=VOCABULARIES)
def folder(saved: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one of them."""
    return Path(shutil.copytree(saved / request.param, tmp_path / "small"))


def ids_of(drafter: SmallLMDrafter) -> Tensor:
    """The tokens that it drafts."""
    return torch.arange(257) if drafter.draft_ids is None else drafter.draft_ids


def test_its_logits_are_those_of_transformers(target: Target, folder: Path) -> None:
    """Of all tokens that it drafts: transformers knows of no draft vocabulary."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    drafter = load_small_lm(folder, target)
    decoder = drafter.decoder
    tokens = torch.randint(0, 257, (40,), generator=torch.Generator().manual_seed(0))
    ours = decoder.forward([NewRows(decoder.new_cache(40), tokens)], ())[0].logits
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    torch.testing.assert_close(ours, theirs[:, ids_of(drafter)], rtol=1e-4, atol=1e-4)


def test_it_drafts_no_token_outside_its_draft_vocabulary(target: Target, tmp_path: Path) -> None:
    save_small_lm(cut_layers(load_model(target.name), [0, 5]), tmp_path / "small", target, SOME)
    drafter = load_small_lm(tmp_path / "small", target)
    assert drafter.decoder.head.shape[0] == len(SOME), "no other row is read"
    for temperature, name in ((0.0, None), (0.7, None), (0.7, "rejection")):
        rule = make_rule(name, temperature, 3, target.vocab_size)
        session = Session(target, PROMPT, rule, 40, {"small": drafter})
        session.prefill()
        drafted: list[int] = []
        while not session.finished:
            drafted += play_round(session, parse_arm("small:4")).drafted
        assert drafted and set(drafted) <= set(SOME.tolist())


def test_which_tokens_it_drafts_counts_in_its_fingerprint(target: Target, tmp_path: Path) -> None:
    network, seen = cut_layers(load_model(target.name), [0, 5]), set()
    for ids in (None, SOME, SOME[1:]):
        save_small_lm(network, tmp_path / "small", target, ids)
        seen.add(load_small_lm(tmp_path / "small", target).fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize("damage", ["missing", "short", "other ids", "no ids"])
def test_a_damaged_draft_vocabulary_is_refused(target: Target, tmp_path: Path, damage: str) -> None:
    save_small_lm(cut_layers(load_model(target.name), [0, 5]), tmp_path / "small", target, SOME)
    path = tmp_path / "small" / FILE
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        wrong = SOME + 200 if damage == "other ids" else SOME[:0]
        write_draft_ids(tmp_path / "small", wrong, 600)
    with pytest.raises(DraftgymError, match=FILE) as caught:
        load_small_lm(tmp_path / "small", target)
    assert caught.value.remedy


def test_transformers_drafts_with_it(target: Target, folder: Path) -> None:
    model = load_model(target.name)
    assistant = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    passes = {"target": 0}
    model.register_forward_hook(lambda *_: passes.update(target=passes["target"] + 1))
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    plain = model.generate(PROMPT[None], **options)
    alone = passes["target"]
    assisted = model.generate(PROMPT[None], assistant_model=assistant, **options)
    assert assisted.tolist() == plain.tolist()
    assert passes["target"] - alone < alone  # some of its drafts were taken


def written(
    target: Target, arm: str, temperature: float, drafters: dict[str, Drafter]
) -> tuple[list[int], int]:
    """A text of 32 tokens, and the rounds it took."""
    rule = make_rule(None, temperature, 3, target.vocab_size)
    session = Session(target, PROMPT, rule, 32, drafters)
    session.prefill()
    rounds = 0
    while not session.finished:
        play_round(session, parse_arm(arm))
        rounds += 1
    return session.new_tokens, rounds


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_it_never_changes_the_text(target: Target, folder: Path, temperature: float) -> None:
    drafters = dict(load_drafters(target, [folder]))
    plain, rounds = written(target, "plain", temperature, drafters)
    for arm in ("small:1", "small:4", "small:16", "small:3x12"):
        drafted, fewer = written(target, arm, temperature, drafters)
        assert drafted == plain, arm
        if not (folder / FILE).exists():  # this text may hold few of the tokens that others draft
            assert fewer < rounds, arm


def test_a_chain_is_what_the_small_lm_would_write(target: Target, folder: Path) -> None:
    """Of the tokens that it drafts."""
    drafter = load_small_lm(folder, target)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    session = Session(
        target, PROMPT, make_rule(None, 0.0, 0, target.vocab_size), 20, {"small": drafter}
    )
    session.prefill()
    state = session.state_of(drafter)
    assert drafter.catch_up(state, session) == len(session.tokens) - 1
    drafted = drafter.propose(state, session, parse_arm("small:6").shape).tokens
    tokens = session.tokens
    others = sorted(set(range(257)) - set(ids_of(drafter).tolist())) or None
    options: dict[str, Any] = {"do_sample": False, "suppress_tokens": others}
    text = model.generate(tokens[None], max_new_tokens=6, **options)[0]
    assert drafted.tolist() == text[len(tokens) :].tolist()


def test_a_part_holds_no_embedding_and_drafts_as_the_whole(
    target: Target, folder: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    pack_small_lm(folder, part, target)
    for written in (folder, part):  # in training they are float32
        assert json.loads((written / "config.json").read_text())["dtype"] == "bfloat16"
    names = load_file(part / "model.safetensors").keys()
    assert not [name for name in names if "embed" in name or "lm_head" in name]
    drafters = load_small_lm(folder, target), load_small_lm(part, target)
    whole, packed = (drafter.decoder for drafter in drafters)
    assert torch.equal(*map(ids_of, drafters))
    assert torch.equal(whole.embedding, packed.embedding)
    assert torch.equal(whole.head, packed.head)
    assert torch.equal(whole.layers[1].down, packed.layers[1].down)
    assert torch.equal(whole.rotary.cos, packed.rotary.cos)


def test_assembling_a_part_gives_the_whole_folder_bit_for_bit(
    target: Target, folder: Path, tmp_path: Path
) -> None:
    assemble_from(AssembleArgs(folder, tmp_path / "part", target.name, pack=True))
    assert not (tmp_path / "part" / "tokenizer.json").exists()
    assemble_from(AssembleArgs(tmp_path / "part", tmp_path / "again", target.name))
    files = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == files
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "target")
    target = load_target(str(tmp_path / "target"), "float32", 1)
    save_small_lm(cut_layers(load_model(target.name), [0, 5]), tmp_path / "small", target)
    names = load_file(tmp_path / "small" / "model.safetensors").keys()
    assert len([name for name in names if "embed" in name or "lm_head" in name]) == 1
    pack_small_lm(tmp_path / "small", tmp_path / "part", target)
    packed = load_small_lm(tmp_path / "part", target).decoder
    assert torch.equal(packed.head, target.decoder.head)
    assemble_small_lm(tmp_path / "part", tmp_path / "again", target)
    weights = [tmp_path / name / "model.safetensors" for name in ("small", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("folder", ["a draft vocabulary"], indirect=True)
def test_a_part_is_refused_by_another_target(target: Target, folder: Path, tmp_path: Path) -> None:
    pack_small_lm(folder, tmp_path / "part", target)
    other = load_target(str(save_target(tmp_path / "other", seed=5)), "float32", 1)
    for use in (load_small_lm, lambda part, it: assemble_small_lm(part, tmp_path / "out", it)):
        with pytest.raises(DraftgymError, match="another target") as caught:
            use(tmp_path / "part", other)
        assert target.name in caught.value.remedy
    assert load_small_lm(folder, other)  # a whole folder serves any target of its vocabulary


def test_a_folder_that_is_not_there_is_named(target: Target, tmp_path: Path) -> None:
    for convert in (pack_small_lm, assemble_small_lm):
        with pytest.raises(DraftgymError, match="nowhere") as caught:
            convert(tmp_path / "nowhere", tmp_path / "out", target)
        assert "check the name" in caught.value.remedy and not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["a draft vocabulary"], indirect=True)
def test_only_what_the_target_can_give_back_is_left_out(
    target: Target, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 4] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DraftgymError, match="embed_tokens"):
        pack_small_lm(folder, tmp_path / "part", target)
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("folder", ["a draft vocabulary"], indirect=True)
def test_another_vocabulary_is_refused(target: Target, folder: Path) -> None:
    with pytest.raises(DraftgymError, match=r"257 tokens, target .* has 61") as caught:
        load_small_lm(folder, tiny_target())
    assert "train_drafter.py small-lm" in caught.value.remedy
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(DraftgymError, match="other ones"):
        load_small_lm(folder, target)


@pytest.mark.parametrize("folder", ["a draft vocabulary"], indirect=True)
@pytest.mark.parametrize("form", ["whole", "part"])
@pytest.mark.parametrize("damage", ["no weights", "short", "a tensor missing"])
def test_damaged_folders_are_refused(
    target: Target, folder: Path, tmp_path: Path, form: str, damage: str
) -> None:
    if form == "part":
        pack_small_lm(folder, tmp_path / "part", target)
        folder = tmp_path / "part"
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:-500])
    else:
        tensors = load_file(weights)
        del tensors["model.layers.2.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DraftgymError) as caught:
        load_small_lm(folder, target)
    assert str(folder) in caught.value.problem
    assert caught.value.remedy


def test_any_causal_lm_of_the_vocabulary_drafts(target: Target, tmp_path: Path) -> None:
    """Another kind of model, another width, a shorter context; loaded as users name it."""
    sizes = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1}
    model = tiny_model("qwen3", seed=4, max_position_embeddings=8, **sizes)
    model.save_pretrained(tmp_path / "qwen")
    drafters = dict(load_drafters(target, [tmp_path / "qwen"]))
    assert list(drafters) == ["small", "ngram", "suffix"]
    plain, _ = written(target, "plain", 0.0, drafters)
    assert written(target, "small:4", 0.0, drafters)[0] == plain


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("arm", ["small:4", "small:16", "small:3x12"])
def test_beyond_its_sliding_window_it_drafts_on(
    target: Target, tmp_path: Path, arm: str, temperature: float
) -> None:
    model = tiny_model("mistral", vocab_size=257, sliding_window=20)
    model.save_pretrained(tmp_path / "slides")
    drafter = load_small_lm(tmp_path / "slides", target)
    rule = make_rule(None, temperature, 3, target.vocab_size)
    session = Session(target, PROMPT, rule, 32, {"small": drafter})
    session.prefill()
    while not session.finished:
        assert len(play_round(session, parse_arm(arm)).drafted) > 0 or session.remaining == 0
    assert session.new_tokens == written(target, "plain", temperature, {})[0]


def test_with_a_window_it_drafts_as_transformers_writes(target: Target, tmp_path: Path) -> None:
    """Where many places are drafted at in one pass, too, in texts longer than the window."""
    model = tiny_model("mistral", vocab_size=257, sliding_window=20)
    model.save_pretrained(tmp_path / "slides")
    drafter = load_small_lm(tmp_path / "slides", target)
    session = Session(target, PROMPT, make_rule(None, 0.0, 0, 257), 32, {"small": drafter})
    session.prefill()
    while not session.finished:
        play_round(session, parse_arm("plain"))
    places = [Place(length, 30) for length in range(7, 39)]
    drawn = drafter.propose_at_each(session, places, [parse_arm("small:6").shape])
    for place, (proposal,) in zip(places, drawn, strict=True):
        prefix = session.tokens[: place.length][None]
        text = model.generate(prefix, max_new_tokens=6, do_sample=False)[0, place.length :]
        assert proposal.tokens.tolist() == text.tolist(), place


@pytest.mark.parametrize(
    ("layers", "last", "kept"),
    [
        (4, 0, [0, 1, 2, 3]),
        (4, 1, [0, 1, 2, 9]),
        (4, 4, [6, 7, 8, 9]),
        (4, -1, [0, 3, 6, 9]),
        (1, -1, [0]),
        (10, 3, list(range(10))),
    ],
)
def test_which_layers_are_kept(layers: int, last: int, kept: list[int]) -> None:
    assert kept_layers(10, layers, last) == kept


@pytest.mark.parametrize(("layers", "last"), [(0, 0), (11, 0), (3, 4)])
def test_impossible_layers_are_refused(layers: int, last: int) -> None:
    with pytest.raises(DraftgymError, match="--drafter"):
        kept_layers(10, layers, last)
