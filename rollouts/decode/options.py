"""Command-line options that decoding commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from draftgym.decoding.drafting import CatchUp, Drafter
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import SamplingSettings, advised
from draftgym.drafters.loading import load_drafters
from draftgym.rollouts.decode.interleaved import DecodeSettings


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """What to decode with, and how.

    Attributes:
        target: The language model whose text is written: smollm2-135m (embedded), a Hugging Face
            folder, a Hub id (owner/name) or a .gguf file; `:int8` or `:q4` behind the
            name makes it a target of rounded weights.
        drafters: Drafter checkpoints (EAGLE-3, DFlash, a small LM), a store of responses for
            suffix, or code of your own (module:name), to use beside the shipped ones that fit the
            target, or instead of one of the same kind. Prompt lookup (ngram) and suffix decoding
            (suffix) are always there.
        max_new_tokens: Tokens to write at most.
        temperature: 0 takes the likeliest token every time; 1 samples from the model's
            distribution.
        seed: Seed of the sampling noise. With coupled verification the same seed gives the same
            text, whatever the policy. Where many prompts are written, each has a seed of its own,
            made from this one and its question_id; results tell it, and draftgym generate writes
            that text again with it. It also seeds the random policy.
        verification: greedy (temperature 0), coupled (default above 0; every policy writes plain
            decoding's text) or rejection (the textbook rule; the distribution is plain decoding's,
            the text is not).
        dtype: auto (a probe picks the faster one; bfloat16 on an accelerator), float32 (texts agree
            across policies), bfloat16 or float16 (near ties between tokens may flip).
        device: Where target and drafters compute: auto (an accelerator that torch can use, else the
            processor), cpu, cuda, cuda:1 (the second one), mps (Apple) or xpu (Intel). Another
            device rounds otherwise, so that near ties may flip between two of them. For a target
            over several accelerators: balanced, balanced_low_0, sequential, or a .json file of
            transformers' device_map; for draftgym generate under torchrun tensor-parallel.
        backend: Whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
        threads: CPU threads; default: every core this process may use.
    """

    target: str = "smollm2-135m"
    drafters: tuple[Path, ...] = ()
    max_new_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    verification: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None

    @property
    def settings(self) -> DecodeSettings:
        """How texts are written."""
        return DecodeSettings(self.max_new_tokens, self.temperature, self.seed, self.verification)

    def load(self) -> tuple[Target, Mapping[str, Drafter]]:
        """The target and its drafters."""
        target = load_target(self.target, self.dtype, self.threads, self.device, self.backend)
        return target, load_drafters(target, self.drafters)


@dataclass(frozen=True, kw_only=True)
class TextOptions(DecodingOptions):
    """Options of commands that write texts as they are asked for.

    Attributes:
        top_k: Sample only from so many of the likeliest tokens; 0 for all.
        top_p: Sample only from the likeliest tokens that together have this probability.
        min_p: Sample only from tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens that stand in the text already become less likely, also
            at temperature 0.
        generation_config: Write with temperature, top-k, top-p, min-p and repetition penalty of the
            model's generation_config.json, but for those that are given here.
        stop: Strings that end a text: it ends before the first of them.
        stop_token_ids: Token ids that end a text, beside the model's own.
        ignore_eos: Write on behind the model's own end of a text, up to --max-new-tokens: texts of
            one length for measurements.
    """

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    generation_config: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def settings(self) -> DecodeSettings:
        """How texts are written."""
        return replace(
            super().settings,
            stops=Stops(self.stop_token_ids, self.stop, self.ignore_eos),
            sampling=SamplingSettings(**self._given()),
        )

    def check(self) -> None:
        """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
        settings = self.settings
        if not self.generation_config:  # which may bring a temperature
            make_rule(*(settings.verification, settings.temperature, self.seed, 1))

    def as_asked_by(self, target: Target) -> Self:
        """With the settings of the target's generation_config.json, where they are wanted."""
        if not self.generation_config:
            return self
        temperature, sampling = advised(target.generation_config, f"target {target.name!r}")
        temperature = self.temperature or temperature
        return replace(self, temperature=temperature, **(asdict(sampling) | self._given()))

    def _given(self) -> dict[str, Any]:
        names = (field.name for field in fields(SamplingSettings))
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class CatchUpOptions(TextOptions):
    """Options of commands whose speed depends on how drafters catch up.

    Attributes:
        catch_up: When a drafter encodes the positions it missed: lazy (all of them in one call,
            just before it drafts; one that is never chosen costs nothing) or eager (every drafter
            after every round, as if each were chosen next). Changes the speed, never the text.
        prefill: What is computed for a missed position: kv (keys and values, all that later drafts
            read) or full (the drafter's attention, MLP and LM head as well, thrown away). Differs
            for eagle3 and small; the others have nothing to leave out.
    """

    catch_up: Literal["lazy", "eager"] = "lazy"
    prefill: Literal["kv", "full"] = "kv"

    @property
    def settings(self) -> DecodeSettings:
        """How texts are written."""
        catching_up = CatchUp(eager=self.catch_up == "eager", full=self.prefill == "full")
        return replace(super().settings, catching_up=catching_up)
