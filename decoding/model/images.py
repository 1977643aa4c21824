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
from draftgym.decoding.files import user_path
from draftgym.decoding.model.loading import quiet_transformers
from draftgym.decoding.model.text import TOKENIZER_FILES, one_line

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
NEEDS_PILLOW = "install it: pip install 'draftgym[images]'"
PLACEHOLDERS = tuple(
    f"{kind}_token_{key}" for kind in ("image", "video", "audio") for key in ("id", "index")
)
"""What configurations call the tokens that stand for a piece of an image (a video, a sound)."""

ModelInputs = Mapping[str, Tensor]
"""What a model reads beside token ids, by the names of its `forward`: pixels, sizes of images."""


@dataclass(frozen=True)
class Processor:
    """A multimodal model's processor.

    Attributes:
        inner: transformers' processor.
        name: What the user called the target.
    """

    inner: Any
    name: str

    @property
    def has_template(self) -> bool:
        """Whether it writes chats."""
        return getattr(self.inner, "chat_template", None) is not None

    def encode(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> tuple[Tensor, ModelInputs | None]:
        """Token ids `[n]` of messages, and what belongs to their images.

        Args:
            messages: A chat; contents are texts, or lists of parts of type `text` and `image` (each
                with its `image`, as `open_image` gives it). A model without a chat template takes
                one user's message.
            options: Of the chat template.

        Raises:
            DraftgymError: The processor cannot make a prompt of it.
        """
        images = images_of(messages)
        with quiet_transformers():
            try:
                out = self._process(messages, images, options)
                tokens = torch.as_tensor(out["input_ids"], dtype=torch.long)[0]
            except DraftgymError:
                raise
            except Exception as error:  # processors and templates raise whatever they like
                raise DraftgymError(
                    f"the processor of target {self.name!r} cannot read the prompt: "
                    f"{one_line(error)}",
                    "its chat template must place every image, and the text must not hold the "
                    "model's own image tokens",
                ) from error
        inputs = {
            key: value
            for key, value in out.items()
            if isinstance(value, Tensor) and key not in ("input_ids", "attention_mask")
        }
        return tokens, inputs if images else None

    def _process(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        if self.has_template:
            go_on = messages[-1]["role"] == "assistant"
            how = {"continue_final_message": go_on, "add_generation_prompt": not go_on, **options}
            return self.inner.apply_chat_template(
                [_in_parts(message) for message in messages],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **how,
            )
        if len(messages) > 1 or messages[0]["role"] != "user" or options:
            raise DraftgymError(
                f"target {self.name!r} has no chat template, so it takes one user's message",
                "give one text with its images, or name a target that was trained to chat",
            )
        parts = _in_parts(messages[0])["content"]
        mark = getattr(self.inner, "image_token", "")
        text = "".join(mark if part["type"] == "image" else part["text"] for part in parts)
        return self.inner(
            text=[text], images=[list(images)] if images else None, return_tensors="pt"
        )


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


def require_pillow() -> None:
    """Raises `DraftgymError` unless images can be read."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DraftgymError("reading images needs Pillow", NEEDS_PILLOW) from error


def open_image(source: Any) -> Any:
    """An image as transformers' processors take it: upright, in RGB.

    Args:
        source: A path, or an image of Pillow.

    Raises:
        DraftgymError: There is no such file, or it is no image.
    """
    require_pillow()
    import PIL.Image
    import PIL.ImageOps

    if isinstance(source, PIL.Image.Image):
        image = source
    elif not isinstance(source, str | Path):
        raise DraftgymError(
            f"a {type(source).__name__} is no image", "give a path, or an image of Pillow"
        )
    else:
        path = user_path(source)
        if not path.is_file():
            raise DraftgymError(f"there is no image {str(source)!r}", "check its path")
        try:
            image = PIL.Image.open(path)
            image.load()
        except Exception as error:  # what Pillow raises on a damaged file depends on its format
            raise DraftgymError(
                f"{str(source)!r} is no image that Pillow can read: {one_line(error)}",
                "convert it to PNG or JPEG",
            ) from error
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


def images_of(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """All images of messages, in their order."""
    return [
        part["image"]
        for message in messages
        if not isinstance(message.get("content"), str)
        for part in message.get("content") or ()
        if part["type"] == "image"
    ]


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


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of parts, as templates of multimodal models expect."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {**message, "content": list(content or ())}


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
