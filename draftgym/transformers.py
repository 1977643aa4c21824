"""Speculative decoding inside transformers' `generate`.

    >>> from draftgym.transformers import speculate
    >>> model.generate(**inputs, custom_generate=speculate(policy="ngram:8"))  # doctest: +SKIP

`generate` prepares ids, processors and stopping criteria as ever; the loop behind them is
draftgym's. A greedy text is the one that `generate` writes by itself.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    GenerationMixin,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.generic.spread import is_spread
from draftgym.decoding.model.precision import choose_precision
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.processed import (
    ProcessedCoupled,
    ProcessedGreedy,
    ProcessedText,
    TextEnds,
)
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.drafters.loading import load_drafters
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.policies.registry import make_policy

MODES = ("greedy_search", "sample", "assisted_generation")
"""What `generate` may be asked for; drafts of its own it then has none."""
CACHES = ("cache", "past_key_values", "cache_params")
"""What `generate` calls its cache, by model and release; ours is used instead."""
INTERNALS = ("output_attentions", "output_hidden_states")
PREPARED = ("attention_mask", "position_ids", "use_cache", "logits_to_keep", *INTERNALS, *CACHES)
"""What else `generate` hands to its loops for a model of text."""
BLIND = (
    *(TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper),
    *(MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor),
)
"""Processors that are the same for every row of a batch."""
_HERE = "_draftgym"
_ENDS_BY_CRITERIA = Stops(ignore_eos=True)


class Speculation:
    """A loop for `generate(custom_generate=...)`; `speculate` makes one.

    Args:
        policy: See `speculate`.
        drafters: See `speculate`.
        backend: See `speculate`.
    """

    def __init__(
        self,
        policy: str | Path | RoutingPolicy,
        drafters: Sequence[str | Path] | Mapping[str, Drafter] | None,
        backend: Backend,
    ) -> None:
        self.policy, self.drafters, self.backend = policy, drafters, backend

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Writes what `generate` asks for; called by it.

        Returns:
            Ids of prompts and texts `[b, n]`, or a `GenerateDecoderOnlyOutput` of them.

        Raises:
            DraftgymError: Something is asked for that speculation cannot give.
        """
        streamer = streamer if streamer is not None else _streamer_of_generate()
        _check_asked(generation_config, model_kwargs, len(input_ids), streamer)
        paddings = _paddings(input_ids, model_kwargs)
        decoder = self._decoder(model)
        told = generation_config.return_dict_in_generate
        wanted = {
            "scores": generation_config.output_scores,
            "logits": generation_config.output_logits,
        }
        keeps = tuple(what for what, asked in wanted.items() if told and asked)
        most = stopping_criteria.max_length or generation_config.max_length
        most = max(int(most), input_ids.shape[1] + 1)
        # All rows are shown only to processors that may know them by their place.
        alone = all(type(one) in BLIND for one in logits_processor)
        batch = 1 if alone else len(input_ids)
        texts = []
        for place, (row, padding) in enumerate(zip(input_ids, paddings, strict=True)):
            text = ProcessedText(
                torch.nn.functional.pad(row[None], (0, most - len(row))),
                *(len(row), padding, batch, place % batch),
                *(logits_processor, stopping_criteria),
                keeps=keeps,
            )
            if streamer is not None:
                text.put = streamer.put
            _write(decoder, text, generation_config)
            texts.append(text)
        if streamer is not None:
            streamer.end()
        return _output(texts, generation_config)

    def _decoder(self, model: Any) -> SpeculativeDecoder:
        """The decoder for a model, made once for as long as the model stays what it is."""
        kept = _kept_with(model, self.backend)
        if self not in kept.decoders:
            target = kept.target
            drafters = self._drafters(target)
            policy = self.policy
            if isinstance(policy, str | Path):
                policy = make_policy(policy, drafters, target)
            kept.decoders[self] = SpeculativeDecoder(target, drafters, policy)
        return kept.decoders[self]

    def _drafters(self, target: Target) -> Mapping[str, Drafter]:
        if isinstance(self.drafters, Mapping):
            return self.drafters
        lookup = NgramDrafter(never=target.image_tokens)
        first, *others = re.split("[>+]", str(self.policy))
        alone = not others and re.split("[:@~]", first)[0] in (lookup.name, PLAIN)
        if self.drafters is None and alone:
            return {lookup.name: lookup}
        return load_drafters(target, self.drafters)


def speculate(
    policy: str | Path | RoutingPolicy = "ngram:8",
    drafters: Sequence[str | Path] | Mapping[str, Drafter] | None = None,
    backend: Backend = "auto",
) -> Speculation:
    """A loop for `model.generate(..., custom_generate=speculate(...))`.

    What it makes of a model (a target, drafters, the policy) is kept with the model, and made anew
    when its weights have changed or moved.

    Args:
        policy: As `draftgym.make_policy` knows them, a folder of a trained one, or a policy.
        drafters: Checkpoint folders and code, as `draftgym.load_drafters` takes them, beside the
            shipped ones that fit the model; or loaded drafters by name.
        backend: Whose pass runs the model; see `draftgym.load_target`.
    """
    return Speculation(policy, drafters, backend)


@lru_cache(maxsize=16)
def _named(policy: Any, drafters: tuple[str, ...] | None, backend: Backend) -> Speculation:
    """The same loop for the same names, so that what it makes of a model is kept."""
    return speculate(policy, drafters, backend)


def generate(
    model: Any,
    policy: Any = "ngram:8",
    drafters: Sequence[str | Path] | None = None,
    backend: Backend = "auto",
    **arguments: Any,
) -> Any:
    """`model.generate` with speculation: what a folder of `draftgym export transformers` runs.

    Args:
        model: The model.
        policy: See `speculate`.
        drafters: See `speculate`.
        backend: See `speculate`.
        **arguments: Those of `generate`.

    Raises:
        DraftgymError: As `Speculation`.
    """
    given = None if drafters is None else tuple(map(str, drafters))
    words, tokenizer = arguments.pop("stop_strings", None), arguments.pop("tokenizer", None)
    if words and tokenizer is None:
        raise DraftgymError(
            "stop_strings were given without a tokenizer", "give tokenizer=tokenizer, too"
        )
    if words:  # generate hands its tokenizer to its own loops alone
        ends = [*(arguments.pop("stopping_criteria", None) or ())]
        ends.append(StopStringCriteria(tokenizer, words))
        arguments["stopping_criteria"] = transformers.StoppingCriteriaList(ends)
    loop = _named(policy, given, backend)
    return type(model).generate(model, custom_generate=loop, **arguments)


class _Kept:
    """What is kept with a model. It goes when the model goes; copies of the model are without."""

    def __init__(self, key: Any = None, target: Any = None) -> None:
        self.key, self.target = key, target
        self.decoders: WeakKeyDictionary[Speculation, SpeculativeDecoder] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def _kept_with(model: Any, backend: Backend) -> _Kept:
    """What is kept with a model, its target at least."""
    if model.training:
        raise DraftgymError("the model is in training mode", "call model.eval() first")
    weights = list(model.parameters())
    states = [
        (one.data_ptr(), one.dtype, one.device, one.is_inference() or one._version)
        for one in weights
    ]
    kept: _Kept | None = getattr(model, _HERE, None)
    if kept is None or kept.key != (backend, states):
        setattr(model, _HERE, None)  # the old target is freed before the new one is made
        if len({one.device for one in weights}) > 1 and not is_spread(model):
            raise DraftgymError(
                "the model lies on several devices",
                "load it with device_map='balanced' or 'cuda:0'",
            )
        dtype, name = str(model.dtype).removeprefix("torch."), type(model).__name__
        precision = choose_precision(dtype, torch.get_num_threads(), str(model.device))
        # Adapters are switched without a trace in the weights: only the model's own pass follows.
        follows = backend == "auto" and hasattr(model, "peft_config")
        whose: Backend = "transformers" if follows else backend
        with _as_it_was(model):
            target = wrap_model(model, None, name, precision, backend=whose)
        kept = _Kept((backend, states), target)
        setattr(model, _HERE, kept)
    return kept


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Leaves a user's model as it was: which weights learn, and what its configuration asks."""
    learning = [one for one in model.parameters() if one.requires_grad]
    try:
        # What it asks for is generate's business, and no note need say that we go without.
        with patch.object(model, "generation_config", transformers.GenerationConfig()):
            yield
    finally:
        for one in learning:
            one.requires_grad_(True)


def _streamer_of_generate() -> Any:
    """The streamer that `generate` was called with.

    It puts the prompt there, but hands the streamer to its own loops alone: a callable would leave
    the reader of a `TextIteratorStreamer` waiting for ever. So it is read where it is.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals.get("streamer")


def _check_asked(asked: Any, inputs: Mapping[str, Any], rows: int, streamer: Any) -> None:
    """Raises `DraftgymError` for what speculation cannot give."""
    mode = asked.get_generation_mode()
    others = [key for key, value in inputs.items() if key not in PREPARED and value is not None]
    internals = asked.return_dict_in_generate and any(getattr(asked, name) for name in INTERNALS)
    refused = {
        f"speculation knows no {mode.value}": (mode not in MODES, "give num_beams=1"),
        f"speculation reads token ids alone, not {', '.join(others)}": (
            bool(others),
            "leave them out; for images see draftgym.SpeculativeDecoder",
        ),
        "speculation keeps no attentions and no hidden_states": (
            bool(internals),
            "leave output_attentions and output_hidden_states out, and run the model once over "
            "the finished sequences",
        ),
        f"{rows} texts are written one after the other, which no streamer can follow": (
            rows > 1 and streamer is not None,
            "stream one prompt at a time",
        ),
        "guidance remembers one text, and cannot follow several": (
            rows > 1 and asked.guidance_scale not in (None, 1),
            "give one prompt at a time with guidance_scale",
        ),
    }
    for problem, (applies, remedy) in refused.items():
        if applies:
            raise DraftgymError(problem, remedy)


def _paddings(ids: Tensor, inputs: Mapping[str, Any]) -> list[int]:
    """How much padding stands in front of each prompt.

    Raises:
        DraftgymError: Something is masked elsewhere, or the tokens are not counted from 0.
    """
    rows, length = ids.shape
    mask, places = inputs.get("attention_mask"), inputs.get("position_ids")
    seen = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask.cpu() != 0
    paddings: list[int] = seen.int().argmax(1).tolist()
    for row, padding in enumerate(paddings):
        if seen.shape[1] != length or not bool(seen[row, padding:].all()):
            raise DraftgymError(
                f"prompt {row} is masked elsewhere than in front",
                "pad on the left (padding_side='left'); where pad_token_id stands in the text "
                "itself, give attention_mask",
            )
        if places is None:
            continue
        own = places[..., min(row, places.shape[-2] - 1), padding:].cpu()
        counted = torch.arange(length - padding)
        if own.shape[-1] != len(counted) or not bool((own == counted).all()):
            raise DraftgymError(
                f"the position_ids of prompt {row} do not count from 0",
                "leave them out, and give the whole text in place of a filled cache",
            )
    return paddings


def _write(decoder: SpeculativeDecoder, text: ProcessedText, asked: Any) -> None:
    """Writes one text to its end."""
    rule: ProcessedGreedy | ProcessedCoupled = ProcessedGreedy(text)
    if asked.do_sample:
        seed = int(torch.randint(2**63 - 1, ()))  # torch.manual_seed decides, as for generate
        temperature = 1.0 if asked.temperature is None else float(asked.temperature)
        settings = SamplingSettings(top_k=asked.top_k or 0, min_p=asked.min_p or 0.0)
        vocab_size = decoder.target.vocab_size
        rule = ProcessedCoupled(text, temperature, seed, vocab_size, settings)
    prompt = text.ids[0, text.padding : text.length]
    new = text.ids.shape[1] - text.length
    with suppress(TextEnds):
        decoder.generate(prompt, new, verification=rule, stops=_ENDS_BY_CRITERIA)


def _output(texts: list[ProcessedText], asked: Any) -> Any:
    """The texts as `generate` returns them: one tensor, shorter ones filled up."""
    longest = max(text.length for text in texts)
    fill = asked._pad_token_tensor
    if fill is None and any(text.length < longest for text in texts):
        raise DraftgymError("texts end at different lengths", "give pad_token_id to fill them up")
    for text in texts:
        if text.length < longest:
            text.ids[:, text.length :] = fill.to(text.ids)
    ids = torch.cat([text.ids[:, :longest] for text in texts])
    if not asked.return_dict_in_generate:
        return ids
    kept = {what: _steps([text.kept[what] for text in texts]) for what in texts[0].keeps}
    return GenerateDecoderOnlyOutput(sequences=ids, **kept)


def _steps(rows: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """What was kept of each row's steps, by step `[b, vocab]`; zeros behind a text's end."""
    count = max(map(len, rows))
    nothing = torch.zeros_like(rows[0][0])
    filled = [steps + [nothing] * (count - len(steps)) for steps in rows]
    return tuple(torch.cat(step) for step in zip(*filled, strict=True))
