"""Prompts with images: a multimodal model's own processor makes token ids and pixels of them.

Such a prompt is token ids, among which every image has its placeholders, and tensors that go into
the model beside them, once: when the prompt is read. Rounds then go on as for text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.interface import ModelInputs
from draftgym.decoding.model.loading import quiet_transformers
from draftgym.decoding.model.prompts.images import require_pillow
from draftgym.decoding.model.prompts.messages import Message, as_messages, write_messages
from draftgym.decoding.model.prompts.text import TOKENIZER_FILES, one_line

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
PLACEHOLDERS = tuple(
    f"{kind}_token_{key}" for kind in ("image", "video", "audio") for key in ("id", "index")
)
"""What configurations call the tokens that stand for a piece of an image (a video, a sound)."""


@dataclass(frozen=True)
class Processor:
    """A multimodal model's processor.

    Attributes:
        inner: transformers' processor.
        name: What the user called the target.
    """

    inner: Any
    name: str

    def encode(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, ModelInputs | None]:
        """Token ids `[n]` of a prompt, and what belongs to its images (None where it has none).

        Args:
            prompt: One user's text, or messages; a content may be a list of parts of type `text`
                and `image`.
            images: Paths or images of Pillow, shown before the text.
            options: Of the chat template.

        Raises:
            DraftgymError: The processor cannot make a prompt of it.
        """
        messages = as_messages(prompt, images) if images else prompt
        mark = getattr(self.inner, "image_token", "")
        written = write_messages(self.inner, messages, self.name, options or {}, mark)
        shown = images_of(written.messages)
        how = {} if self._may_add_start(written.text) else {"add_special_tokens": False}
        try:
            with quiet_transformers():
                out = self.inner(
                    text=[written.text],
                    images=[shown] if shown else None,
                    return_tensors="pt",
                    **how,
                )
            tokens = torch.as_tensor(out["input_ids"], dtype=torch.long)[0]
        except Exception as error:  # processors raise whatever they like
            raise DraftgymError(
                f"the processor of target {self.name!r} cannot read the prompt: {one_line(error)}",
                "its chat template must place every image, and the text must not hold the model's "
                "own image tokens",
            ) from error
        inputs = {
            key: value
            for key, value in out.items()
            if isinstance(value, Tensor) and key not in ("input_ids", "attention_mask")
        }
        return tokens, inputs if shown else None

    def _may_add_start(self, text: str) -> bool:
        """Whether the tokenizer may add special tokens: the text does not begin with one.

        So does transformers where a processor writes a chat.
        """
        start = getattr(self.inner.tokenizer, "bos_token", None)
        return start is None or not text.startswith(start)


def load_processor(source: str, config: Any, name: str) -> Processor | None:
    """The processor of a multimodal model; None for a bare folder, which serves text or token ids.

    Args:
        source: The folder or Hub id.
        config: The model's configuration.
        name: What the user called it.

    Raises:
        DraftgymError: Pillow is missing, or the processor's files cannot be read.
    """
    import transformers

    folder = Path(source)
    needed = (PROCESSOR_FILES, TOKENIZER_FILES)
    if folder.is_dir() and not all(any((folder / f).is_file() for f in some) for some in needed):
        return None
    require_pillow()
    with quiet_transformers():
        try:
            inner = _without_video(config, source)
            if inner is None:
                inner = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        except Exception as error:
            raise DraftgymError(
                f"the processor of target {name!r} cannot be read: {one_line(error)}",
                "install what it names; otherwise copy processor_config.json, "
                "preprocessor_config.json and the tokenizer's files beside the weights again",
            ) from error
    if not hasattr(inner, "image_processor"):
        raise DraftgymError(
            f"target {name!r} reads images, but no processor for them was found",
            "put processor_config.json and preprocessor_config.json beside its weights",
        )
    return Processor(inner, name)


def images_of(messages: Iterable[Message]) -> list[Any]:
    """All images of checked messages, in their order."""
    contents = [message.get("content") or () for message in messages]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    return [part["image"] for part in parts if part["type"] == "image"]


def image_tokens(config: Any, processor: Processor | None) -> frozenset[int]:
    """Ids of the tokens that stand for pieces of images, videos and sounds.

    Args:
        config: A model's configuration; models of text alone name none.
        processor: Its processor, if it is there.
    """
    owners = [config] if processor is None else [config, processor.inner]
    named = [getattr(owner, key, None) for owner in owners for key in PLACEHOLDERS]
    named += getattr(processor.inner, "image_token_ids", []) if processor else []
    return frozenset(token for token in named if type(token) is int)


def _without_video(config: Any, source: str) -> Any:
    """The processor of a model that also reads videos, without its part for them.

    That part needs torchvision; images do not. None where torchvision is there, or where the model
    reads no videos.
    """
    from transformers import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if is_torchvision_available() or type(config) not in PROCESSOR_MAPPING:
        return None
    kind = PROCESSOR_MAPPING[type(config)]
    parts = list(kind.get_attributes()) if hasattr(kind, "get_attributes") else []
    if "video_processor" not in parts:
        return None
    parts.remove("video_processor")
    alike: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: parts)})
    return alike.from_pretrained(source, trust_remote_code=False)
