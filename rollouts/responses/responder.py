"""The worker that writes responses: it holds the target, in this process or on another machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_host, describe_target, note_other_device
from draftgym.decoding.verify.seeds import derived_seed
from draftgym.drafters.training.data.corpus import response_schema, write_shown
from draftgym.rollouts.decode.batched import (
    Request,
    Response,
    next_requests,
    texts_together,
    write_batched,
)
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.prompts.prompt import Prompt
from draftgym.rollouts.traces.shards import ShardWriter, shard_path
from draftgym.rollouts.workers.passes import Passes
from draftgym.rollouts.workers.shard import Amount, Shard, Told

if TYPE_CHECKING:
    from draftgym.rollouts.responses.respond import RespondArgs


@dataclass(frozen=True)
class ResponsePlan:
    """What all workers of a run must agree on, and what there is to write at first.

    Attributes:
        settings: What decides the texts, and so must not change when a run goes on.
        facts: What else the files say of where they come from.
        passes: How the target computes.
        requests: The first turns, the longest prompts first.
    """

    settings: dict[str, Any]
    facts: dict[str, Any]
    passes: Passes
    requests: list[Request]


class Responder:
    """Writes responses into shards.

    Args:
        args: Settings, checked.
        target: The target that they name, where it is loaded already.
    """

    def __init__(self, args: RespondArgs, target: Target | None = None) -> None:
        self.args, self._target = args, target

    def plan(self, prompts: Sequence[Prompt], began: Mapping[str, Any] | None) -> ResponsePlan:
        """Reads prompts.

        Args:
            prompts: What to answer.
            began: What the responses that are there say of their target, if there are any.
        """
        args, target = self.args, self._load()
        if began is not None:
            ties = "near ties between tokens may fall differently"
            note_other_device(f"folder {args.out}", began, target, ties)
        fitted = fit_prompts(
            *(target, prompts, args.max_new_tokens, args.skip_long_prompts, args.max_prompt_tokens),
            all_turns=True,
            with_images=True,
        )
        facts = {"prompts": fitted.describe(), **describe_target(target), **describe_host()}
        requests = make_requests(fitted.pairs, args.temperatures, args.shares, args.seed)
        return ResponsePlan(self._settings(target), facts, Passes.of(target), requests)

    def following(
        self, requests: Sequence[Request], answers: Mapping[tuple[str, float], list[int]]
    ) -> list[Request]:
        """The next turns of requests that have one, the longest first.

        Args:
            requests: What was answered.
            answers: Token ids, by question id and temperature.
        """
        args, target = self.args, self._load()
        answered = [(one, answers[one.question_id, one.temperature]) for one in requests]

        def seed_of(question_id: str, temperature: float) -> int:
            return derived_seed(args.seed, question_id, temperature)

        following = next_requests(target, answered, seed_of, args.max_new_tokens)
        return longest_first(following)

    def write(self, shard: Shard, plan: ResponsePlan, told: Told | None = None) -> Amount:
        """Writes a shard; see `draftgym.rollouts.workers.shard.Worker`.

        Where there are more texts than `shard_texts`, files follow on the shard's own.

        Raises:
            DraftgymError: Other weights are here than where the run was planned.
        """
        args, target = self.args, self._load(plan.passes)
        path, size = shard_path(args.out, shard.number), len(shard.requests)
        if told is None and path.exists():  # its writer died before it could say so
            return Amount(size, _tokens_in(path))
        if self._settings(target) != plan.settings:
            raise DraftgymError(
                f"target {args.target!r} on {socket.gethostname()} is another one than where this "
                "run was planned",
                "give all machines the same files",
            )
        longest = max((len(one.prompt) for one in shard.requests), default=0) + args.max_new_tokens
        together = args.batch_size or texts_together(target, longest)
        metadata = {"settings": plan.settings, **plan.facts}
        to_table, tokens = partial(_response_table, metadata=metadata, folder=args.out), 0
        writer = ShardWriter[Response](
            args.out, to_table, args.shard_texts, shard.number, told is None
        )
        with writer:
            for response in write_batched(target, shard.requests, args.max_new_tokens, together):
                writer.add(response)
                tokens += len(response.tokens)
                if told is not None:
                    told(len(response.tokens))
        return Amount(size, tokens)

    def _load(self, passes: Passes | None = None) -> Target:
        """The target; loaded once, to compute like that."""
        if self._target is None:
            args = self.args if passes is None else passes.settled(self.args)
            self._target = load_target(
                args.target, args.dtype, args.threads, args.device, args.backend
            )
        return self._target

    def _settings(self, target: Target) -> dict[str, Any]:
        args = self.args
        return {
            "fingerprint": target.fingerprint,
            "dtype": target.precision.dtype,
            "temperatures": list(args.temperatures),
            "shares": None if args.shares is None else list(args.shares),
            "max_new_tokens": args.max_new_tokens,
            "seed": args.seed,
        }


def make_requests(
    prompts: Sequence[tuple[Prompt, Tensor]],
    temperatures: Sequence[float],
    shares: Sequence[float] | None,
    seed: int,
) -> list[Request]:
    """What to write, the longest prompts first.

    Temperature and seed of a text depend on its question's id and on the arguments, not on the
    other prompts: a longer prompt file changes nothing in the texts that are there.

    Args:
        prompts: Prompts with their token ids.
        temperatures: At which to answer.
        shares: How the prompts are dealt out to the temperatures; None answers each at all.
        seed: Seed of everything.
    """
    requests = []
    for prompt, ids in prompts:
        question = prompt.question_id
        chosen = temperatures if shares is None else [_dealt(question, temperatures, shares, seed)]
        requests += [
            Request(question, prompt.category, one, derived_seed(seed, question, one), ids, prompt)
            for one in chosen
        ]
    return longest_first(requests)


def longest_first(requests: Sequence[Request]) -> list[Request]:
    """Requests in the order in which they are written, so that memory is largest at the start."""
    return sorted(requests, key=lambda one: len(one.prompt), reverse=True)


def _response_table(responses: Sequence[Response], metadata: dict[str, Any], folder: Path) -> Any:
    """The table of a shard in a folder; `metadata` says where the responses come from."""
    import pyarrow

    rows = [
        {
            "id": one.request.question_id,
            "category": one.request.category,
            "temperature": one.request.temperature,
            "seed": one.request.seed,
            "prompt": one.request.prompt.tolist(),
            "response": one.tokens,
            "shown": _shown(one.request.asked, folder),
        }
        for one in responses
    ]
    return pyarrow.Table.from_pylist(rows, response_schema(metadata))


def _shown(asked: Prompt | None, folder: Path) -> str | None:
    """What a corpus says of a prompt's images; nothing of others."""
    if asked is None or not asked.images:
        return None
    return write_shown(asked.messages, folder)


def _tokens_in(shard: Path) -> int:
    """Tokens of a shard's responses."""
    import pyarrow.parquet

    (column,) = pyarrow.parquet.read_table(shard, columns=["response"]).columns
    return sum(map(len, column.to_pylist()))


def _dealt(
    question: str, temperatures: Sequence[float], shares: Sequence[float], seed: int
) -> float:
    """The one temperature of a question, drawn by its id."""
    draw = derived_seed(seed, question, None) / 2**63 * sum(shares)
    bounds = accumulate(shares)
    # The last one takes what rounding of the sum leaves over.
    below = (one for one, bound in zip(temperatures, bounds, strict=True) if draw < bound)
    return next(below, temperatures[-1])
