"""The target writes prompts behind the beginning of a user's turn; the same seed, the same ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.rollouts.decode.batched import Request, write_sessions
from draftgym.rollouts.prompts.kinds import kind_of
from draftgym.rollouts.prompts.overlap import HeldOut
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.responses import ask as asking
from draftgym.rollouts.responses import wishes
from draftgym.rollouts.responses.ask import AskArgs, ask
from draftgym.rollouts.responses.beginnings import beginning_of
from draftgym.rollouts.responses.respond import RespondArgs, respond
from draftgym.rollouts.responses.wished_texts import Written, read_texts, wished
from draftgym.rollouts.responses.wishes import WISHES, opening_of, prompt_of, user_turn
from draftgym.rollouts.traces.shards import ShardWriter, shards_in
from tests.tiny import tiny_model
from tests.tiny_text import VOCAB, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}#{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)
WORDY_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {{ m['content'] }} {% endfor %}ASSISTANT:"
)
ARTICLE = (
    "The old mill of Torv was sold on Friday to a group of neighbours who want to grind flour "
    "there again. The wheel has not turned since a flood in 1966. A carpenter from the next valley "
    "will mend it in winter, and the first bread is promised for the village feast in June."
)


def save_chatty(folder: Path, template: str = TEMPLATE) -> Path:
    """Saves a tiny target that has a chat template and room for its prompts."""
    tiny_model(vocab_size=VOCAB, max_position_embeddings=1024).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chatty(tmp_path_factory.mktemp("chatty") / "target")


@pytest.fixture(scope="module")
def chatty(folder: Path) -> Target:
    return load_target(str(folder), "float32", 1)


@pytest.fixture
def args(tmp_path: Path, folder: Path) -> AskArgs:
    return AskArgs(
        out=tmp_path / "asked",
        texts=16,
        max_new_tokens=8,
        batch_size=5,
        shard_texts=3,
        target=str(folder),
        dtype="float32",
        threads=1,
    )


def texts_in(folder: Path) -> dict[str, Written]:
    return {one.name: text for one, text in read_texts(folder).items()}


def plants(monkeypatch: pytest.MonkeyPatch, text_of: Callable[[str], str]) -> None:
    """Puts ended texts in the place of the tiny target's gibberish."""

    def planted(session: Session, request: Request) -> Written:
        return Written(text_of(request.question_id), True)

    monkeypatch.setattr(asking, "_text_of", planted)


def question(name: str) -> str:
    """A text that differs from all others."""
    if name.startswith(("article", "dialogue")):
        tale = "tells {0} that {0} and {1} went off to {0} with a {0} and {1} others"
        return "\n".join(f"Name{i}: {tale.format(f'{name}{i}', i)}" for i in range(5))
    return f"Why do {name} birds of kind {name} sing on {name} roofs?"


def prompts_in(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("system", [None, "Users ask of birds."])
def test_the_target_goes_on_from_the_beginning_of_a_users_turn(
    chatty: Target, system: str | None
) -> None:
    opening = user_turn(chatty, system)
    told = "" if system is None else f"#system\n{system}<end>\n"
    assert chatty.tokenizer.decode(opening.ids.tolist()) == f"{told}#user\n"
    assert not chatty.stop_tokens, "it is the template that ends the turn"
    assert opening.stops == Stops(token_ids=(chatty.tokenizer.convert_tokens_to_ids("<end>"),))


def test_a_turn_that_no_token_ends_is_ended_by_the_words_behind_it(tmp_path: Path) -> None:
    target = load_target(str(save_chatty(tmp_path / "wordy", WORDY_TEMPLATE)), "float32", 1)
    opening = user_turn(target, None)
    assert target.tokenizer.decode(opening.ids.tolist()) == "USER: "
    assert opening.stops == Stops(strings=("ASSISTANT:",))


def test_a_target_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    target = load_target(str(save_chatty(tmp_path / "base", "")), "float32", 1)
    with pytest.raises(DraftgymError, match="no chat template"):
        user_turn(target, None)


def test_a_batched_text_keeps_its_sampling_settings_and_its_stops(target: Target) -> None:
    sampling, stops = SamplingSettings(top_p=0.6), Stops(token_ids=tuple(range(20, 40)))
    requests = [
        Request(f"q{i}", "chat", 1.0, i, torch.tensor([5, 6, 7 + i]), sampling=one, stops=end)
        for i, (one, end) in enumerate([(sampling, Stops()), (sampling, stops)] * 3)
    ]
    written = {
        request.question_id: (session.new_tokens, session.finish_reason)
        for request, session in write_sessions(target, requests, 12, 4)
    }
    alone = SpeculativeDecoder(target, {}, PlainPolicy())
    for one in requests:
        settings = {"sampling": one.sampling, "stops": one.stops}
        expected = alone.generate(one.prompt, 12, one.temperature, one.seed, **settings)
        assert written[one.question_id] == (expected.tokens, expected.finish_reason)
    assert "stop" in {reason for _, reason in written.values()}


@pytest.mark.parametrize("flushes", [True, False])
def test_an_interrupted_run_ends_with_the_same_prompts(
    args: AskArgs, monkeypatch: pytest.MonkeyPatch, flushes: bool
) -> None:
    whole = ask(replace(args, out=args.out.with_name("whole"), batch_size=3))
    assert (whole.texts, whole.done_before) == (16, 0)
    added: list[Any] = []
    add, leave = ShardWriter.add, ShardWriter.__exit__

    def dying(self: ShardWriter[Any], text: Any) -> None:
        if len(added) == 7:
            raise KeyboardInterrupt
        added.append(text)
        add(self, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "add", dying)
        patch.setattr(ShardWriter, "__exit__", leave if flushes else lambda *_: None)
        ask(args)
    assert (args.out / "prompts.jsonl").is_file(), "what is there has been sifted"
    rest = ask(args)
    assert (rest.texts, rest.done_before) == ((9, 7) if flushes else (10, 6))
    assert texts_in(args.out) == texts_in(args.out.with_name("whole"))
    assert rest.figures == whole.figures
    assert ask(args).texts == 0, "a finished folder stays as it is"


def test_another_seed_asks_other_questions(args: AskArgs) -> None:
    ask(args)
    ask(replace(args, out=args.out.with_name("other"), seed=1))
    one, other = texts_in(args.out), texts_in(args.out.with_name("other"))
    assert one.keys() == other.keys()
    assert not {text for text, _ in one.values()} & {text for text, _ in other.values()}


def test_more_texts_begin_with_the_fewer(args: AskArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    plants(monkeypatch, question)
    ask(replace(args, texts=6))
    fewer = prompts_in(args.out)
    assert len(fewer) == 6
    more = ask(replace(args, texts=14))
    assert (more.texts, more.done_before) == (8, 6)
    assert prompts_in(args.out)[:6] == fewer
    assert len({line["question_id"] for line in prompts_in(args.out)}) == 14


def test_wishes_are_dealt_out_in_turn() -> None:
    names = [one.name for one in wished(("chat", "chat", "math"), 7)]
    assert names == ["chat-0", "chat-1", "math-0", "chat-2", "chat-3", "math-1", "chat-4"]


def test_prompts_are_sifted_and_the_figures_say_how(
    args: AskArgs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, shipped = "Which of my two red boats should I sell first?", load_prompts("heldout")[0]
    test_set = tmp_path / "mine.jsonl"
    test_set.write_text(json.dumps({"question_id": "m", "turns": ["Hi!", mine]}), encoding="utf-8")
    texts = {
        "chat-0": "Tom has 3 hens and buys 4 more. How many has he now?",
        "chat-1": mine.upper(),
        "chat-2": shipped.text,
        "chat-3": "Hi!",
        "code-0": "Why do cats purr when they sleep?",
        "code-1": "Why do cats purr when they sleep??",
        "code-2": "Here is a question: " + "cats and dogs and " * 9,
        "article-0": ARTICLE,
        "article-1": "Sure, an article.",
    }
    plants(monkeypatch, lambda name: texts.get(name, ""))
    figures = ask(replace(args, held_out=(str(test_set),))).figures
    assert figures == json.loads((args.out / "figures.json").read_text(encoding="utf-8"))
    assert figures["texts"] == 16 and figures["prompts"] == 3
    assert figures["by_category"] == {"summary": 1, "chat": 1, "math": 1}
    left_out = {"not as asked": 9, "held out": 2, "duplicate": 1, "repetitive": 1}
    assert figures["left_out"] == left_out
    kept = {line["question_id"]: line for line in prompts_in(args.out)}
    assert kept["asked-0-chat-0"]["category"] == "math", "sorted by what it is"
    assert kept["asked-0-code-0"]["turns"] == [texts["code-0"]]
    assert ARTICLE in kept["asked-0-article-0"]["turns"][0]


def test_respond_takes_the_prompts_as_they_are(
    args: AskArgs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plants(monkeypatch, question)
    ask(replace(args, texts=6))
    written = respond(
        RespondArgs(
            out=tmp_path / "responses",
            prompts=str(args.out / "prompts.jsonl"),
            max_new_tokens=2,
            target=args.target,
            dtype="float32",
            threads=1,
        )
    )
    assert written.texts == 12 and shards_in(tmp_path / "responses")


def requests(wish: str, text: str, ended: bool = True, seeds: int = 80) -> list[str]:
    """Prompts that a text makes; none may be missing."""
    made = [prompt_of(wish, Written(text, ended), seed) for seed in range(seeds)]
    assert all(one is not None and one.ended for one in made)
    return [one.text for one in made if one is not None]


def test_an_article_is_put_into_a_request() -> None:
    made = requests("article", f"Here is the article:\n\n{ARTICLE}")
    assert all(ARTICLE in one for one in made)
    assert not any("Here is the" in one for one in made), "what the target said before it"
    assert {kind_of(one) for one in made} == {"summary"}
    assert len(set(made)) > 20
    assert prompt_of("article", Written("Too short.", True), 0) is None


SAID = "\n\n".join(
    [" that it will be much better", *(f"Mo: it is number {i} now" for i in range(20))]
)


@pytest.mark.parametrize("ended", [True, False])
def test_a_dialogue_goes_on_from_its_first_line_and_is_cut_behind_ten(ended: bool) -> None:
    """Small models find no end to one."""
    made = requests("dialogue", SAID, ended)
    assert {kind_of(one) for one in made} == {"summary"}
    for seed, one in enumerate(made):
        begun = beginning_of("dialogue", seed)
        assert f"{begun} that it will be much better\nMo: it is number 0 now\n" in one
        assert one.count("Mo:") == 8 and "number 8" not in one
    assert len({one.split(":")[0] for one in made}) > 20


def test_a_dialogue_ends_where_nobody_speaks_or_a_line_breaks_off() -> None:
    told = SAID[: SAID.index("Mo: it is number 7")]
    for text in (f"{told}The two of them went home.\nMo: bye", f"{told}Mo: it is num"):
        (one,) = requests("dialogue", text, text.endswith("bye"), seeds=1)
        assert "number 6" in one and "went home" not in one and "bye" not in one
        assert not one.endswith("num")
    assert prompt_of("dialogue", Written(" no\n\nOnly one of them speaks. " * 9, True), 0) is None


@pytest.mark.parametrize("wish", ["math", "structured", "dialogue"])
def test_what_begins_with_our_words_keeps_them(chatty: Target, wish: str) -> None:
    """They stand before what the target writes, and there are many."""
    begun = [beginning_of(wish, seed) for seed in range(80)]
    assert len(set(begun)) > 60
    for seed in range(5):
        opening = chatty.tokenizer.decode(opening_of(chatty, wish, seed).ids.tolist())
        assert opening.endswith(begun[seed]) and begun[seed]
    if wish != "dialogue":
        written = prompt_of(wish, Written(" and so on?", False), 3)
        assert written == Written(f"{begun[3]} and so on?", False)


@pytest.mark.parametrize("wish", WISHES)
def test_texts_are_asked_for_about_many_things(chatty: Target, wish: str) -> None:
    words = {chatty.tokenizer.decode(opening_of(chatty, wish, seed).ids) for seed in range(80)}
    assert len(words) > {"chat": 0, "code": 8}.get(wish, 60)


def test_our_own_words_do_not_overlap_what_is_held_out() -> None:
    held_out = HeldOut(one.text for one in load_prompts("heldout"))
    for wish in WISHES:
        for seed in range(200):
            assert not held_out.overlaps(beginning_of(wish, seed) or "-")
    for request in (*wishes._ABOUT_ARTICLES, *wishes._ABOUT_DIALOGUES):
        for length in wishes._LENGTHS:
            assert not held_out.overlaps(request.format(length, ARTICLE))


def test_a_folder_is_gone_on_with_by_the_settings_of_its_texts(args: AskArgs) -> None:
    ask(args)
    for changed in ({"top_p": 0.5}, {"temperature": 0.5}, {"seed": 3}, {"max_new_tokens": 9}):
        with pytest.raises(DraftgymError, match=next(iter(changed)).replace("top_p", "sampling")):
            ask(replace(args, **changed))
    assert ask(replace(args, min_words=1, wishes=("chat",), texts=2)).texts == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"texts": 0},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"wishes": ("chat", "poems")},
        {"wishes": ()},
        {"min_words": 9, "max_words": 3},
        {"held_out": ("nowhere.jsonl",)},
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    args: AskArgs, changed: dict[str, Any]
) -> None:
    with pytest.raises(DraftgymError):
        ask(replace(args, target="no/such-target", **changed))
    assert not args.out.exists()


def test_every_wish_can_be_opened(chatty: Target) -> None:
    for wish in WISHES:
        assert len(opening_of(chatty, wish, 0).ids)
