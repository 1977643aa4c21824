"""Write a text by speculative decoding: a policy picks a drafter each round, the target verifies.

    $ draftgym generate --prompt "Why is the sky blue?" --stream --stats
    $ draftgym generate --prompt "Write a haiku." --policy eagle3:6 --temperature 0.8 --seed 1
    $ cat article.txt | draftgym generate --prompt - --policy checkpoints/router-smollm2-135m

The policy changes how fast the text comes, never what it says.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import tyro

from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.decoder import Generation, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode
from draftgym.decoding.verify.rules import make_rule
from draftgym.policies.registry import default_policy, make_policy, shipped_router
from draftgym.rollouts.decode.options import CatchUpOptions
from draftgym.rollouts.report.table import make_console, print_stats

UNFINISHED = "\ufffd"
"""What half a character decodes to."""


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(CatchUpOptions):
    """Write a text with a target, drafters and a policy.

    Attributes:
        prompt: What to say to the model; - reads standard input.
        policy: Who chooses the drafter each round: plain, a drafter (eagle3), a drafter with a
            draft length (eagle3:6) or a tree's depth and nodes (eagle3:5x16), random, entropy,
            entropy:1.5 (nats), the bandits ucb and ucb-time, router (the shipped one), or the
            folder of a trained policy. Those that choose take arms, as in
            random@eagle3:2,ngram:8,plain. The policy changes the speed, never the text. Default:
            the shipped router where it fits the target, else entropy, else a drafter.
        max_new_tokens: Tokens to write at most.
        stream: Print the text while it is written.
        stats: Print every round and totals to standard error: arm, drafted and accepted tokens,
            times.
    """

    prompt: str
    policy: str | None = None
    max_new_tokens: int = 256
    stream: bool = False
    stats: bool = False


class TextStream:
    """Token ids in, pieces of text out; a piece is never taken back.

    Bytes of one character can come in several tokens, so text that may still change (unfinished
    characters, trailing blanks, which some tokenizers drop before punctuation) is held back.

    Args:
        decode: Token ids to text.
        emit: Takes the pieces.
    """

    def __init__(self, decode: Callable[[list[int]], str], emit: Callable[[str], None]) -> None:
        self._decode, self._emit = decode, emit
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, tokens: list[int]) -> None:
        """Takes a round's tokens and emits what is settled."""
        self._tokens += tokens
        text = self._decode(self._tokens)
        self._show(text.rstrip().rstrip(UNFINISHED).rstrip())

    def close(self) -> None:
        """Emits what was held back."""
        self._show(self._decode(self._tokens))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown):
            self._emit(text[len(self._shown) :])
            self._shown = text


def generate(args: GenerateArgs) -> Generation:
    """Writes the text that the command line asks for and prints it.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    make_rule(args.verification, args.temperature, args.seed, vocab_size=1)
    prompt = read_standard_input() if args.prompt == "-" else args.prompt
    check_unicode(prompt, "the prompt")
    target, drafters = args.load()
    spec = args.policy or default_policy(drafters, shipped_router(target))
    policy = make_policy(
        spec, drafters, target, args.seed, partial(load_cost_model, target, drafters)
    )
    decoder = SpeculativeDecoder(target, drafters, policy)
    stream = TextStream(target.decode, _emit)
    result = decoder.generate(
        prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        verification=args.verification,
        on_tokens=stream.add if args.stream else None,
        catching_up=args.settings.catching_up,
    )
    if args.stream:
        stream.close()
        print()
    else:
        print(target.decode(result.tokens))
    if args.stats:
        console = make_console(stderr=True)
        console.print(f"policy: {spec}", highlight=False, markup=False)
        print_stats(result, target, console)
    return result


def read_standard_input() -> str:
    """What comes through the pipe, which is UTF-8 whatever the terminal speaks.

    Raises:
        DraftgymError: It is not; the message names the first strange byte.
    """
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DraftgymError(
            f"standard input is not UTF-8: byte {error.start + 1} is {data[error.start]:#04x}",
            "convert it first: iconv -f latin1 -t utf-8 FILE | draftgym generate --prompt -",
        ) from error
    return io.StringIO(text, newline=None).read()  # lines end in one way


def _emit(piece: str) -> None:
    print(piece, end="", flush=True)


def main(arguments: Sequence[str]) -> None:
    """`draftgym generate`."""
    generate(tyro.cli(GenerateArgs, args=arguments, description=__doc__, prog="draftgym generate"))
