"""Write a text by speculative decoding: a policy picks a drafter each round, the target verifies.

    $ draftgym generate --prompt "Why is the sky blue?" --stream --stats
    $ draftgym generate --prompt "Write a haiku." --policy eagle3:6 --temperature 0.8 --seed 1
    $ cat article.txt | draftgym generate --prompt - --policy checkpoints/router-smollm2-135m
    $ draftgym generate --chat --system "You are a pirate."
    $ draftgym generate --target my-llava --image cat.png --prompt "What is it?"

The policy changes how fast the text comes, never what it says.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode, parse_json
from draftgym.decoding.model.generic.shared import TENSOR_PARALLEL
from draftgym.decoding.model.prompts.images import open_image
from draftgym.decoding.text.chat import Chat
from draftgym.decoding.text.stream import TextStream
from draftgym.drafters.training.loop.team import joined
from draftgym.policies.registry import default_policy, make_policy
from draftgym.rollouts.decode.options import CatchUpOptions
from draftgym.rollouts.report.table import make_console, print_stats

EXIT = "/exit"
TEMPLATE_REMEDY = """write a JSON object, as in --template-options '{"enable_thinking": false}'"""


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(CatchUpOptions):
    """Write a text with a target, drafters and a policy.

    Attributes:
        prompt: What to say to the model; - reads standard input. With --chat the first turn.
        image: What to show with the prompt (in a chat, with the first turn), to a target that
            reads images: --image a.png --image b.png shows two, in this order.
        system: What the model is told before the first turn.
        chat: Talk over several turns: each line of standard input is one, and answers are streamed.
            /exit or Ctrl-D ends it. What the model knows of the earlier turns is kept, not run
            again.
        template_options: What the model's chat template reads beside the messages, as JSON: for
            example {"enable_thinking": false}.
        policy: Who chooses the drafter each round: plain, a drafter (eagle3), a drafter with a
            draft length (eagle3:6) or a tree's depth and nodes (eagle3:5x16), random, entropy,
            entropy:1.5 (nats), the bandits ucb and ucb-time, survival (how likely a path must be to
            be verified), router (the shipped one), or the folder of a trained policy. Those that
            choose take arms, as in random@eagle3:2,ngram:8,plain. Arms of several drafters are
            written as in ngram:8>eagle3:3x6 and eagle3:3x6+ngram:8. The policy changes the speed,
            never the text. Default: who copies (suffix) where something matches, else a network's
            small tree.
        max_new_tokens: Tokens to write at most.
        stream: Print the text while it is written.
        stats: Print every round and totals to standard error: arm, drafted and accepted tokens,
            times.
    """

    prompt: str | None = None
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    system: str | None = None
    chat: bool = False
    template_options: str = "{}"
    policy: str | None = None
    max_new_tokens: int = 256
    stream: bool = False
    stats: bool = False


def generate(args: GenerateArgs) -> Generation:
    """Writes the text that the command line asks for and prints it; with `chat`, every answer.

    Returns:
        The text, of a chat the last one.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    args.check()
    options = parse_json(args.template_options, "--template-options", TEMPLATE_REMEDY)
    if args.prompt is None and not args.chat:
        raise DraftgymError("there is no prompt", "give one with --prompt, or talk with --chat")
    if args.prompt == "-" and args.chat:
        raise DraftgymError("--chat reads its turns from standard input", "leave out --prompt -")
    prompt = read_standard_input() if args.prompt == "-" else args.prompt
    check_unicode(prompt or "", "the prompt")
    images = [open_image(path) for path in args.image]
    target, drafters = args.load()
    args = args.as_asked_by(target)
    spec = args.policy or default_policy(
        drafters, target.decoder.draws_trees, target.device.type == "cpu"
    )
    policy = make_policy(
        spec, drafters, target, args.seed, partial(load_cost_model, target, drafters)
    )
    chat = Chat(SpeculativeDecoder(target, drafters, policy), args.system, options)
    result = Generation()
    for turn, text in enumerate(turns(prompt, args.chat)):
        result = _answer(args, chat, text, images if turn == 0 else [])
        if args.stats:
            console = make_console(stderr=True)
            console.print(f"policy: {spec}", highlight=False, markup=False)
            print_stats(result, target, console)
    return result


def turns(first: str | None, several: bool) -> Iterator[str]:
    """What the user says: the prompt, and in a chat every line of standard input up to /exit."""
    if first is not None:
        yield first
    while several:
        line = read_line()
        if line is None or line.strip() == EXIT:
            return
        if line.strip():
            yield line.strip()


def read_line() -> str | None:
    """A line that the user types, or the next one of a pipe; None at the end.

    Raises:
        DraftgymError: It is not UTF-8.
    """
    if sys.stdin.isatty():
        try:
            return input("> ")
        except EOFError:
            print()
            return None
    data = sys.stdin.buffer.readline()
    return _from_utf8(data) if data else None


def _answer(args: GenerateArgs, chat: Chat, turn: str, images: list[Any]) -> Generation:
    """Lets the target answer a turn, and prints it."""
    settings, target = args.settings, chat.decoder.target
    stream = TextStream(target.decode, _emit, settings.stops)
    streamed = args.stream or args.chat
    result = chat.say(
        turn,
        settings.stops,
        images,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        verification=settings.verification,
        sampling=settings.sampling,
        on_tokens=stream.add if streamed else None,
        catching_up=settings.catching_up,
    )
    if streamed:
        stream.close()
        print(flush=True)
    else:
        print(settings.stops.cut(target.decode(result.tokens)))
    return result


def read_standard_input() -> str:
    """What comes through the pipe, which is UTF-8 whatever the terminal speaks.

    Raises:
        DraftgymError: It is not; the message names the first strange byte.
    """
    text = _from_utf8(sys.stdin.buffer.read())
    return io.StringIO(text, newline=None).read()  # lines end in one way


def _from_utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DraftgymError(
            f"standard input is not UTF-8: byte {error.start + 1} is {data[error.start]:#04x}",
            "convert it first: iconv -f latin1 -t utf-8 FILE | draftgym generate --prompt -",
        ) from error


def _emit(piece: str) -> None:
    print(piece, end="", flush=True)


def main(arguments: Sequence[str]) -> None:
    """`draftgym generate`."""
    args = tyro.cli(GenerateArgs, args=arguments, description=__doc__, prog="draftgym generate")
    if args.device == TENSOR_PARALLEL:
        generate_together(args)
    else:
        generate(args)


def generate_together(args: GenerateArgs) -> None:
    """The same by the processes that torchrun has started, of which one prints.

    Raises:
        DraftgymError: As `generate`; or a chat, whose turns one process alone could read.
    """
    if args.chat:
        raise DraftgymError(
            f"a chat has one reader, and --device {TENSOR_PARALLEL} several",
            "give the turn with --prompt, or spread the target by --device balanced",
        )
    with joined(args.device) as team:
        if args.prompt == "-":
            args = replace(args, prompt=team.led(read_standard_input))
        generate(args if team.leads else replace(args, stats=False))
