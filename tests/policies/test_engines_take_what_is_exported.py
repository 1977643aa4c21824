"""What is written for an engine is what its documentation asks for, and says the same lengths."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.published import published_costs
from draftgym.decoding.costs.server_costs import LinearServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.adaptive import SGLANG, AdaptiveLength
from draftgym.policies.serving.engines.openvino import (
    confidence_to_openvino,
    from_openvino,
    to_openvino,
)
from draftgym.policies.serving.engines.sglang import (
    adaptive_to_sglang,
    from_sglang,
    to_sglang,
)
from draftgym.policies.serving.engines.sps import fit_sps, step_seconds
from draftgym.policies.serving.engines.table import Export, LengthTable
from draftgym.policies.serving.engines.tensorrt_llm import from_tensorrt_llm, to_tensorrt_llm
from draftgym.policies.serving.engines.vllm import from_vllm, to_vllm
from draftgym.policies.serving.rule import Batch, Ladder, ServingRule
from tests.policies.engine_schemas import (
    check_openvino,
    check_sglang,
    check_sps,
    check_tensorrt_llm,
    check_vllm,
)

DRAFTER = "eagle3"
TABLES = st.dictionaries(st.integers(1, 80), st.integers(0, 9), min_size=1, max_size=6).map(
    lambda drawn: LengthTable(DRAFTER, dict(sorted(drawn.items())))
)


def lengths(rule: ServingRule, most: int) -> list[int]:
    """What a rule drafts with 1, 2, ... requests."""
    found = []
    rule.begin(1)
    for size in range(1, most + 1):
        deciding = np.ones((1, size), bool)
        arm = rule.arms[rule.choose(Batch(deciding, np.array([size])))[0, 0]]
        found.append(arm.parts[-1].length if arm.drafts else 0)
    return found


def read_sglang(text: str) -> AdaptiveLength:
    sizes = from_sglang(json.loads(text))
    steps = [step for one in sizes.values() for step in one.candidates]
    return AdaptiveLength(Ladder.of(DRAFTER, steps), (DRAFTER,), sizes)


READ: dict[Callable[..., Export], Callable[[str], ServingRule]] = {
    to_vllm: lambda text: from_vllm(json.loads(text), DRAFTER).rule(),
    to_sglang: read_sglang,
    to_tensorrt_llm: lambda text: from_tensorrt_llm(text, DRAFTER).rule(),
    to_openvino: lambda text: from_openvino(json.loads(text), DRAFTER).rule(),
}


@given(TABLES)
def test_every_engine_takes_its_file_and_reads_the_same_lengths(table: LengthTable) -> None:
    if not table.longest:
        return
    for write, read in READ.items():
        if write is to_tensorrt_llm and not next(iter(table.schedule.values())):
            continue
        export = write(table, "a/drafter", None)
        assert lengths(read(export.text), table.most) == lengths(export.played(), table.most)
        if write is not to_tensorrt_llm:
            assert export.table == table
    check_vllm(json.loads(to_vllm(table).text))
    check_sglang(json.loads(to_sglang(table).text))
    for entry in json.loads(to_openvino(table).text).values():
        check_openvino(entry)


@given(TABLES)
def test_tensorrt_begins_with_the_longest(table: LengthTable) -> None:
    first = next(iter(table.schedule.values()))
    if not first:
        with pytest.raises(DraftgymError) as refused:
            to_tensorrt_llm(table)
        assert refused.value.remedy
        return
    export = to_tensorrt_llm(table, "a: 'drafter'")
    body = yaml.safe_load(export.text)
    check_tensorrt_llm(body)
    assert body["speculative_config"]["speculative_model"] == "a: 'drafter'"
    wanted = [min(length, first) for length in lengths(table.rule(), table.most)]
    assert lengths(export.played(), table.most) == wanted
    assert bool(export.notes) == (export.table != table)


def test_tensorrts_lookup_in_front_goes_both_ways() -> None:
    table = LengthTable(DRAFTER, {8: 4, 32: 2}, match=3)
    export = to_tensorrt_llm(table)
    body = yaml.safe_load(export.text)
    check_tensorrt_llm(body)
    assert body["speculative_config"]["sa_config"] == {"threshold": 3}
    assert from_tensorrt_llm(export.text, DRAFTER) == table == export.table
    arms = [str(arm) for arm in table.rule().arms]
    assert arms == ["plain", "suffix:2@3>eagle3:2", "suffix:4@3>eagle3:4"]


def test_examples_of_the_engines_documentation_are_read() -> None:
    vllm = {"num_speculative_tokens_per_batch_size": [[1, 64, 3], [65, 128, 1], [129, 512, 0]]}
    assert from_vllm(vllm, DRAFTER).schedule == {64: 3, 128: 1, 512: 0}
    shared = {"ema_alpha": 0.3, "warmup_batches": 10, "update_interval": 4}
    sizes = {"1": {"candidate_steps": [1, 3, 7], "down_hysteresis": -0.2}}
    sizes |= {"8": {"candidate_steps": [1], "ceiling_coeff": 0, "ema_alpha": 0.1}}
    check_sglang(shared | sizes)
    read = from_sglang(shared | sizes)
    assert read[1].candidates == (1, 3, 7) and (read[1].alpha, read[1].down) == (0.3, -0.2)
    assert (read[8].alpha, read[8].interval) == (0.1, 4)
    for written in ("{4: 4, 8: 2, 32: 1}", "\n    4: 4\n    8: 2\n    32: 1\n"):
        text = f"speculative_config:\n  draft_len_schedule: {written}\n"
        assert from_tensorrt_llm(text, DRAFTER).schedule == {4: 4, 8: 2, 32: 1}


def test_sglangs_own_rule_goes_there_as_it_is() -> None:
    rule = AdaptiveLength(Ladder.of(DRAFTER, range(8)), (DRAFTER,), SGLANG)
    export = adaptive_to_sglang(rule, 64)
    body = json.loads(export.text)
    check_sglang(body)
    assert from_sglang(body) == SGLANG and export.table is None
    behind = Ladder.of(DRAFTER, range(8), parse_arm("ngram:8"))
    with pytest.raises(DraftgymError, match="cannot ask ngram:8 before"):
        adaptive_to_sglang(AdaptiveLength(behind, (DRAFTER, "ngram"), SGLANG), 64)


def test_lookups_bring_what_their_methods_need() -> None:
    table = LengthTable("ngram", {4: 8, 16: 3})
    check_vllm(json.loads(to_vllm(table).text))
    assert not any("weights" in note for note in to_vllm(table).notes)
    entries = json.loads(to_openvino(table).text)
    assert entries["4"] == {"num_assistant_tokens": 8, "max_ngram_size": 4}
    check_tensorrt_llm(yaml.safe_load(to_tensorrt_llm(table).text))


def test_a_threshold_is_a_number_of_openvinos() -> None:
    check_openvino(json.loads(confidence_to_openvino("0.4")))
    for wrong in ("0", "1.5", "sure"):
        with pytest.raises(DraftgymError, match="threshold"):
            confidence_to_openvino(wrong)


def test_openvino_itself_takes_the_numbers() -> None:
    genai = pytest.importorskip("openvino_genai")
    written = json.loads(to_openvino(LengthTable(DRAFTER, {8: 4, 16: 2, 32: 0})).text)
    lookup = json.loads(to_openvino(LengthTable("ngram", {8: 4})).text)
    sure = {"": json.loads(confidence_to_openvino("0.4"))}
    for entry in itertools.chain(*map(dict.values, (written, lookup, sure))):
        if entry is not None:
            config = genai.GenerationConfig(max_new_tokens=8, **entry)
            config.validate()
            assert all(abs(getattr(config, name) - entry[name]) < 1e-6 for name in entry)
    both = {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0.4}
    with pytest.raises(RuntimeError, match="mutually exclusive"):
        genai.GenerationConfig(max_new_tokens=8, **both).validate()


def test_published_costs_are_sglangs_exactly() -> None:
    costs = LinearServerCosts(published_costs("llama3.1-8b-h100"), [DRAFTER])
    body, error = fit_sps(costs, (1, 2, 8, 32), 5, 700, DRAFTER)
    check_sps(json.loads(json.dumps(body)))
    assert error < 1e-9
    for size, each in [(1, 1), (2, 6), (5, 3), (20, 4), (32, 6)]:  # between the probes as well
        seconds = costs.pass_seconds(size, size * each, 700 * size)
        seconds = seconds + costs.chain_seconds(DRAFTER, size, 5, 700 * size)
        found = step_seconds(body, np.array([size]), np.array([size * each]))
        np.testing.assert_allclose(found, seconds, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "problem", "remedy"),
    [
        (lambda: LengthTable(DRAFTER, {}), "table", "sizes"),
        (lambda: LengthTable(DRAFTER, {4: 2, 2: 1}), "table", "ascending"),
        (lambda: LengthTable("ngram", {4: 2}, match=3), "behind a lookup", "network"),
        (lambda: to_vllm(LengthTable("mine", {4: 2})), "no drafter called 'mine'", "--method"),
        (lambda: to_vllm(LengthTable(DRAFTER, {4: 2}), None, "magic"), "'magic'", "use eagle"),
        (lambda: to_vllm(LengthTable(DRAFTER, {4: 2}, 3)), "lookup before", "TensorRT-LLM"),
        (lambda: to_vllm(LengthTable(DRAFTER, {4: 0})), "does not pay", "without speculation"),
        (lambda: to_sglang(LengthTable("dflash", {4: 2})), "'dflash'", "EAGLE3"),
        (lambda: to_tensorrt_llm(LengthTable("small", {4: 2}, 3)), "before Draft_Target", "Eagle3"),
        (lambda: to_openvino(LengthTable("suffix", {4: 2})), "'suffix'", "prompt_lookup"),
        (lambda: from_sglang({"ema_alpha": 0.2}), "no size", "as text"),
        (lambda: from_sglang({"1": {"candidate_steps": [-1]}}), "candidate_steps", "list"),
        (lambda: from_tensorrt_llm("max_draft_len: 3", DRAFTER), "no draft_len", "{4: 4"),
        (lambda: from_openvino({"x": {}}, DRAFTER), "no numbers by size", "again"),
    ],
)
def test_what_an_engine_cannot_do_is_said_with_a_remedy(
    make: Callable[[], object], problem: str, remedy: str
) -> None:
    with pytest.raises(DraftgymError) as refused:
        make()
    assert problem in refused.value.problem and remedy in (refused.value.remedy or "")
