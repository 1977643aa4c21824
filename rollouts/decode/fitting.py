"""Prompts as token ids: what is too long for a target is found before any work begins."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.interface import ModelInputs
from draftgym.decoding.model.target import Target
from draftgym.rollouts.prompts.sets import Prompt, further_turns, note_first_turns

NAMED = 3
"""Prompts that a message names; it counts the others."""


@dataclass(frozen=True)
class FittedPrompts:
    """Prompts that fit.

    Attributes:
        prompts: In their order.
        ids: Token ids `[m]` of each first turn, by `question_id`.
        left_out: Ids of those that were too long, left out on request.
        longest: Tokens of the longest prompt; where all turns are played, about the most that a
            last turn can have behind the answers before it.
        all_turns: Whether all turns are played, and not only the first.
    """

    prompts: list[Prompt]
    ids: dict[str, Tensor]
    left_out: list[str]
    longest: int
    all_turns: bool = False

    @property
    def pairs(self) -> list[tuple[Prompt, Tensor]]:
        """Prompts with their token ids."""
        return [(prompt, self.ids[prompt.question_id]) for prompt in self.prompts]

    def describe(self) -> dict[str, Any]:
        """What a result says of its prompts."""
        further = further_turns(self.prompts)
        told: dict[str, Any] = {
            "prompt_count": len(self.prompts),
            "left_out_prompts": self.left_out,
            "prompts_with_further_turns": further,
        }
        if self.all_turns and further:
            told["turns"] = sum(len(prompt.turns) for prompt in self.prompts)
        return told


def fit_prompts(
    target: Target,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    skip_long: bool = False,
    longest: int | None = None,
    all_turns: bool = False,
    with_images: bool = False,
) -> FittedPrompts:
    """Encodes all prompts and checks that they fit.

    Args:
        target: Whose context they must fit into, with `max_new_tokens`.
        prompts: First turns are encoded; a note says where others stay unplayed.
        max_new_tokens: Tokens per text at most.
        skip_long: Whether those that are too long are left out, with a note on standard error.
        longest: Tokens of a prompt at most: longer ones are left out as if asked for.
        all_turns: Whether all turns will be played, so that they must fit with as long answers as
            there can be.
        with_images: Whether the images of prompts will be shown; else such prompts are refused.

    Raises:
        DraftgymError: A prompt cannot be encoded or does not fit (the message names the first few),
            none is left, or no token is to be written.
    """
    if max_new_tokens < 1:
        raise DraftgymError(
            f"--max-new-tokens is {max_new_tokens}", "ask for at least one new token"
        )
    if not all_turns:
        note_first_turns(prompts)
    names = [_turn_ids(prompt) if all_turns else [prompt.question_id] for prompt in prompts]
    counts = Counter(name for some in names for name in some)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DraftgymError(
            f"{len(twice)} question ids are there twice, such as {twice[0]!r}",
            "give every prompt an id of its own; results are filed under it",
        )
    if not with_images:
        refuse_images(prompts)
    encoded = [(prompt, read_prompt(target, prompt)[0]) for prompt in prompts]
    sizes = {
        prompt.question_id: _most_tokens(target, prompt, max_new_tokens) if all_turns else len(ids)
        for prompt, ids in encoded
    }
    room = target.context_limit - max_new_tokens
    too_long = [prompt for prompt in prompts if sizes[prompt.question_id] > room]
    if too_long and not skip_long:
        raise DraftgymError(
            f"{len(too_long)} of {len(prompts)} prompts do not fit {target.name}: "
            f"{_told(too_long, sizes)}"
            f"; with {max_new_tokens} new tokens, {target.context_limit} positions leave room for "
            f"{max(0, room)}",
            "shorten them, lower --max-new-tokens, or leave them out with --skip-long-prompts",
        )
    limit = room if longest is None else min(room, longest)
    out = [prompt for prompt in prompts if sizes[prompt.question_id] > limit]
    kept = [(prompt, ids) for prompt, ids in encoded if sizes[prompt.question_id] <= limit]
    if not kept:
        raise DraftgymError(
            f"no prompt has at most {limit} tokens", "give shorter ones, or lower --max-new-tokens"
        )
    if out:
        told = (
            f"{len(out)} of {len(prompts)} prompts have more than {limit} tokens and are left out"
        )
        print(f"note: {told}: {_told(out, sizes)}", file=sys.stderr)
    return FittedPrompts(
        [prompt for prompt, _ in kept],
        {prompt.question_id: ids for prompt, ids in kept},
        [prompt.question_id for prompt in out],
        max(sizes[prompt.question_id] for prompt, _ in kept),
        all_turns,
    )


def refuse_images(prompts: Sequence[Prompt]) -> None:
    """Raises `DraftgymError` where a prompt has images."""
    if shown := [prompt.question_id for prompt in prompts if prompt.images]:
        raise DraftgymError(
            f"{len(shown)} of {len(prompts)} prompts have images, such as {shown[0]!r}, and this "
            "reads text alone",
            "leave them out; draftgym generate and draftgym evaluate read images",
        )


def encode_prompt(target: Target, prompt: Prompt) -> Tensor:
    """Token ids `[m]` of a prompt's turn, with all that was said before; errors name the prompt."""
    refuse_images([prompt])
    return read_prompt(target, prompt)[0]


def read_prompt(target: Target, prompt: Prompt) -> tuple[Tensor, ModelInputs | None]:
    """As `encode_prompt`, with what belongs to the images of the prompt where it has any."""
    inputs: ModelInputs | None = None
    try:
        if prompt.images:
            ids, inputs = target.encode_with_images(prompt.messages)
        else:
            alone = prompt.system is None and not prompt.answers
            ids = target.encode(prompt.text if alone else prompt.messages)
    except DraftgymError as error:
        later = "; or play first turns alone with --turns 1" if prompt.answers else ""
        raise DraftgymError(
            f"prompt {prompt.question_id!r}: {error.problem}", error.remedy + later
        ) from error
    if not len(ids):
        raise DraftgymError(f"prompt {prompt.question_id!r} has no token", "give it some text")
    return ids, inputs


def _turn_ids(prompt: Prompt) -> list[str]:
    """The ids under which the turns of a prompt are filed."""
    ids, turn = [prompt.question_id], prompt.answered("")
    while turn is not None:
        ids.append(turn.question_id)
        turn = turn.answered("")
    return ids


def _most_tokens(target: Target, prompt: Prompt, max_new_tokens: int) -> int:
    """About the most tokens that the prompt of the last turn can have."""
    earlier = len(prompt.turns) - 1
    last = replace(prompt, answers=("x",) * earlier)
    return len(read_prompt(target, last)[0]) + earlier * max_new_tokens


def _told(some: Sequence[Prompt], sizes: Mapping[str, int]) -> str:
    """The first few, with their lengths, and how many more there are."""
    named = [f"{one.question_id!r} ({sizes[one.question_id]} tokens)" for one in some[:NAMED]]
    more = [f"{len(some) - NAMED} more"] if len(some) > NAMED else []
    return ", ".join([*named, *more])
