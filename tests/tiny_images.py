"""Tiny random multimodal targets of four kinds, with their real processors, and tiny images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.tiny_text import byte_tokenizer

KINDS = ("llava", "qwen2_5_vl", "idefics3", "fast_vlm")
SPECIAL = {
    "llava": ["<image>"],
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"],
    "fast_vlm": ["<image>"],
}
PLACEHOLDER = {
    "llava": "<image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "idefics3": "<image>",
    "fast_vlm": "<image>",
}
VOCAB = 264
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
NET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 1.0,
    "in_channels": (32, 32),
    "out_channels": (32, 64),
    "kernel_sizes": (3, 5),
    "strides": (2, 2),
    "num_block_repeats": (1, 2),
    "expand_ratios": (1, 2),
    "hidden_act": "relu6",
    "hidden_dim": 320,
    "hidden_size": 320,
    "squeeze_expansion_ratio": 0.0,
}
"""A tower of convolutions, as that of `benchmarks.multimodal`: 8 x 8 pixels are a token."""
PROCESSORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": (
        {
            "processor_class": "LlavaProcessor",
            "patch_size": 4,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 16, "width": 16},
        },
    ),
    "qwen2_5_vl": (
        {"processor_class": "Qwen2_5_VLProcessor"},
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 4,
            "size": {"shortest_edge": 64, "longest_edge": 1024},
        },
    ),
    "idefics3": (
        {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 32},
            "max_image_size": {"longest_edge": 16},
        },
    ),
    "fast_vlm": (
        {
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "full",
        },
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
        },
    ),
}


def image_tokenizer(kind: str) -> Any:
    """A byte tokenizer with the kind's tokens around images, and a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[kind]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
        + PLACEHOLDER[kind]
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


def image_config(kind: str, **changes: Any) -> Any:
    """The configuration of a kind; `changes` are of its language model."""
    token = image_tokenizer(kind).convert_tokens_to_ids
    text = TEXT | changes
    if kind == "llava":
        return transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**TOWER, projection_dim=16),
            text_config=transformers.LlamaConfig(**text),
            image_token_id=token("<image>"),
            vision_feature_layer=-1,
        )
    if kind == "fast_vlm":
        return transformers.FastVlmConfig(
            vision_config=transformers.EfficientNetConfig(**NET),
            text_config=transformers.LlamaConfig(**text),
            image_token_index=token("<image>"),
        )
    if kind == "idefics3":
        return transformers.Idefics3Config(
            vision_config=TOWER,
            text_config=transformers.LlamaConfig(**text),
            image_token_id=token("<image>"),
            scale_factor=2,
            pad_token_id=None,
        )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config=text | {"rope_parameters": rope},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def image_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """Random weights of a kind, wide enough that texts differ."""
    torch.manual_seed(seed)
    config = image_config(kind, **changes)
    model = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.2)
    return model


def save_image_target(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves model, tokenizer and processor as a Hugging Face folder."""
    image_model(kind, seed, **changes).save_pretrained(folder)
    image_tokenizer(kind).save_pretrained(folder)
    processor, images = PROCESSORS[kind]
    images |= {"processor_class": processor["processor_class"]}
    for name, settings in (("processor", processor), ("preprocessor", images)):
        (folder / f"{name}_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def picture(seed: int = 0, width: int = 24, height: int = 16) -> Image.Image:
    """Random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
