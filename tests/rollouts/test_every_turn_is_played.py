"""Every turn of a prompt is a text of its own, behind the target's own answers to those before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import draftgym.rollouts.decode.options as options
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.verify.seeds import derived_seed, text_seed
from draftgym.policies.registry import make_policy
from draftgym.rollouts.decode.evaluation import compare
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.decode.interleaved import DecodeSettings
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from draftgym.rollouts.responses.respond import RespondArgs, respond
from draftgym.rollouts.traces.collect import CollectArgs, collect
from tests.tiny import ONE_THREAD, tiny_drafters
from tests.tiny_text import byte_tokenizer, text_model

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</>{% endfor %}<a>"
LONG = Prompt("7", "chat", ("Hello", "Why?", "And?"), "Be odd.")
PROMPTS = [LONG, Prompt("8", "math", ("One and one",))]


@pytest.fixture(scope="module")
def target() -> Target:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)


@pytest.fixture(scope="module")
def drafters(target: Target) -> dict[str, Drafter]:
    return tiny_drafters(target)


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    lines = [
        {"question_id": int(one.question_id), "category": one.category, "turns": one.turns}
        | ({"system": one.system} if one.system else {})
        for one in PROMPTS
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def by_hand(target: Target, temperature: float, seed_of: Any) -> dict[str, list[int]]:
    """All turns one by one, every one in a new session."""
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    written = {}
    for prompt in PROMPTS:
        said = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for number, turn in enumerate(prompt.turns, start=1):
            name = prompt.question_id + (f"#{number}" if number > 1 else "")
            said.append({"role": "user", "content": turn})
            tokens = plain.generate(said, 10, temperature, seed=seed_of(name)).tokens
            written[name] = tokens
            said.append({"role": "assistant", "content": target.decode(tokens)})
    return written


def test_a_prompt_file_keeps_its_turns_and_system_message(prompt_file: str) -> None:
    assert load_prompts(prompt_file) == PROMPTS
    assert load_prompts(prompt_file, turns=2)[0].turns == ("Hello", "Why?")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_policies_answer_every_turn_with_the_cache_of_those_before(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    policies = {name: make_policy(name, drafters, target) for name in ("eagle3:3", "ngram:4")}
    settings = DecodeSettings(10, temperature, 3)
    result = compare(target, drafters, policies, PROMPTS, settings, progress=False)
    wanted = by_hand(target, temperature, lambda name: text_seed(3, name))
    assert len(result.texts) == 3 * len(wanted) and not result.differences
    for text in result.texts:
        name = text.prompt.question_id
        assert text.generation.tokens == wanted[name]
        assert text.generation.seed == text_seed(3, name)
        assert (text.generation.reused > 0) == ("#" in name)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_traces_and_responses_hold_every_turn_and_go_on_where_they_stopped(
    target: Target,
    drafters: dict[str, Drafter],
    prompt_file: str,
    tmp_path: Path,
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options.DecodingOptions, "load", lambda self: (target, drafters))
    monkeypatch.setenv("DRAFTGYM_CALIBRATION_SECONDS", "0.1")
    how: dict[str, Any] = {"prompts": prompt_file, "max_new_tokens": 10}
    for turns in (1, 2, None):  # a shorter run first: the next ones add what follows
        traced = collect(
            CollectArgs(
                out=tmp_path / "traces",
                arms=("ngram:3",),
                turns=turns,
                temperature=temperature,
                **how,
            )
        )
        written = respond(
            RespondArgs(out=tmp_path / "texts", turns=turns, temperatures=(temperature,), **how),
            target,
        )
    wanted = by_hand(target, temperature, lambda name: text_seed(0, name))
    assert {text.question_id: text.tokens.tolist() for text in traced.texts} == wanted
    assert (written.texts, written.done_before) == (1, 3)
    import pyarrow.parquet

    rows = [
        row
        for shard in sorted((tmp_path / "texts").glob("*.parquet"))
        for row in pyarrow.parquet.read_table(shard).to_pylist()
    ]
    wanted = by_hand(target, temperature, lambda name: derived_seed(0, name, temperature))
    assert {row["id"]: row["response"] for row in rows} == wanted


def test_prompts_whose_turns_cannot_fit_are_refused_before_any_work(target: Target) -> None:
    room = target.context_limit
    assert fit_prompts(target, [LONG], room // 4, all_turns=True).longest < room
    with pytest.raises(DraftgymError, match="'7'"):
        fit_prompts(target, [LONG], room // 3, all_turns=True)
    assert fit_prompts(target, [LONG], room // 3).longest < 40


def test_an_id_that_a_turn_has_is_refused(target: Target) -> None:
    other = Prompt("7#2", "chat", ("Hello",))
    with pytest.raises(DraftgymError, match="'7#2'"):
        fit_prompts(target, [LONG, other], 10, all_turns=True)


def test_a_target_that_does_not_chat_says_how_to_play_first_turns() -> None:
    base = wrap_model(text_model(), byte_tokenizer(), "base", ONE_THREAD)
    with pytest.raises(DraftgymError) as caught:
        fit_prompts(base, [Prompt("7", "chat", ("Hello", "Why?"))], 10, all_turns=True)
    assert "no chat template" in caught.value.problem and "--turns 1" in caught.value.remedy
