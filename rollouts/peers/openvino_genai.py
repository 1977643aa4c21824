"""OpenVINO GenAI's `LLMPipeline`: each GGUF file plain, and with its own prompt lookup.

It reads no GGUF file in float32. In float16 the numbers are the same (a bfloat16 weight is one,
unless it is tiny), and it computes with them in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.peers.gguf_files import DENSE, GGUFFile, weight_files
from draftgym.rollouts.peers.peer import Conditions, Peer, Write

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What OpenVINO calls the numbers that it computes with."""

LOOKUP = {"num_assistant_tokens": 5, "max_ngram_size": 3}
"""Of its prompt lookup, as in OpenVINO GenAI's own sample."""


def load(conditions: Conditions) -> list[Peer]:
    """Its rows: the target's numbers and the file as published, plain and with lookup.

    Raises:
        DraftgymError: There is no GGUF file of the target, or OpenVINO GenAI cannot read it.
    """
    import openvino_genai

    return [
        Peer(
            f"openvino-genai {file.kind}{' lookup' if lookup else ''}",
            openvino_genai.__version__,
            file.weights,
            _writer(_pipeline(openvino_genai, file, conditions, lookup), conditions, lookup),
        )
        for file in weight_files(conditions.target, conditions.gguf, "F16")
        for lookup in (False, True)
    ]


def _pipeline(genai: Any, file: GGUFFile, conditions: Conditions, lookup: bool) -> Any:
    """A pipeline that keeps nothing of the prompts before."""
    scheduling = genai.SchedulerConfig()
    scheduling.enable_prefix_caching = False
    precision = conditions.target.precision
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": precision.threads}
    if file.kind in DENSE:  # with quantised weights it computes as it thinks best
        options["INFERENCE_PRECISION_HINT"] = HINTS[precision.dtype]
    if lookup:
        options["prompt_lookup"] = True
    try:
        return genai.LLMPipeline(str(file.path), "CPU", scheduler_config=scheduling, **options)
    except RuntimeError as error:
        raise DraftgymError(
            f"OpenVINO GenAI cannot load {file.path}: {str(error).strip().splitlines()[-1]}",
            "leave openvino-genai out of --against; it reads GGUF files of Llama, Qwen2 and Qwen3 "
            "in F16, Q8_0, Q4_0, Q4_1 and Q4_K_M",
        ) from error


def _writer(pipeline: Any, conditions: Conditions, lookup: bool) -> Write:
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.stop_token_ids = set(conditions.stop_tokens)
    for name, value in (LOOKUP if lookup else {}).items():
        setattr(config, name, value)

    def write(ids: list[int], max_new_tokens: int) -> list[int]:
        config.max_new_tokens = max_new_tokens
        row = np.array([ids], dtype=np.int64)
        given = openvino_genai.TokenizedInputs(
            openvino.Tensor(row), openvino.Tensor(np.ones_like(row))
        )
        return list(pipeline.generate(given, config).tokens[0])

    return write
