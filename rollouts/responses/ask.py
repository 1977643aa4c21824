"""Let the target write prompts of its own, for it to answer and for drafters to be trained on.

    $ draftgym ask --texts 2000 --out asked --held-out my-test-questions.jsonl
    $ draftgym respond --prompts asked/prompts.jsonl --out responses

The target goes on from the beginning of a user's turn, as in Magpie (arXiv 2406.08464); texts to
summarise are articles and dialogues that it is asked for. Of what it writes, asked/prompts.jsonl
holds the good prompts, sorted by what they are; asked/figures.json counts them, and those that were
left out by reason. Prompts that overlap the shipped held-out set are always left out.

All texts are kept in the folder, so that an interrupted run goes on where it stopped, --texts may
be raised later, and other limits are tried without writing again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json, write_text
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import (
    describe_host,
    describe_target,
    note_other_device,
    sole_writer,
)
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.decoding.verify.seeds import derived_seed
from draftgym.drafters.training.data.corpus import read_metadata
from draftgym.rollouts.decode.batched import Request, texts_together, write_sessions
from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.prompts.kinds import kind_of
from draftgym.rollouts.prompts.overlap import HeldOut
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.prompts.sifting import Limits, Sieve
from draftgym.rollouts.responses.respond import refuse_other_settings
from draftgym.rollouts.responses.wished_texts import (
    Wished,
    Written,
    read_texts,
    text_table,
    wished,
)
from draftgym.rollouts.responses.wishes import WISHES, opening_of, prompt_of
from draftgym.rollouts.traces.shards import ShardWriter, shards_in


@dataclass(frozen=True, kw_only=True)
class AskArgs:
    """What to write.

    Attributes:
        out: Folder of the prompts; a run that was interrupted goes on there.
        texts: Texts to write in all; about half of them make good prompts.
        wishes: What to ask for, in turn: chat (a user's turn with no system prompt), code, math and
            structured (with one), article and dialogue (to summarise). One that is named twice is
            asked for twice as often. What is written is sorted by what it is.
        held_out: Prompt files to report on; prompts that overlap them are left out.
        temperature: Of sampling.
        top_p: Sample only from the likeliest tokens that together have this probability.
        min_p: Sample only from tokens at least this share as likely as the likeliest. What the
            embedded target wrote read better with it than with --top-p 0.95 (a few dozen texts).
        max_new_tokens: Tokens per text at most; texts that do not end by then are left out.
        min_words: Words of a prompt at least.
        max_words: Words of a prompt at most.
        seed: Seed of sampling; the same seed gives the same prompts.
        batch_size: Texts that are written in one pass. In float32 it does not change the texts.
            Default: 64, or what half of an accelerator's free memory holds, 512 at most.
        shard_texts: Texts per file. A killed process loses at most the work on that many and on
            one batch; an interrupted one (Ctrl-C, SIGTERM) only the batch.
        target: smollm2-135m (embedded), a Hugging Face folder, a Hub id or a .gguf file with a chat
            template; `:int8` or `:q4` behind the name makes it a target of rounded weights.
        dtype: auto (a probe picks the faster one; bfloat16 on an accelerator), float32, bfloat16 or
            float16.
        device: Where: auto (an accelerator that torch can use, else the processor), cpu, cuda,
            cuda:1, mps or xpu.
        backend: Whose pass runs the target: auto (draftgym's own where it computes what
            transformers computes, else transformers'), compact (draftgym's own), openvino (its
            own, compiled for few rows) or transformers.
        threads: CPU threads; default: every core this process may use.
    """

    out: Path
    texts: int = 1000
    wishes: tuple[str, ...] = WISHES
    held_out: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.05
    max_new_tokens: int = 320
    min_words: int = Limits.fewest
    max_words: int = Limits.most
    seed: int = 0
    batch_size: int | None = None
    shard_texts: int = 256
    target: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    backend: Backend = "auto"
    threads: int | None = None

    @property
    def sampling(self) -> SamplingSettings:
        """What narrows the target's distribution."""
        return SamplingSettings(top_p=self.top_p, min_p=self.min_p)


class Asked(NamedTuple):
    """What one run of the command did.

    Attributes:
        texts: Texts that it wrote.
        tokens: Tokens of theirs.
        done_before: Texts that were there.
        figures: As in figures.json, of all texts.
    """

    texts: int
    tokens: int
    done_before: int
    figures: dict[str, Any]


def ask(args: AskArgs, target: Target | None = None) -> Asked:
    """Writes the texts that are missing in the folder, and the prompts that come of all of them.

    Args:
        args: Settings.
        target: The target that they name, where it is loaded already.

    Raises:
        DraftgymError: Bad settings, or a folder that was written with others.
    """
    _check_args(args)
    sets = [load_prompts(source) for source in ("heldout", *args.held_out)]
    held_out = HeldOut(turn for prompts in sets for prompt in prompts for turn in prompt.turns)
    with sole_writer(args.out):
        target = target or load_target(
            args.target, args.dtype, args.threads, args.device, args.backend
        )
        settings = {  # what decides the texts, and so must not change when a run goes on
            "fingerprint": target.fingerprint,
            "dtype": target.precision.dtype,
            "temperature": args.temperature,
            "sampling": asdict(args.sampling),
            "max_new_tokens": args.max_new_tokens,
            "seed": args.seed,
        }
        for shard in shards_in(args.out):
            refuse_other_settings(shard, settings)
        for shard in shards_in(args.out)[:1]:
            ties = "near ties between tokens may fall differently"
            note_other_device(f"folder {args.out}", read_metadata(shard), target, ties)
        metadata = {"settings": settings, **describe_target(target), **describe_host()}
        done = read_texts(args.out)
        wanted = wished(args.wishes, args.texts)
        missing = [one for one in wanted if one not in done]
        try:
            tokens = _write(args, target, missing, len(wanted), metadata)
        finally:  # an interrupted run has its prompts, too
            figures = _sift(args, Path(target.name).name, held_out)
    return Asked(len(missing), tokens, len(wanted) - len(missing), figures)


def _write(
    args: AskArgs, target: Target, missing: Sequence[Wished], total: int, metadata: Any
) -> int:
    """Writes all missing texts; returns their tokens."""
    by_name = {one.name: one for one in missing}
    to_table = partial(text_table, metadata=metadata)
    requests = _requests(args, target, missing)
    with (
        ShardWriter(args.out, to_table, args.shard_texts) as writer,
        Progress("texts", "tokens", total, total - len(missing)) as progress,
    ):
        together = args.batch_size or texts_together(target, 2 * args.max_new_tokens)
        sessions = write_sessions(target, requests, args.max_new_tokens, together)
        for request, session in sessions:
            writer.add((by_name[request.question_id], _text_of(session, request)))
            progress.add(len(session.new_tokens))
    return progress.count


def _requests(args: AskArgs, target: Target, missing: Sequence[Wished]) -> Iterator[Request]:
    """Requests for texts; each depends on its name and the seed alone."""
    for one in missing:
        seed = derived_seed(args.seed, one.wish, one.number)
        opening = opening_of(target, one.wish, seed)
        yield Request(
            *(one.name, one.wish, args.temperature, seed, opening.ids),
            sampling=args.sampling,
            stops=opening.stops,
        )


def _text_of(session: Session, request: Request) -> Written:
    """What a session wrote, without what ended it."""
    tokens, ended = session.new_tokens, session.finish_reason == "stop"
    if isinstance(session.stop_reason, int):
        tokens = tokens[:-1]
    return Written(request.stops.cut(session.target.decode(tokens)), ended)


def _sift(args: AskArgs, who: str, held_out: HeldOut) -> dict[str, Any]:
    """Writes prompts.jsonl and figures.json of all texts in the folder.

    Texts are taken by their numbers and not as they were finished, so that the prompts depend on
    neither the size of the batch nor on interruptions.
    """
    sieve, lines = Sieve(held_out, Limits(args.min_words, args.max_words)), []
    texts = read_texts(args.out)
    categories: Counter[str] = Counter()
    for one, written in sorted(texts.items()):
        made = prompt_of(one.wish, written, derived_seed(args.seed, one.wish, one.number))
        prompt, ended = (None, written.ended) if made is None else made
        if sieve.keeps(prompt, ended) and prompt is not None:
            category = kind_of(prompt)
            line = {
                "question_id": f"asked-{args.seed}-{one.name}",
                "category": category,
                "source": f"{who}, asked for {one.wish}",
                "turns": [prompt],
            }
            categories[category] += 1
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    figures = {
        "texts": len(texts),
        "prompts": len(lines),
        "by_category": dict(categories.most_common()),
        "left_out": dict(sieve.left_out.most_common()),
    }
    write_text(args.out / "prompts.jsonl", "".join(lines))
    write_json(args.out / "figures.json", figures)
    return figures


def _check_args(args: AskArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    for option in ("texts", "max_new_tokens", "batch_size", "shard_texts", "min_words"):
        value = getattr(args, option)
        if value is not None and value < 1:
            name = "--" + option.replace("_", "-")
            raise DraftgymError(f"{name} is {value}", "give at least one")
    if args.max_words < args.min_words:
        raise DraftgymError(
            f"--max-words is {args.max_words}, --min-words {args.min_words}",
            "no prompt is as long as both say: raise --max-words",
        )
    strange = [wish for wish in args.wishes if wish not in WISHES]
    if strange or not args.wishes:
        raise DraftgymError(
            f"--wishes are {list(args.wishes)}", f"name some of {', '.join(WISHES)}"
        )
    make_rule(None, args.temperature, args.seed, vocab_size=1, sampling=args.sampling)
    if args.temperature == 0:
        raise DraftgymError(
            "at --temperature 0 every text of a kind would be the same", "sample: 1 is usual"
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym ask`."""
    args = tyro.cli(AskArgs, args=arguments, description=__doc__, prog="draftgym ask")
    texts, tokens, done_before, figures = ask(args)
    print(f"{args.out}: {texts} texts, {tokens} tokens written ({done_before} texts were there)")
    print(f"{args.out / 'prompts.jsonl'}: {figures['prompts']} prompts, {_told(figures)}")


def _told(figures: Mapping[str, Any]) -> str:
    """How many of which category, and how many were left out for which reason."""
    counts = [
        ", ".join(f"{count} {what}" for what, count in figures[part].items())
        for part in ("by_category", "left_out")
    ]
    return f"{counts[0]}; left out: {counts[1] or 'none'}"
