"""Evaluation compares like with like, counts identical texts, and shows every difference."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from draftgym.decoding.decoder import RoutingPolicy
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.base import Verdict
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.rollouts.decode.evaluation import check_writable, chosen_policies, compare
from draftgym.rollouts.decode.interleaved import DecodeSettings, turn_order
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from draftgym.rollouts.report.as_json import report_json
from draftgym.rollouts.report.rows import Evaluation, first_difference
from draftgym.rollouts.report.table import print_report
from tests.tiny import tiny_drafters
from tests.tiny_text import CATEGORIES, save_prompts, text_target

RULE = "ngram>eagle3:3x6~0.06"
POLICIES = ["plain", RULE, "eagle3", "dflash", "small", "ngram", "random", "entropy"]

SETTINGS = DecodeSettings(max_new_tokens=20)
ROW_KEYS = "policy category prompts tokens seconds tokens_per_second acceptance_length speedup"


@pytest.fixture(scope="module")
def writer() -> Target:
    """A target with a tokenizer."""
    return text_target()


@pytest.fixture(scope="module")
def tools(writer: Target) -> dict[str, Drafter]:
    """Its drafters."""
    return tiny_drafters(writer)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Two prompts of each category."""
    return load_prompts(save_prompts(tmp_path_factory.mktemp("prompts") / "some.jsonl"))


def run(
    target: Target,
    drafters: Mapping[str, Drafter],
    prompts: list[Prompt],
    specs: list[str] | None = None,
    settings: DecodeSettings = SETTINGS,
    **more: Any,
) -> Evaluation:
    """An evaluation without a progress bar."""
    policies: dict[str, RoutingPolicy] = chosen_policies(specs, drafters, target)
    return compare(target, drafters, policies, prompts, settings, progress=False, **more)


@pytest.fixture(scope="module")
def everyone(writer: Target, tools: dict[str, Drafter], prompts: list[Prompt]) -> Evaluation:
    """Every policy there is."""
    return run(writer, tools, prompts)


@pytest.mark.slow
def test_there_is_a_row_for_every_policy_and_category(everyone: Evaluation) -> None:
    pairs = [(row.category, row.policy) for row in everyone.rows]
    assert pairs == [(one, policy) for one in (*CATEGORIES, "all") for policy in POLICIES]


def test_rows_add_up(everyone: Evaluation) -> None:
    for total in (row for row in everyone.rows if row.category == "all"):
        parts = [r for r in everyone.rows if r.policy == total.policy and r.category != "all"]
        for key in ("prompts", "tokens", "rounds", "identical_texts"):
            assert getattr(total, key) == sum(getattr(part, key) for part in parts)
        assert total.seconds == pytest.approx(sum(part.seconds for part in parts))
        assert total.tokens_per_second == pytest.approx(total.tokens / total.seconds)
        assert total.acceptance_length == pytest.approx(total.tokens / total.rounds)
        assert sum(total.arm_shares.values()) == pytest.approx(1)
        plain = next(r for r in everyone.rows if (r.policy, r.category) == ("plain", "all"))
        ratio = total.tokens_per_second / plain.tokens_per_second
        assert total.speedup == pytest.approx(ratio)
        assert total.speedup_p10 <= total.speedup_p50 <= total.speedup_p90


@pytest.mark.slow
def test_lossless_policies_write_plain_decodings_texts(
    everyone: Evaluation, writer: Target, tools: dict[str, Drafter], prompts: list[Prompt]
) -> None:
    sampled = run(writer, tools, prompts, None, DecodeSettings(20, 1.0, seed=3))
    for result in (everyone, sampled):
        assert all(row.identical_texts == row.prompts for row in result.rows)
        assert result.differences == []


def test_plain_decoding_always_runs(
    writer: Target, tools: dict[str, Drafter], prompts: list[Prompt]
) -> None:
    result = run(writer, tools, prompts, ["ngram:3"])
    rows = {row.policy: row for row in result.rows if row.category == "all"}
    assert list(rows) == ["plain", "ngram:3"]
    assert rows["plain"].speedup == 1 and rows["plain"].acceptance_length == 1
    assert rows["plain"].identical_texts == rows["plain"].prompts == 6


def test_policies_take_turns_prompt_by_prompt(everyone: Evaluation) -> None:
    policies = len(POLICIES)
    texts = everyone.texts
    for start in range(0, len(texts), policies):
        block = texts[start : start + policies]
        assert len({text.prompt.question_id for text in block}) == 1
        assert len({text.policy for text in block}) == policies
    assert texts[0].policy != texts[policies].policy


@pytest.mark.parametrize("names", [5, 6, 8])
def test_no_policy_has_a_favourite_place(names: int) -> None:
    """Neither over all prompts nor within a category, with five categories in turn."""
    policies = [f"policy{i}" for i in range(names)]
    orders = [turn_order(policies, turn) for turn in range(5 * names * names)]
    assert all(sorted(order) == policies for order in orders)
    for kept in (orders, orders[2::5]):
        first = Counter(order[0] for order in kept)
        assert set(first) == set(policies)
        assert max(first.values()) <= 2 * min(first.values())


def take_all(self: GreedyRule, proposal: Proposal, *rest: Any) -> Verdict:
    """A lossy rule: every drafted token is accepted."""
    honest, (_, choices) = GREEDY(self, proposal, *rest), rest[2:4]
    return Verdict(list(range(len(proposal))), int(choices[-1]), honest.margins)


GREEDY = GreedyRule.decide


def test_a_lossy_rule_is_found_out(
    writer: Target,
    tools: dict[str, Drafter],
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GreedyRule, "decide", take_all)
    result = run(writer, tools, prompts, ["eagle3"])
    row = next(row for row in result.rows if (row.policy, row.category) == ("eagle3", "all"))
    assert row.identical_texts < row.prompts
    assert len(result.differences) == row.prompts - row.identical_texts
    tokens = {(t.policy, t.prompt.question_id): t.generation.tokens for t in result.texts}
    for item in result.differences:
        plain, mine = tokens["plain", item.question_id], tokens["eagle3", item.question_id]
        assert plain[: item.index] == mine[: item.index]
        assert (plain[item.index], mine[item.index]) == (item.plain_token, item.policy_token)
        assert item.plain_token != item.policy_token
        assert item.margin is not None and item.margin > 0
    assert all(text.generation.margins == [] for text in result.texts)  # none in timed texts
    assert "differ from plain" in printed(result)


def test_where_texts_begin_to_differ() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_rejection_keeps_no_text_and_the_json_stays_valid(
    writer: Target, tools: dict[str, Drafter], prompts: list[Prompt]
) -> None:
    settings = DecodeSettings(20, temperature=1.0, verification="rejection")
    result = run(writer, tools, prompts, ["eagle3"], settings)
    assert result.differences and all(item.margin is None for item in result.differences)
    json.dumps(report_json(result), allow_nan=False)


def test_json_has_the_agreed_shape(everyone: Evaluation) -> None:
    body = report_json(everyone)
    body = json.loads(json.dumps(body, allow_nan=False))
    assert list(body) == [
        *("environment", "rows", "best_single_arm", "arm_costs", "differences", "stalls", "texts")
    ]
    for row in body["rows"]:
        low, value, high = (row["intervals"]["speedup"][key] for key in ("low", "value", "high"))
        assert low <= value <= high and value == pytest.approx(row["speedup"])
    assert sum(text["tokens"] for text in body["texts"]) == sum(
        row["tokens"] for row in body["rows"] if row["category"] == "all"
    )
    for row in body["rows"]:
        assert set(row) >= {*ROW_KEYS.split(), "identical_texts"}
        assert isinstance(row["identical_texts"], int) and isinstance(row["tokens"], int)
    assert Counter(row["policy"] for row in body["rows"] if row["category"] == "all") == Counter(
        {row["policy"] for row in body["rows"]}
    )


def test_a_cost_models_prediction_stands_beside_the_measured_time(
    writer: Target, tools: dict[str, Drafter], prompts: list[Prompt]
) -> None:
    result = run(
        writer, tools, prompts, ["eagle3"], predict_seconds=lambda record: 2 * record.times.total
    )
    for row in result.rows:
        assert row.predicted_seconds is not None
        assert row.predicted_seconds < 2 * row.seconds, "decisions are left out"
    total = sum(row.predicted_seconds or 0.0 for row in result.rows if row.category == "all")
    assert total == pytest.approx(2 * sum(cost.measured_seconds for cost in result.arm_costs))
    assert [cost.predicted_seconds for cost in result.arm_costs] == pytest.approx(
        [2 * cost.measured_seconds for cost in result.arm_costs]
    )
    assert re.search(r"\+\d+\.\d%", printed(result))


def printed(result: Evaluation, width: int = 100) -> str:
    """What the terminal shows."""
    sink = io.StringIO()
    console = Console(file=sink, width=width)
    print_report(result.environment, result.rows, result.differences, result.stalls, console)
    return sink.getvalue()


def test_the_table_fits_a_hundred_columns(everyone: Evaluation) -> None:
    lines = printed(everyone).splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "…" not in text
    for word in [*CATEGORIES, "all", "entropy", "tokens/s", "6/6", "token for token"]:
        assert word in text


def test_a_prompt_that_does_not_fit_is_named_before_decoding(
    writer: Target, tools: dict[str, Drafter], prompts: list[Prompt], monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "draftgym.rollouts.decode.interleaved.write", None
    )  # decoding would fail in another way
    endless = Prompt("endless", "chat", ("word " * 100,))
    with pytest.raises(DraftgymError, match=r"'endless'.*500 tokens"):
        run(writer, tools, [*prompts, endless])


def test_a_policy_named_twice_is_refused(writer: Target, tools: dict[str, Drafter]) -> None:
    with pytest.raises(DraftgymError, match="twice"):
        chosen_policies(["eagle3", "eagle3"], tools, writer)


def test_an_unwritable_result_file_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "result.json"):
        with pytest.raises(DraftgymError, match="--json"):
            check_writable(path)
    check_writable(tmp_path / "new" / "result.json")
    assert (tmp_path / "new").is_dir()
