"""The target before it is trained: image tower, fresh projector, language model, processor.

The shape is transformers' `FastVlmForConditionalGeneration`, the LLaVA kind whose tower may be a
convolutional net: grid of the tower, two-layer MLP, language model. A reserved token of
the language model's tokenizer, which no chat of it holds, is called `<image>`, so that its
vocabulary stays as large as it was.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.multimodal.scenes import SIDE
from benchmarks.multimodal.tower import STRIDE, published_weights, tower_config, tower_weights
from draftgym.decoding.errors import DraftgymError

RESERVED, IMAGE = "<gh_stars>", "<image>"
IMAGE_TOKENS = (SIDE // STRIDE) ** 2
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The language model's own, with a line for each image."""


def assemble(language: Path) -> tuple[Any, Any]:
    """Model and processor, with a projector that knows nothing yet.

    Args:
        language: Folder of the language model.

    Returns:
        The model in float32, and its processor.
    """
    import transformers

    tokenizer = _tokenizer(language)
    token = tokenizer.convert_tokens_to_ids(IMAGE)
    text = transformers.AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    config = transformers.FastVlmConfig(
        vision_config=tower_config(),
        text_config=text.config,
        image_token_index=token,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    model = transformers.FastVlmForConditionalGeneration(config).float().eval()
    model.model.vision_tower.load_state_dict(tower_weights(published_weights()))
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.generation_config = text.generation_config
    return model, _processor(tokenizer)


def _processor(tokenizer: Any) -> Any:
    """Pictures as Lite0 reads them: (x - 127) / 128."""
    import transformers

    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    return transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def _tokenizer(language: Path) -> Any:
    """The language model's tokenizer, in which the reserved token is called `IMAGE`."""
    import tempfile

    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        for file in (*language.glob("*token*"), language / "config.json"):
            shutil.copy(file, scratch)
        path = Path(scratch) / "tokenizer.json"
        body = json.loads(path.read_text(encoding="utf-8"))
        vocab = body["model"]["vocab"]
        if RESERVED not in vocab:
            raise DraftgymError(
                f"the tokenizer of {language} has no token {RESERVED}", "use smollm2-135m"
            )
        vocab[IMAGE] = vocab.pop(RESERVED)
        for token in body["added_tokens"]:
            if token["content"] == RESERVED:
                token["content"] = IMAGE
        path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(scratch)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
