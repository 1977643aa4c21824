"""A session: one sequence being written, with everything that is remembered about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.drafting import LAZY_KV_ONLY, MAX_TREE_NODES, CatchUp, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host, upload
from draftgym.decoding.model.interface import ModelInputs, NewRows, PassOutput, SequenceCache
from draftgym.decoding.model.target import Target
from draftgym.decoding.text.stops import NO_STOPS, StopCheck, StopReason, Stops
from draftgym.decoding.verify.base import Verdict, VerificationRule
from draftgym.decoding.verify.best import best_scores
from draftgym.decoding.verify.proposal import Proposal


class Session:
    """One sequence being written.

    With n committed tokens, the target's cache and the taps cover positions `0 .. n - 2`; the
    newest token, the anchor, goes through the target in the next round. Cache, taps and tokens lie
    on the target's device; the text is kept on the host as well, where rounds are decided.

    Args:
        target: The target.
        prompt: Prompt token ids `[m]`, wherever they lie.
        rule: Verification rule.
        max_new_tokens: Tokens to write at most.
        drafters: Drafters that may be used, by name; their taps are recorded.
        capacity: Positions to reserve; by default what the request needs. Drafts end where the
            text must, so they need no more; but the target's cache gets more rows than that where a
            drafter draws trees: nodes share positions, not rows.
        catching_up: When and how drafters encode what they missed.
        stops: What ends the text beside the target itself.
        inputs: What belongs to the images of the prompt.
        cache: The target's, empty, with room for what the request needs; by default one of its own.

    Attributes:
        token_ids: All committed token ids, on the host.

    Raises:
        DraftgymError: Empty prompt, or a prompt that does not fit.
    """

    def __init__(
        self,
        target: Target,
        prompt: Tensor,
        rule: VerificationRule,
        max_new_tokens: int,
        drafters: Mapping[str, Drafter],
        capacity: int | None = None,
        catching_up: CatchUp = LAZY_KV_ONLY,
        stops: Stops = NO_STOPS,
        inputs: ModelInputs | None = None,
        cache: SequenceCache | None = None,
    ) -> None:
        prompt = to_host(prompt)
        needed = len(prompt) + max_new_tokens
        self.capacity = min(needed, target.context_limit) if capacity is None else capacity
        _check_request(prompt, max_new_tokens, self.capacity)
        target.check_tokens(prompt)
        self.target, self.rule, self.drafters = target, rule, drafters
        self.catching_up, self.inputs = catching_up, inputs
        self.ends = StopCheck(target, stops)
        self.max_new_tokens = max_new_tokens
        self.prompt_length = len(prompt)
        widest = max((drafter.max_tree_nodes for drafter in drafters.values()), default=0)
        if len(drafters) > 1 and target.decoder.draws_trees:
            widest = MAX_TREE_NODES  # chains of several make a tree, too
        self.cache = cache or target.decoder.new_cache(self.capacity + widest)
        self.tap_layers = tuple(
            sorted({layer for drafter in drafters.values() for layer in drafter.tap_layers})
        )
        self._column = {layer: i for i, layer in enumerate(self.tap_layers)}
        size = (self.capacity, len(self.tap_layers), target.hidden_size)
        self._taps = torch.empty(size, dtype=target.decoder.dtype, device=target.device)
        self._room = self._taps[:0]
        self._tokens = torch.empty(self.capacity + 1, dtype=torch.long, device=target.device)
        self._tokens[: len(prompt)] = upload(prompt, target.device)
        self.token_ids: list[int] = prompt.tolist()
        self._states: dict[str, Any] = {}
        self._stopped = False
        self.stop_reason: StopReason | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> Tensor:
        """All committed token ids `[n]`, prompt included."""
        return self._tokens[: len(self.token_ids)]

    @property
    def new_tokens(self) -> list[int]:
        """Token ids written so far."""
        return self.token_ids[self.prompt_length :]

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self.max_new_tokens - (len(self.token_ids) - self.prompt_length)

    @property
    def unread(self) -> int:
        """Tokens before the newest that the target has not read; none from prefill on."""
        return max(0, len(self.token_ids) - 1 - self.cache.length)

    @property
    def finished(self) -> bool:
        """Whether the text ended or the token limit is reached."""
        return self._stopped or self.remaining <= 0

    @property
    def finish_reason(self) -> str:
        """`stop` (the target ended the text), `length` (token limit) or `running`."""
        return "stop" if self._stopped else "length" if self.remaining <= 0 else "running"

    @property
    def last_hidden(self) -> Tensor:
        """The target's final hidden state that the newest token was chosen from `[d]`."""
        return self._chosen_from()[0]

    @property
    def last_logits(self) -> Tensor:
        """The target's logits that the newest token was chosen from `[vocab]`."""
        return self._chosen_from()[1]

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps of `layers` at positions `start .. stop - 1`: `[stop - start, k * d]`."""
        if tuple(layers) == self.tap_layers:
            return self._taps[start:stop].flatten(1)
        return torch.cat([self._taps[start:stop, self._column[layer]] for layer in layers], -1)

    def state_of(self, drafter: Drafter) -> Any:
        """The drafter's own state of this sequence, made on first use."""
        if drafter.name not in self._states:
            self._states[drafter.name] = drafter.new_state(self.capacity)
        return self._states[drafter.name]

    def catch_up(self, drafter: Drafter) -> int:
        """Brings a drafter's state up to date; returns how many positions it had missed."""
        return drafter.catch_up(self.state_of(drafter), self, self.catching_up.full)

    def go_on_from(self, other: Session) -> int:
        """Takes over, before prefill, what another session of the target knows of the same tokens.

        Keys and values, taps and drafters' states of the longest common beginning are kept; prefill
        runs the rest of the prompt, its last token at least. A prompt whose images are not all
        those of the other begins anew.

        Returns:
            Positions that were taken over.
        """
        if other.target is not self.target or other.tap_layers != self.tap_layers:
            return 0
        most = min(self.prompt_length - 1, other.cache.length)
        shared = common_beginning(self.token_ids[:most], other.token_ids[:most])
        if not self._shows_what(other, shared):
            return 0
        self.cache.start_like(other.cache, shared)
        self._taps[:shared] = other._taps[:shared]
        for name, state in other._states.items():
            if self.drafters.get(name) is other.drafters[name]:
                self._states[name] = other.drafters[name].take_over(state, shared, self.capacity)
        return shared

    def retire(self) -> None:
        """Forgets what only writing needs; the session writes no more, others may go on from it."""
        self._last = None
        del self.rule  # with its noise

    def prefill(self, with_margins: bool = False) -> Verdict:
        """Runs the prompt through the target and commits the first token."""
        none = Proposal.empty()
        output = self.target.decoder.forward([self.verification_rows(none)], self.tap_layers)[0]
        logits = self.scores(none, output.logits)
        verdict = self.rule.verify(none, logits, self.prompt_length - 1, with_margins)
        self.commit(none, verdict, output)
        return verdict

    def prompt_part(self, most: int, scored: bool = False) -> NewRows:
        """The next rows of the prompt, for a pass that reads only a part of it (`keep_part`).

        Args:
            most: Rows at most. The last row is never among them: the first round runs it.
            scored: Whether the logits of all of them are wanted, and not of the last one alone.
        """
        stop = min(self.cache.length + most, len(self.token_ids) - 1)
        return self._prompt_rows(stop, scored)

    def keep_part(self, output: PassOutput) -> None:
        """Keeps what the target read of the rows that were asked for last."""
        if output.taps is not self._room:  # a long prompt's lie there already
            self._room.copy_(output.taps)
        self.cache.keep(len(self._room))

    def start_like(self, other: Session) -> None:
        """Takes over what a session of the same prompt, rule and drafters knows after prefill."""
        size = other.prompt_length
        self.cache.start_like(other.cache, size)
        self._taps[:size] = other._taps[:size]
        self._last = other._last
        self._append(other.token_ids[size : size + 1])

    def verification_rows(self, proposal: Proposal) -> NewRows:
        """The target rows that verify a proposal: the anchor, then its nodes.

        Before prefill they are its rows: what the target has not read of the prompt.
        """
        if self.unread:
            return self._prompt_rows(len(self.token_ids))
        self.cache.require(len(proposal) + 1)
        anchor, device = len(self.token_ids) - 1, self.target.device
        drafted = upload(proposal.tokens, device)
        tokens = torch.cat([self._tokens[anchor : anchor + 1], drafted])
        if proposal.is_chain:
            return NewRows(self.cache, tokens)
        positions = torch.tensor([anchor, *(anchor + proposal.depths()).tolist()])
        mask = proposal.ancestor_mask()
        return NewRows(self.cache, tokens, upload(positions, device), upload(mask, device))

    def scores(self, proposal: Proposal, logits: Tensor) -> Tensor:
        """What the rule chooses by: the target's logits, as the sampling settings shape them."""
        shaping = self.rule.shaping
        return logits if shaping is None else shaping.scores(self.tokens, proposal, logits)

    def commit(self, proposal: Proposal, verdict: Verdict, output: PassOutput) -> list[int]:
        """Keeps what verification accepted; returns the committed tokens.

        Tokens behind a stop token or the token limit are dropped, and so are their rows.
        """
        if self.unread:
            return self._begin(verdict, output)
        accepted = [proposal.token_ids[node] for node in verdict.path]
        tokens = self._append([*accepted, verdict.next_token])
        # The anchor's row, and those of the committed tokens but the newest (the next anchor).
        rows = [0, *(node + 1 for node in verdict.path)][: len(tokens)]
        kept, base = len(rows), self.cache.length
        if proposal.is_chain:  # then the accepted rows already lie in order
            self._taps[base : base + kept] = output.taps[:kept]
            self.cache.keep(kept)
        else:
            there = upload(torch.tensor(rows), self.target.device)
            self._taps[base : base + kept] = output.taps[there]
            self.cache.keep(there)
        self._remember(output, rows[-1])
        return tokens

    def roll_back(self, length: int) -> None:
        """Forgets all but the first `length` tokens, two at least, so that rounds can be repeated.

        The session is then as it was; drafters' states begin anew.
        """
        if not 2 <= length <= len(self.token_ids):
            raise ValueError(f"cannot roll back from {len(self.token_ids)} tokens to {length}")
        self.cache.roll_back(length - 1)
        del self.token_ids[length:]
        self._last = None
        written = self.new_tokens
        ended = self.ends.first(written[:-1], written[-1:])
        self._stopped, self.stop_reason = ended is not None, ended and ended[1]
        self._states.clear()

    def confidence(self) -> Tensor:
        """How sure the target was when it chose the newest token: `[1, 3]`; see `confidence`."""
        return confidence(self.last_logits[None])

    def _prompt_rows(self, stop: int, scored: bool = False) -> NewRows:
        known = self.cache.length
        inputs = None if known else self.inputs  # images that are known were read before
        self._room = self._taps[known:stop]
        first = 0 if scored else stop - known - 1
        return NewRows(self.cache, self.tokens[known:stop], None, None, first, inputs, self._room)

    def _begin(self, verdict: Verdict, output: PassOutput) -> list[int]:
        self.keep_part(output)
        self._remember(output, 0)
        return self._append([verdict.next_token])

    def _shows_what(self, other: Session, shared: int) -> bool:
        """Whether the images are the other's, and all among the first `shared` positions."""
        if self.inputs is None or other.inputs is None:
            return self.inputs is other.inputs
        behind = self.token_ids[shared:]
        return self.target.image_tokens.isdisjoint(behind) and _same_images(
            (self.inputs, self.prompt_length), (other.inputs, other.prompt_length)
        )

    def _remember(self, output: PassOutput, row: int) -> None:
        self._last = output.hidden[row], output.logits[row]

    def _chosen_from(self) -> tuple[Tensor, Tensor]:
        """Hidden state and logits behind the newest token; what was rolled back runs once more."""
        if self._last is None:
            before = len(self.token_ids) - 2
            self.cache.roll_back(before)
            rows = NewRows(self.cache, self._tokens[before : before + 1])
            self._remember(self.target.decoder.forward([rows])[0], 0)
            self.cache.keep(1)
        assert self._last is not None
        return self._last

    def _append(self, tokens: list[int]) -> list[int]:
        """Adds tokens up to the limit or to where the text ends; returns those that were added."""
        tokens = tokens[: self.remaining]
        before = self.new_tokens if self.ends.strings else []
        if ended := self.ends.first(before, tokens):
            self._stopped, self.stop_reason = True, ended[1]
            tokens = tokens[: ended[0]]
        written = slice(len(self.token_ids), len(self.token_ids) + len(tokens))
        self._tokens[written] = upload(torch.tensor(tokens), self.target.device)
        self.token_ids += tokens
        return tokens


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts both begin with (lists compare fast, token by token does not)."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def confidence(logits: Tensor) -> Tensor:
    """How sure the target is of its next tokens, at temperature 1.

    Args:
        logits: Float32 `[n, vocab]`.

    Returns:
        Per row the Shannon entropy in nats over the full vocabulary, top-1 minus top-2
        probability, and top-1 probability: `[n, 3]`.
    """
    if logits.device.type == "cpu":
        return torch.from_numpy(_confidence_on_host(logits.numpy()))
    logprobs = logits.log_softmax(-1)
    first, second = best_scores(logprobs, 2).exp().unbind(-1)
    entropy = -torch.linalg.vecdot(logprobs.exp(), logprobs)
    return torch.stack([entropy, first - second, first], dim=-1)


def _confidence_on_host(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """`confidence` in numpy, which takes half the time where caches are cold."""
    rows, places = np.arange(len(logits)), logits.argmax(-1)
    below = logits - logits[rows, places, None]
    weights = np.exp(below)
    total = weights.sum(-1)
    entropy = np.log(total) - (weights * below).sum(-1) / total
    weights[rows, places] = 0
    return np.stack([entropy, (1 - weights.max(-1)) / total, 1 / total], axis=-1)


def _same_images(*prompts: tuple[ModelInputs, int]) -> bool:
    """Whether two prompts' inputs are of the same images; what is given per token has no say."""
    one, other = (
        {key: value for key, value in inputs.items() if tuple(value.shape) != (1, length)}
        for inputs, length in prompts
    )
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _check_request(prompt: Tensor, max_new_tokens: int, capacity: int) -> None:
    if len(prompt) == 0:
        raise DraftgymError("the prompt is empty", "give some text with --prompt")
    if max_new_tokens < 1:
        raise DraftgymError(
            f"--max-new-tokens is {max_new_tokens}", "ask for at least one new token"
        )
    if len(prompt) + max_new_tokens > capacity:
        raise DraftgymError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit "
            f"{capacity} positions",
            "shorten the prompt or lower --max-new-tokens",
        )
