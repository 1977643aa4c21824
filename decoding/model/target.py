"""The target: the language model whose text is the only text ever written.

`load_target` takes the embedded `smollm2-135m`, a Hugging Face folder, a Hub id or a `.gguf` file;
with `:int8` or `:q4` behind its name, it is another target, of weights in few bits.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.decoding.model.backends import (
    OWN,
    Backend,
    check_backend,
    check_one_device,
    compact_fingerprint,
    read_target,
)
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.embedded import EMBEDDED_TARGETS, embedded_target, gguf_target
from draftgym.decoding.model.few_bits import form_of, round_model
from draftgym.decoding.model.fingerprint import WeightFiles, weight_files
from draftgym.decoding.model.generation_config import (
    asked_settings,
    tell_ignored_settings,
)
from draftgym.decoding.model.generic.shared import TENSOR_PARALLEL, as_first
from draftgym.decoding.model.generic.spread import DeviceMap, device_map
from draftgym.decoding.model.interface import ModelInputs, TargetDecoder
from draftgym.decoding.model.loading import load_config, load_model, reads_images
from draftgym.decoding.model.precision import Precision, choose_precision
from draftgym.decoding.model.prompts.messages import Message, encode_messages
from draftgym.decoding.model.prompts.processor import Processor, image_tokens, load_processor
from draftgym.decoding.model.prompts.text import (
    check_tokens,
    load_tokenizer,
    stop_tokens,
)


@dataclass(frozen=True)
class Target:
    """A loaded target.

    Attributes:
        name: What the user called it.
        decoder: Weights and forward pass.
        tokenizer: The transformers tokenizer, or None for a bare model (then only token ids work).
        stop_tokens: Token ids that end a text.
        context_limit: Most positions it can attend to.
        rope_parameters: Rotary settings of its config, or usual ones; drafters copy them.
        fingerprint: Hash of its weights; drafters carry the same.
        rounded_from: The fingerprint of the target whose weights it has in few bits.
        precision: Chosen dtype and threads, with the reason.
        architecture: Its transformers class; drafter checkpoints record it.
        generation_config: Sampling settings that it asks for, by their names in transformers; texts
            are written with them on request (`draftgym.decoding.verify.sampling.advised`).
        image_tokens: Ids of the tokens that stand for pieces of images.
        processor: What makes its prompts of texts and images; None for models of text alone.
    """

    name: str
    decoder: TargetDecoder
    tokenizer: Any
    stop_tokens: frozenset[int]
    context_limit: int
    rope_parameters: dict[str, Any]
    fingerprint: str
    precision: Precision
    rounded_from: str = ""
    architecture: str = ""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: frozenset[int] = frozenset()
    processor: Processor | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the language-model head."""
        return self.decoder.shape.vocab

    @property
    def device(self) -> torch.device:
        """Where it computes, and where all that belongs to its sessions lies.

        Of a target on several devices, the one that has its embedding; caches lie with the layers.
        """
        return self.decoder.device

    @property
    def compact(self) -> Decoder:
        """The compact decoder, where what is done reads single weights of the target.

        Raises:
            DraftgymError: transformers drives this target.
        """
        if not isinstance(self.decoder, Decoder):
            raise DraftgymError(
                f"this reads the layers of target {self.name!r}, which transformers drives",
                "name a target of an architecture that the compact decoder knows",
            )
        return self.decoder

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.decoder.shape.hidden

    def encode(self, prompt: str | Sequence[Message], **options: Any) -> Tensor:
        """Token ids `[n]` of a prompt, in the chat template where the model has one.

        Args:
            prompt: One user's text, or the messages of a chat (`{"role": "user", "content": ...}`;
                also `system`, `assistant`, `tool`, and tool calls). Where the last one is the
                assistant's, the model goes on with it.
            **options: Of the chat template: `tools`, `enable_thinking`, whatever it reads.

        Raises:
            DraftgymError: An empty prompt, messages or options that the template cannot write, an
                image, or no tokenizer.
        """
        if self.processor is None:
            _check_said(prompt)
            ids = encode_messages(self._require_tokenizer(), prompt, self.name, options)
            self.check_tokens(ids)
            return ids
        ids, inputs = self.encode_with_images(prompt, **options)
        if inputs is not None:
            raise DraftgymError(
                "token ids alone do not hold the images of a prompt",
                "use encode_with_images, or give the messages to generate as they are",
            )
        return ids

    def encode_with_images(
        self, prompt: str | Sequence[Message], images: Sequence[Any] = (), **options: Any
    ) -> tuple[Tensor, ModelInputs | None]:
        """Token ids `[n]` of a prompt, and what goes into the model with its images.

        Args:
            prompt: As `encode`. A message's content may be a list of parts, texts and images:
                `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}`.
            images: Shown before a text: paths, or images of Pillow.
            **options: As `encode`.

        Returns:
            Token ids, with placeholders for the images, and tensors by the names of the model's
            `forward`, on the target's device; None for a prompt without images.

        Raises:
            DraftgymError: As `encode`; or images for a model of text alone, or too large ones.
        """
        if self.processor is None:
            if images:
                raise self._sees_nothing()
            return self.encode(prompt, **options), None
        _check_said(prompt)
        ids, inputs = self.processor.encode(prompt, images, options)
        self.check_tokens(ids)
        if inputs is None:
            return ids, None
        self._check_room(ids)
        return ids, {key: self._moved(value) for key, value in inputs.items()}

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises `DraftgymError` for a token id that the embedding has no row for."""
        check_tokens(tokens, self.decoder.embedding.shape[0], self.tokenizer, self.name)

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._require_tokenizer().decode(tokens, skip_special_tokens=True))

    def _moved(self, tensor: Tensor) -> Tensor:
        dtype = self.decoder.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype)

    def _check_room(self, tokens: Tensor) -> None:
        if len(tokens) >= self.context_limit:
            pieces = sum(token in self.image_tokens for token in tokens.tolist())
            raise DraftgymError(
                f"a prompt of {len(tokens)} tokens, {pieces} of them for its images, does not fit "
                f"the {self.context_limit} positions of target {self.name!r}",
                "show fewer or smaller images",
            )

    def _sees_nothing(self) -> DraftgymError:
        if self.image_tokens:
            return DraftgymError(
                f"target {self.name!r} has no processor to read images with",
                "put processor_config.json, preprocessor_config.json and the tokenizer's files "
                "beside its weights",
            )
        return DraftgymError(
            f"target {self.name!r} reads text alone",
            "leave the images out, or name a model that AutoModelForImageTextToText loads",
        )

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise DraftgymError(
                f"target {self.name!r} has no tokenizer",
                "put tokenizer.json and tokenizer_config.json beside its weights",
            )
        return self.tokenizer


def _check_said(prompt: str | Sequence[Message]) -> None:
    if isinstance(prompt, str) and not prompt.strip():
        raise DraftgymError("the prompt is empty", "give some text with --prompt")


def resolve_target(name: str) -> str:
    """The folder or Hub id behind a user's `--target`.

    Raises:
        DraftgymError: The name is neither embedded, nor a folder or file, nor shaped like a Hub id.
    """
    name, _ = form_of(name)
    if name in EMBEDDED_TARGETS:
        return str(embedded_target(name))
    path = user_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DraftgymError(f"no file {name!r}", "check the path given as --target")
        return str(gguf_target(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DraftgymError(
                f"folder {name!r} has no config.json",
                "name a folder written by save_pretrained, or a .gguf file",
            )
        return str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        close = difflib.get_close_matches(name, EMBEDDED_TARGETS, n=1)
        hint = f"did you mean {close[0]!r}? Otherwise " if close else ""
        raise DraftgymError(
            f"unknown target {name!r}",
            f"{hint}name one of {', '.join(EMBEDDED_TARGETS)}, a Hugging Face folder, "
            "a Hub id (owner/name) or a .gguf file, with :int8 or :q4 behind it for fewer bits",
        )
    return name


def load_target(
    name: str = "smollm2-135m",
    dtype: str = "auto",
    threads: int | None = None,
    device: str | DeviceMap = "auto",
    backend: Backend = "auto",
) -> Target:
    """Loads a target.

    Args:
        name: `smollm2-135m`, a Hugging Face folder, a Hub id or a `.gguf` file; `:int8` or `:q4`
            behind it rounds the weights (`draftgym.decoding.model.few_bits`).
        dtype: `auto` (a probe decides), `float32`, `bfloat16` or `float16`.
        threads: CPU threads; None leaves it to the probe.
        device: `auto` (an accelerator where there is one), `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`;
            for a target on several devices `balanced`, `balanced_low_0`, `sequential` (transformers
            divides it over the accelerators), a map from modules to devices as its `device_map`, or
            the `.json` file of one. `tensor-parallel` divides it among the processes of an
            initialised `torch.distributed`, all of which must do the same with it.
        backend: `compact` (our own pass), `openvino` (ours, compiled for few rows),
            `transformers` (its pass; any causal LM), or `auto`: our own where it computes what
            transformers computes, compiled where that is faster, else transformers'.

    Raises:
        DraftgymError: Unknown name, unsupported or damaged model.
    """
    source, threads_before = resolve_target(name), torch.get_num_threads()
    _, form = form_of(name)
    try:
        precision = choose_precision(dtype, threads, device)
        if device == TENSOR_PARALLEL:
            precision = as_first(precision)
        torch.set_num_threads(precision.threads)
        check_backend(backend)
        places = device_map(device)
        check_one_device(f"target {name!r}", places is not None and (backend in OWN or bool(form)))
        config = load_config(source, f"target {name!r}", compact=backend in OWN or bool(form))
        processor = load_processor(source, config, name) if reads_images(config) else None
        files = weight_files(source)
        model_dtype = torch.float32 if form else precision.torch_dtype
        model = load_model(source, config, model_dtype, f"target {name!r}", places=places)
        if processor is None:
            tokenizer = load_tokenizer(source, f"target {name!r}")
        else:
            tokenizer = processor.inner.tokenizer
        if not form:
            return wrap_model(model, tokenizer, name, precision, files, backend, processor)
        rounded_from = compact_fingerprint(model, precision, f"target {name!r}", files)
        round_model(model, form)
        target = wrap_model(model, tokenizer, name, precision, None, backend, processor, form)
        return replace(target, rounded_from=rounded_from)
    except BaseException:
        torch.set_num_threads(threads_before)
        raise


def wrap_model(
    model: Any,
    tokenizer: Any,
    name: str,
    precision: Precision,
    files: WeightFiles | None = None,
    backend: Backend = "auto",
    processor: Processor | None = None,
    form: str = "",
) -> Target:
    """Makes a `Target` of a transformers model that is already in memory.

    Args:
        model: The model.
        tokenizer: Its transformers tokenizer, or None.
        name: What the user called it.
        precision: In which numbers it computes, and where.
        files: Where it was just read from; the fingerprint is remembered for them.
        backend: Whose pass runs it; see `load_target`.
        processor: What makes its prompts, if it reads images.
        form: In which few bits its weights can be kept without loss.

    Raises:
        DraftgymError: Neither pass can be trusted with it, or not the one that is asked for.
    """
    read = read_target(model, precision, f"target {name!r}", backend, files, form)
    tell_ignored_settings(model.generation_config, name)
    return Target(
        name=name,
        decoder=read.decoder,
        tokenizer=tokenizer,
        stop_tokens=stop_tokens(model, tokenizer),
        context_limit=read.context_limit,
        rope_parameters=read.rope_parameters,
        fingerprint=read.fingerprint,
        precision=read.precision,
        architecture=type(model).__name__,
        generation_config=asked_settings(model.generation_config),
        image_tokens=image_tokens(model.config, processor),
        processor=processor,
    )
