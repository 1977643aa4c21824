"""Chains that a drafter draws at every position of traced texts, with what it knows of each token.

Traces hold the drafted tokens and their probabilities. Published rules that stop a draft ask more:
how the drafter's distribution spreads, and the state that it was computed from. Here the chains of
traced texts are drafted again, all positions together, and that is kept.

Notation: R = positions of all texts, text behind text; L = tokens of a chain; d = the drafter's
hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host, upload
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import run_target
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.traces.counterfactual import hash_prompt
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, eq=False)
class Chains:
    """The chain at every position, whether or not there is room for all of it.

    Attributes:
        tokens: Token ids `[R, L]`.
        logprobs: Log-probability that the drafter gave each `[R, L]`.
        entropies: Entropy of the distribution that each is the likeliest of, in nats `[R, L]`.
        states: What that distribution was computed from and the next step read, float16
            `[R, L, d]`.
        room: Most tokens that may be drafted `[R]`.
        accepted: How many of the first tokens, as far as there is room, the text goes on with
            `[R]`.
    """

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    states: NDArray[np.float16]
    room: NDArray[np.int64]
    accepted: NDArray[np.int64]

    def __len__(self) -> int:
        """Positions."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens of a chain."""
        return int(self.tokens.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Chains]) -> Chains:
        """The positions of all parts, in order."""
        names = [one.name for one in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@torch.inference_mode()
def draft_chains(drafter: AutoregressiveDrafter, text: RecordedText, length: int) -> Chains:
    """Drafts greedily at every position of a text; all of them take a step together.

    Args:
        drafter: Who drafts.
        text: A text of two response tokens or more.
        length: Tokens of a chain.
    """
    places = text.places()
    parts = torch.tensor([place.length for place in places]).split(text.rule.places_together)
    cache = drafter.new_cache(len(text.tokens) + len(parts[0]) * length)
    drafter.catch_up(cache, text)
    committed, facts = cache.length, []
    for lengths in parts:
        rows, at = torch.arange(len(lengths))[:, None], lengths - drafter.lag
        at, drawn = upload(at, drafter.device), list[tuple[Tensor, ...]]()
        for step in range(length):
            own = rows + len(lengths) * torch.arange(step, -1, -1)  # each row's chain so far
            seen = Paths(committed, at, upload(own, drafter.device))
            if step:
                tokens, *_, carried = drawn[-1]
                found = drafter.next_step(cache, tokens, carried, at + step, seen)
            else:
                found = drafter.first_step(cache, text, lengths, seen)
            cache.keep(len(lengths))
            drawn.append((*_look(found[0], drafter.draft_ids), found[1]))
        cache.roll_back(committed)
        facts.append([torch.stack(column, 1) for column in zip(*drawn, strict=True)])
    drafted, logprobs, entropies, states = (
        to_host(torch.cat(one)).numpy() for one in zip(*facts, strict=True)
    )
    room = np.array([place.room for place in places])
    behind = np.append(text.token_ids, np.full(length, -1))
    following = [behind[place.length : place.length + length] for place in places]
    accepted = np.minimum(np.cumprod(drafted == np.array(following), 1).sum(1), room)
    return Chains(drafted, logprobs, entropies, states.astype(np.float16), room, accepted)


def _look(logits: Tensor, draft_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Likeliest tokens, their log-probabilities, and entropies of logits `[n, Vd]`; each `[n]`."""
    logprobs = logits.float().log_softmax(-1)
    top, rows = logprobs.max(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return rows if draft_ids is None else draft_ids[rows], top, entropies


def collect_chains(
    target: Target,
    drafter: AutoregressiveDrafter,
    traces: TraceSet,
    prompts: Mapping[str, Tensor],
    length: int,
) -> Chains:
    """The chains at all positions of traced texts; the target reads each text once.

    Args:
        target: Who wrote them.
        drafter: Who drafts.
        traces: Texts that were written greedily; those of a single token have no position.
        prompts: Token ids of their prompts, by question.
        length: Tokens of a chain.

    Raises:
        DraftgymError: The traces are of other weights, sampled, or of other prompts.
    """
    _check_origin(target, drafter, traces)
    texts, found = [text for text in traces.texts if len(text)], []
    with Progress("drafting", "positions", len(texts)) as progress:
        for text in texts:
            prompt = prompts.get(text.question_id)
            if prompt is None or hash_prompt(prompt) != text.prompt_hash:
                raise DraftgymError(
                    f"the traced text {text.question_id!r} is of no first turn of these prompts",
                    "name the prompts that were traced, with draftgym collect --turns 1",
                )
            tokens = torch.cat([prompt, torch.from_numpy(text.tokens)])
            (seen,) = run_target(target, [Text(tokens, len(prompt))], drafter.tap_layers)
            recorded = RecordedText(
                upload(tokens, drafter.device),
                len(prompt),
                seen.taps,
                drafter.tap_layers,
                GreedyRule(),
                traces.origin.max_new_tokens,
            )
            found.append(draft_chains(drafter, recorded, length))
            progress.add(len(text))
    return Chains.joined(found)


def _check_origin(target: Target, drafter: AutoregressiveDrafter, traces: TraceSet) -> None:
    origin = traces.origin
    mine = (target.fingerprint, drafter.fingerprint, 0.0)
    if mine != (origin.target_fingerprint, origin.drafters.get(drafter.name), origin.temperature):
        raise DraftgymError(
            f"these traces are no greedy texts of {target.name} with the {drafter.name} at hand",
            "collect them again with draftgym collect, or name that drafter with --drafters",
        )
