"""Sampling settings beside the temperature: which tokens may be chosen, and repetition's price.

Scores are those of transformers' own logits processors, in the order in which its `generate` runs
them: repetition penalty, temperature, top-k, top-p, min-p. Every verification rule sees the
target's logits behind them, so that the settings hold whatever was drafted. Each row of a proposal
has a prefix of its own: the committed text and the path to its node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import upload
from draftgym.decoding.verify.proposal import Proposal


@dataclass(frozen=True)
class SamplingSettings:
    """What narrows or bends the target's distribution; the defaults leave it as it is.

    Attributes:
        top_k: Only so many of the likeliest tokens are sampled from; 0 for all.
        top_p: Only the likeliest tokens are sampled from that together have this probability.
        min_p: Only tokens are sampled from that are at least this share as likely as the likeliest.
        repetition_penalty: Scores of tokens that stand in the text (the prompt's, too) are divided
            by it, negative ones multiplied; 1 for none. It is the only one that changes what is
            written at temperature 0.

    Raises:
        DraftgymError: A value that is not possible.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        penalty = self.repetition_penalty
        checks = {
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1 (all tokens)"),
            "min_p": (0 <= self.min_p <= 1, "0 (all tokens) to 1"),
            "repetition_penalty": (math.isfinite(penalty) and penalty > 0, "above 0 (1 for none)"),
        }
        for name, (possible, remedy) in checks.items():
            if not possible:
                option = "--" + name.replace("_", "-")
                raise DraftgymError(f"{option} is {getattr(self, name)}", f"give {remedy}")

    def shaping(self, temperature: float) -> Shaping | None:
        """What the settings do at a temperature; None where they do nothing."""
        truncates = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        if self.repetition_penalty == 1 and not (temperature and truncates):
            return None
        return Shaping(self, temperature)


def advised(asked: Mapping[str, Any], who: str) -> tuple[float, SamplingSettings]:
    """Temperature and settings that a model asks for, as transformers' `generate` understands them.

    Args:
        asked: Of its generation_config.json (`Target.generation_config`).
        who: What messages call the model, as in `target 'mine'`.

    Raises:
        DraftgymError: It asks for something impossible.
    """
    sampled = bool(asked.get("do_sample"))
    defaults = {"temperature": 1.0, "top_k": 50} if sampled else {}  # generate's own defaults
    found: dict[str, Any] = {**defaults, **asked}
    found.pop("do_sample", None)
    strange = [key for key, value in found.items() if type(value) not in (int, float)]
    try:
        if strange:
            raise DraftgymError(f"{strange[0]} is {found[strange[0]]!r}", "give a number")
        return float(found.pop("temperature", 0.0)), SamplingSettings(**found)
    except DraftgymError as error:
        raise DraftgymError(
            f"generation_config.json of {who} asks for something impossible: {error.problem}",
            f"correct it there ({error.remedy}), or leave --generation-config out",
        ) from error


PLAIN_SAMPLING = SamplingSettings()
"""The target's own distribution."""


class Shaping:
    """Turns the target's logits into those that a verification rule chooses by.

    Args:
        settings: What narrows or bends them.
        temperature: Of the rule, which divides by it afterwards; 0 for greedy.
    """

    def __init__(self, settings: SamplingSettings, temperature: float) -> None:
        from transformers import LogitsProcessorList  # slow to import, and seldom needed
        from transformers.generation import (
            MinPLogitsWarper,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.penalties, self.warpers = LogitsProcessorList(), LogitsProcessorList()
        self.guesses = LogitsProcessorList()
        if settings.repetition_penalty != 1:
            penalty = float(settings.repetition_penalty)
            self.penalties.append(RepetitionPenaltyLogitsProcessor(penalty))
        if temperature:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
            if settings.top_k > 0:
                self.warpers.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.warpers.append(TopPLogitsWarper(settings.top_p))
            if settings.min_p > 0:
                self.warpers.append(MinPLogitsWarper(settings.min_p))
            # Not top-p: sorting a vocabulary takes longer than many a draft.
            self.guesses.extend(w for w in self.warpers if not isinstance(w, TopPLogitsWarper))

    def scores(self, text: Tensor, proposal: Proposal, logits: Tensor) -> Tensor:
        """Float32 scores `[n + 1, vocab]`, before division by the temperature.

        Args:
            text: Committed token ids `[m]`, on the logits' device.
            proposal: n drafted nodes.
            logits: The target's, `[n + 1, vocab]`, as `VerificationRule.verify`.
        """
        scores = logits.float()
        if self.penalties:
            scores = self.penalties(prefixes_of(text, proposal), scores)
        return _narrowed(scores, self.warpers)

    def guess(self, logits: Tensor) -> Tensor:
        """A drafter's logits `[n, draft_vocab]` without tokens outside its own top-k and min-p."""
        return _narrowed(logits.float(), self.guesses)


def _narrowed(scores: Tensor, warpers: Any) -> Tensor:
    """The scores, those of tokens that may not be sampled at minus infinity."""
    if not warpers:
        return scores
    warped = warpers(None, scores)  # these processors read no prefix
    return scores.masked_fill(warped == -math.inf, -math.inf)


def prefixes_of(text: Tensor, proposal: Proposal) -> Tensor:
    """The tokens before each row of a proposal's logits: the text, then the path to the node.

    Shorter paths are filled up with the text's last token, which is in the text anyway.

    Args:
        text: Committed token ids `[m]`.
        proposal: n drafted nodes.

    Returns:
        `[n + 1, m + depth]`, on the text's device.
    """
    paths: list[list[int]] = [[]]  # of places in the anchor and the nodes behind it
    for node, parent in enumerate(proposal.parents.tolist(), start=1):
        paths.append([*paths[parent + 1], node])
    depth = max(map(len, paths))
    places = torch.tensor([path + [0] * (depth - len(path)) for path in paths], dtype=torch.long)
    nodes = torch.cat([text[-1:], upload(proposal.tokens, text.device)])
    drafted = nodes[upload(places, text.device)]
    return torch.cat([text.expand(len(paths), -1), drafted], dim=1)
