"""What engines' documentation says of their formats, as JSON schemas, with what schemas cannot say.

Where each stands is told beside it. Fields that are not written here are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Body = Mapping[str, Any]
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}

VLLM = {
    # vllm/config/speculative.py at 002e77c: class SpeculativeConfig
    "type": "object",
    "properties": {
        "method": {
            "enum": [
                *("ngram", "ngram_gpu", "medusa", "mlp_speculator", "draft_model", "suffix"),
                *("custom_class", "eagle", "eagle3", "extract_hidden_states", "mtp", "dflash"),
                "dspark",
            ]
        },
        "model": {"type": "string"},
        "num_speculative_tokens": POSITIVE,
        "prompt_lookup_max": POSITIVE,
        "prompt_lookup_min": POSITIVE,
        "num_speculative_tokens_per_batch_size": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "array",
                "prefixItems": [POSITIVE, POSITIVE, COUNT],
                "minItems": 3,
                "maxItems": 3,
            },
        },
    },
    "required": ["method", "num_speculative_tokens", "num_speculative_tokens_per_batch_size"],
    "additionalProperties": False,
}

SGLANG = {
    # docs/advanced_features/adaptive_speculative_decoding.mdx at 32c764a, "Config file reference";
    # lengths of 0: sglang/srt/speculative/adaptive_spec_params.py of release 0.5.23
    "type": "object",
    "minProperties": 1,
    "propertyNames": {
        "pattern": "^([1-9][0-9]*|ema_alpha|update_interval|warmup_batches)$",
    },
    "patternProperties": {
        "^[0-9]+$": {
            "type": "object",
            "properties": {
                "candidate_steps": {"type": "array", "minItems": 1, "items": COUNT},
                "up_hysteresis": {"type": "number"},
                "down_hysteresis": {"type": "number"},
                "ceiling_coeff": {"type": "number", "minimum": 0},
                "ema_alpha": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                "update_interval": POSITIVE,
                "warmup_batches": COUNT,
            },
            "required": ["candidate_steps"],
            "additionalProperties": False,
        }
    },
}

_SECONDS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_PROBES = {"type": "array", "minItems": 1, "items": POSITIVE}
SPS = {
    # sglang/srt/speculative/dspark_components of release 0.5.23: class SpsAdditiveCostTable
    "type": "object",
    "properties": {
        "bias_seconds": {"type": "number", "exclusiveMinimum": 0},
        "bs_probes": _PROBES,
        "alpha_seconds": _SECONDS,
        "m_probes": _PROBES,
        "theta_seconds": _SECONDS,
    },
    "required": ["bias_seconds", "bs_probes", "alpha_seconds", "m_probes", "theta_seconds"],
    "additionalProperties": False,
}

TENSORRT_LLM = {
    # API reference of Eagle3DecodingConfig, NGramDecodingConfig and SAEnhancerConfig, 1.4.0rc4;
    # unknown fields are refused there (StrictBaseModel)
    "type": "object",
    "properties": {
        "speculative_config": {
            "type": "object",
            "properties": {
                "decoding_type": {
                    "enum": [
                        *("AUTO", "DFlash", "DSpark", "Draft_Target", "Eagle3", "Eagle", "MTP"),
                        *("NGram", "PARD", "SA", "SaveState", "User_Provided"),
                    ]
                },
                "max_draft_len": COUNT,
                "speculative_model": {"type": "string"},
                "max_matching_ngram_size": POSITIVE,
                "draft_len_schedule": {"type": "object", "minProperties": 1},
                "sa_config": {
                    "type": "object",
                    "properties": {
                        "threshold": POSITIVE,
                        "enable_global_pool": {"type": "boolean"},
                    },
                    "additionalProperties": False,
                },
            },
            "required": ["decoding_type", "max_draft_len", "draft_len_schedule"],
            "additionalProperties": False,
        }
    },
    "required": ["speculative_config"],
    "additionalProperties": False,
}

OPENVINO = {
    # GenerationConfig of 2026.4.1: both numbers exclude each other, and 0 tokens mean the default
    "type": "object",
    "properties": {
        "num_assistant_tokens": POSITIVE,
        "max_ngram_size": POSITIVE,
        "assistant_confidence_threshold": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
        },
    },
    "oneOf": [
        {"required": ["num_assistant_tokens"]},
        {"required": ["assistant_confidence_threshold"]},
    ],
    "dependentRequired": {"max_ngram_size": ["num_assistant_tokens"]},
    "additionalProperties": False,
}


def check_vllm(body: Body) -> None:
    """vllm/v1/spec_decode/dynamic/utils.py at a6f6bb1: the first from 1 on, none overlapping."""
    _fits(VLLM, body)
    entries = body["num_speculative_tokens_per_batch_size"]
    assert entries[0][0] == 1
    assert all(first <= last for first, last, _ in entries)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(entries))
    assert all(length <= body["num_speculative_tokens"] for *_, length in entries)
    assert body["method"] != "ngram" or body["prompt_lookup_min"] <= body["prompt_lookup_max"]


def check_sglang(body: Body) -> None:
    """At least one key is a size."""
    _fits(SGLANG, body)
    assert any(key.isdigit() for key in body)


def check_sps(body: Body) -> None:
    """`SpsAdditiveCostTable.__post_init__`: probes ascend, with as many seconds."""
    _fits(SPS, body)
    for probes, seconds in (("bs_probes", "alpha_seconds"), ("m_probes", "theta_seconds")):
        assert body[probes] == sorted(set(body[probes]))
        assert len(body[probes]) == len(body[seconds])


def check_tensorrt_llm(body: Body) -> None:
    """`DecodingBaseConfig.validate_draft_len_schedule_and_sort` in tensorrt_llm/llmapi/llm_args."""
    _fits(TENSORRT_LLM, body)
    config = body["speculative_config"]
    schedule = config["draft_len_schedule"]
    assert all(type(size) is int and size >= 1 for size in schedule)
    assert all(type(length) is int and length >= 0 for length in schedule.values())
    assert ("max_matching_ngram_size" in config) == (config["decoding_type"] == "NGram")
    assert schedule[min(schedule)] == config["max_draft_len"] == max(schedule.values())


def check_openvino(body: Body | None) -> None:
    """One request's numbers; None is a request that is not drafted for."""
    if body is not None:
        _fits(OPENVINO, body)


def _fits(schema: Body, body: Body) -> None:
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(body)
