"""The target: the language model whose text is the only text ever written.

`load_target` takes the embedded `smollm2-135m`, a Hugging Face folder, a Hub id or a `.gguf` file.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode, user_path
from draftgym.decoding.model.embedded import EMBEDDED_TARGETS, embedded_target, gguf_target
from draftgym.decoding.model.precision import Precision, choose_precision
from draftgym.decoding.model.products import Products
from draftgym.decoding.model.transformer import Decoder
from draftgym.decoding.model.weights import (
    check_finite,
    check_supported,
    context_limit,
    extract_decoder,
    fingerprint,
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
        rope_parameters: Rotary settings of its config; drafters copy them.
        fingerprint: Short hash of its weights; drafters carry the same.
        precision: Chosen dtype and threads, with the reason.
        architecture: Its transformers class; drafter checkpoints record it.
    """

    name: str
    decoder: Decoder
    tokenizer: Any
    stop_tokens: frozenset[int]
    context_limit: int
    rope_parameters: dict[str, Any]
    fingerprint: str
    precision: Precision
    architecture: str = ""

    @property
    def vocab_size(self) -> int:
        """Rows of the language-model head."""
        return self.decoder.shape.vocab

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.decoder.shape.hidden

    def encode(self, prompt: str) -> Tensor:
        """Token ids `[n]` of a user prompt, in the chat template where the model has one."""
        if not prompt.strip():
            raise DraftgymError("the prompt is empty", "give some text with --prompt")
        check_unicode(prompt, "the prompt")
        tokenizer = self._require_tokenizer()
        if getattr(tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._require_tokenizer().decode(tokens, skip_special_tokens=True))

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise DraftgymError(
                f"target {self.name!r} has no tokenizer",
                "put tokenizer.json and tokenizer_config.json beside its weights",
            )
        return self.tokenizer


def resolve_target(name: str) -> str:
    """The folder or Hub id behind a user's `--target`.

    Raises:
        DraftgymError: The name is neither embedded, nor a folder or file, nor shaped like a Hub id.
    """
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
            "a Hub id (owner/name) or a .gguf file",
        )
    return name


def load_target(
    name: str = "smollm2-135m", dtype: str = "auto", threads: int | None = None
) -> Target:
    """Loads a target.

    Args:
        name: `smollm2-135m`, a Hugging Face folder, a Hub id or a `.gguf` file.
        dtype: `auto` (a probe decides), `float32` or `bfloat16`.
        threads: CPU threads; None leaves it to the probe.

    Raises:
        DraftgymError: Unknown name, unsupported or damaged model.
    """
    import transformers

    source = resolve_target(name)
    precision = choose_precision(dtype, threads)
    torch.set_num_threads(precision.threads)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        check_supported(config, name)
        bars = transformers.utils.logging
        bars.disable_progress_bar()
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=precision.torch_dtype, output_loading_info=True
        )
        bars.enable_progress_bar()
    except DraftgymError:
        raise
    except Exception as error:  # transformers raises many kinds; each means "cannot load"
        raise DraftgymError(
            f"cannot load target {name!r}: {str(error).splitlines()[0] if str(error) else error!r}",
            "check the name, the folder's files (safetensors may be truncated) and, for a Hub id, "
            "the network",
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers
        raise DraftgymError(
            f"the weights of target {name!r} lack {missing[0]} ({len(missing)} tensors missing)",
            "download or convert the model again; its files are incomplete",
        )
    return wrap_model(model, _load_tokenizer(source), name, precision)


def wrap_model(model: Any, tokenizer: Any, name: str, precision: Precision) -> Target:
    """Makes a `Target` of a transformers model that is already in memory."""
    check_supported(model.config, name)
    decoder = extract_decoder(model, precision.torch_dtype, Products(precision.packed))
    check_finite(decoder, name)
    stops = getattr(model.generation_config, "eos_token_id", None)
    if stops is None:
        stops = model.config.eos_token_id
    if stops is None:
        stops = []
    elif isinstance(stops, int):
        stops = [stops]
    return Target(
        name=name,
        decoder=decoder,
        tokenizer=tokenizer,
        stop_tokens=frozenset(stops),
        context_limit=context_limit(model.config),
        rope_parameters=dict(model.config.rope_parameters),
        fingerprint=fingerprint(decoder),
        precision=precision,
        architecture=type(model).__name__,
    )


def _load_tokenizer(source: str) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except Exception:  # a bare model is legal: token ids still work, and text asks for a tokenizer
        return None
