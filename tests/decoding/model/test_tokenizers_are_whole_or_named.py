"""Between text and token ids nothing is lost without a word; what is damaged is called so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import normalizers

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target, wrap_model
from tests.tiny import ONE_THREAD
from tests.tiny_text import VOCAB, byte_tokenizer, save_target, text_model

GOOD = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def with_template(template: str) -> Target:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)


def refused(target: Target, prompt: str = "Why is the sky blue?") -> DraftgymError:
    with pytest.raises(DraftgymError) as caught:
        SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 4)
    assert "'chatty'" in caught.value.problem and caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    "template",
    [
        "no prompt at all",
        "{{ messages[0]['role'] }}: ",
        "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}",
        "{{ '' }}",
    ],
)
def test_a_template_that_leaves_the_prompt_out_is_refused(template: str) -> None:
    assert "leaves the prompt out" in refused(with_template(template)).problem


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[0].content + 3 }}", "fails"),
        ("{{ messages[9]['content'] }}", "fails"),
    ],
)
def test_a_template_that_fails_says_why(template: str, reason: str) -> None:
    error = refused(with_template(template))
    assert "chat template" in error.problem and reason in error.problem
    assert "chat_template" in error.remedy


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{{ messages[0]['content'] | trim | upper }}",
        "{{ messages[0]['content'] | tojson }}",
        "{{ messages[0]['content'][:3] }}{{ messages[0]['content'][-2:] }}",
    ],
)
def test_a_template_may_change_how_the_prompt_is_written(template: str) -> None:
    assert len(with_template(template).encode("  hello <b> world ")) > 3


def test_a_token_that_the_weights_lack_is_named_when_it_comes() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])  # as many have for padding; the others are still of use
    target = wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)
    assert len(target.encode("hello")) == 5
    error = refused(target, "look: <image>")
    assert "'<image>'" in error.problem and str(VOCAB) in error.problem


@pytest.mark.parametrize("token", [VOCAB, -1, 10**12])
def test_token_ids_that_the_weights_lack_are_refused(token: int) -> None:
    target = wrap_model(text_model(), None, "chatty", ONE_THREAD)
    with pytest.raises(DraftgymError, match=f"token {token} "):
        SpeculativeDecoder(target, {}, PlainPolicy()).generate(torch.tensor([5, token]), 4)


DAMAGE = {"cut": '{"version": "1.0", ', "empty": "", "list": "[]", "object": "{}", "html": "<html>"}


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tokenizer_is_called_damaged(tmp_path: Path, text: str) -> None:
    (save_target(tmp_path) / "tokenizer.json").write_text(text)
    with pytest.raises(DraftgymError, match=r"tokenizer of target .* cannot be read: ") as caught:
        load_target(str(tmp_path), "float32", 1)
    assert "tokenizer.json" in caught.value.remedy


def test_half_a_tokenizer_is_called_damaged(tmp_path: Path) -> None:
    (save_target(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(DraftgymError, match="tokenizer of target"):
        load_target(str(tmp_path), "float32", 1)


def test_a_prompt_without_tokens_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    target = wrap_model(text_model(), tokenizer, "chatty", ONE_THREAD)
    assert "no tokens of the prompt" in refused(target, "xx").problem


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "stops"),
    [
        (None, None, None, set()),
        (None, None, 0, {0}),
        (None, 7, None, {7}),
        (None, [7, 9], 0, {0, 7, 9}),
        ([5, 6], 7, 0, {0, 5, 6}),
    ],
)
def test_what_ends_a_text(
    generation: Any, config: Any, tokenizer: int | None, stops: set[int]
) -> None:
    """The generation settings before the config, as in transformers; and the tokenizer's own."""
    model, reader = text_model(), byte_tokenizer()
    model.generation_config.eos_token_id, model.config.eos_token_id = generation, config
    if tokenizer is not None:
        reader.eos_token = reader.convert_ids_to_tokens(tokenizer)
    assert wrap_model(model, reader, "x", ONE_THREAD).stop_tokens == stops


@pytest.mark.parametrize("stops", [True, "2", [[2]], [2, None], 1.5, {"a": 2}])
def test_an_end_that_is_no_token_id_is_refused(stops: Any) -> None:
    model = text_model()
    model.generation_config.eos_token_id = stops
    with pytest.raises(DraftgymError, match="eos_token_id"):
        wrap_model(model, None, "x", ONE_THREAD)


IGNORED = {
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "suppress_tokens": [5],
    "bad_words_ids": [[5]],
    "min_new_tokens": 8,
    "forced_eos_token_id": 3,
    "sequence_bias": [[[5], -10.0]],
}


@pytest.mark.parametrize(("key", "value"), IGNORED.items())
def test_settings_that_would_change_the_text_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    path = save_target(tmp_path) / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {key: value}))
    target = load_target(str(tmp_path), "float32", 1)
    said = capsys.readouterr().err
    assert f"{key}={value}" in said and said.count("note:") == 1
    target.encode("hello")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("do_sample", [True, False])
def test_sampling_settings_are_named_with_the_option_that_applies_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], do_sample: bool
) -> None:
    """Where the model does not ask for sampling, they would change nothing."""
    path = save_target(tmp_path) / "generation_config.json"
    settings = {"do_sample": do_sample, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    load_target(str(tmp_path), "float32", 1)
    said = capsys.readouterr().err
    if do_sample:
        assert "temperature=0.6, top_k=20, top_p=0.9" in said and "--generation-config" in said
    assert said.count("note:") == do_sample


BROKEN = {"config.json": "{", "model.safetensors": "{", "tokenizer.json": "{"}


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("damaged", [None, *BROKEN])
def test_loading_leaves_the_bars_and_after_an_error_the_threads(
    tmp_path: Path, damaged: str | None, shown: bool
) -> None:
    save_target(tmp_path)
    if damaged:
        (tmp_path / damaged).write_text(BROKEN[damaged])
    bars, before = transformers.utils.logging, torch.get_num_threads()
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    verbosity = bars.get_verbosity()
    try:
        if damaged:
            with pytest.raises(DraftgymError):
                load_target(str(tmp_path), "float32", threads=before + 1)
        else:
            load_target(str(tmp_path), "float32", threads=before + 1)
        assert torch.get_num_threads() == (before if damaged else before + 1)
        assert bars.is_progress_bar_enabled() == shown
        assert bars.get_verbosity() == verbosity
    finally:
        torch.set_num_threads(before)
        bars.enable_progress_bar()
