"""lm-eval, unmodified: figures over the server are those of transformers on the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.clients.served import NAME, PATIENCE, Served, Tiny

WORDS = ("sea", "hill", "cloud", "stone", "river")
EXAMPLES = 10
CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: "{data}", cache_dir: "{cache}"}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {{data_files: "{data}", cache_dir: "{cache}"}}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{written}}}}"
generation_kwargs: {{until: [".", "\\n"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def write_tasks(folder: Path, tiny: Tiny) -> None:
    """Two tasks of 10 examples: a choice of endings, and a text of which half is what is wanted."""
    lines = []
    for number in range(EXAMPLES):
        question = f"{number} {WORDS[number % 5]} and a"
        written = tiny.greedy(tiny.ids(question), 24).partition(".")[0]
        lines.append(
            {
                "question": question,
                "choices": [f" {word}" for word in WORDS],
                "gold": number % 3,
                "written": written if number % 2 else "something else",
            }
        )
    data = folder / "examples.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, task in (("choices", CHOICES), ("writing", WRITING)):
        text = task.format(data=data, cache=folder / "cache")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


Evaluate = Callable[[str, dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def evaluate(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """What lm-eval finds of a model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, tiny)
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=["tiny_choices", "tiny_writing"],
            task_manager=manager,
            bootstrap_iters=0,
        )

    return run


@pytest.fixture(scope="module")
def expected(evaluate: Evaluate, tiny: Tiny) -> dict[str, Any]:
    """What it finds of the model itself."""
    arguments = {"pretrained": str(tiny.folder), "device": "cpu", "dtype": "float32"}
    return evaluate("hf", arguments)


def answers(found: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each example."""
    samples = sorted(found["samples"][task], key=lambda one: one["doc_id"])
    assert len(samples) == EXAMPLES
    return [one["filtered_resps"] for one in samples]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"tokenizer_backend": "huggingface", "tokenizer": "FOLDER"},
        {"num_concurrent": 4, "batch_size": 3},  # the tokenizer is asked for over the wire
    ],
    ids=["one by one", "many at once"],
)
def test_likelihoods_texts_and_figures_are_those_of_transformers(
    served: Served, evaluate: Evaluate, expected: dict[str, Any], how: dict[str, Any]
) -> None:
    how = {
        name: str(served.tiny.folder) if given == "FOLDER" else given for name, given in how.items()
    }
    base = {"model": NAME, "base_url": f"{served.v1}/completions", "timeout": PATIENCE}
    found = evaluate("local-completions", base | how)
    pairs = zip(answers(found, "tiny_choices"), answers(expected, "tiny_choices"), strict=True)
    for over_wire, direct in pairs:
        assert [one[0] for one in over_wire] == pytest.approx([one[0] for one in direct], abs=1e-3)
        assert [one[1] for one in over_wire] == [one[1] for one in direct]
    assert answers(found, "tiny_writing") == answers(expected, "tiny_writing")
    for task, metric in (("choices", "acc"), ("choices", "acc_norm"), ("writing", "exact_match")):
        name, key = f"tiny_{task}", f"{metric},none"
        assert found["results"][name][key] == expected["results"][name][key]
    assert expected["results"]["tiny_writing"]["exact_match,none"] == 0.5
