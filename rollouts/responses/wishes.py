"""What a target is made to write, so that prompts come of it.

Most prompts are written as Magpie does (arXiv 2406.08464): the chat template is left open behind
the beginning of a user's turn, and the target goes on with what a user would say, in the light of a
system prompt that tells what its users ask about. A small model does not heed that much, so a turn
that is to be an exercise, or to ask for a table or a list, begins with words that are hard to go on
from otherwise. Pasted texts it writes badly that way: for requests to summarise it is asked, as an
assistant, for an article or a dialogue, which is then put into a request of ours.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.messages import encode_text, write_messages
from draftgym.decoding.model.target import Target
from draftgym.decoding.text.stops import NO_STOPS, Stops
from draftgym.rollouts.responses.beginnings import SUBJECTS, beginning_of
from draftgym.rollouts.responses.wished_texts import Written

FEWEST_WORDS = 45
"""Of an article or a dialogue that is worth a summary."""
FEWEST_LINES, MOST_LINES = 4, 10
"""Of a dialogue: what somebody says. Small models find no end; more lines are cut."""
FEWEST_OWN = 3
"""Words that follow on ours; the beginning alone is no prompt."""

_ARTICLES = (
    *("a local news report", "a magazine article", "a short encyclopedia entry", "a blog entry"),
    *("a letter to the editor", "a press release", "a diary entry", "a product review"),
    *("a scientific abstract", "a travel report", "a short story", "an email to colleagues"),
)
_LANGUAGES = (
    *("Python", "JavaScript", "Java", "C++", "SQL", "Bash", "TypeScript", "Go", "C#", "Rust"),
    *("HTML and CSS", "Python", "Python"),
)
_SYSTEMS = {
    "code": "You are an assistant for programmers. The user asks you to write, explain or correct "
    "code in {0}, and says precisely what it is to do.",
    "math": "You solve exercises in mathematics step by step. The user gives you one exercise, "
    "with all numbers in it, and asks for the result.",
    "structured": "You answer with tables, lists, JSON and other data. The user asks you for "
    "facts, plans or made-up data in such a form, and says which fields or items they want.",
}
_ABOUT_ARTICLES = (
    "Summarise the following text in {0}.\n\n{1}",
    "{1}\n\nSummarise the text above in {0}.",
    "Summarize: {1}",
    "Sum this up in {0}:\n\n{1}",
    "What are the main points here?\n\n{1}",
    "Give me the gist in {0}.\n\n{1}",
    "{1}\n\nTL;DR, in {0}?",
    "Shorten this text to {0}.\n\n{1}",
    "Find a headline for this, and write a summary.\n\n{1}",
    "Write a summary for a busy reader.\n\n{1}",
)
_ABOUT_DIALOGUES = (
    "Summarise this conversation in {0}.\n\n{1}",
    "{1}\n\nSum up the conversation in {0}.",
    "Summarize this dialogue: {1}",
    "What was agreed? A summary in {0}, please.\n\n{1}",
    "Write a summary of this chat.\n\n{1}",
    "{1}\n\nGive the gist of it in {0}.",
)
_LENGTHS = (
    *("one sentence", "two sentences", "three sentences", "about 30 words", "about 50 words"),
    *("a short paragraph", "three bullet points"),
)
_PREAMBLE = re.compile(r"^(?:sure|here|certainly|of course|below)\b[^\n]{0,120}:\s*\n", re.I)
_SPEAKS = re.compile(r"[A-Z]\w+(?: \w+)?: *\S")
_MARK = "9f2c7e51"  # stands where the user's text will be


@dataclass(frozen=True)
class Opening:
    """What the target goes on from, and where it has said enough.

    Attributes:
        ids: Token ids `[m]`.
        stops: What ends the text beside the target's own ends.
    """

    ids: Tensor
    stops: Stops = NO_STOPS


WISHES = ("chat", "code", "math", "structured", "article", "dialogue")
"""What can be asked for; `chat` is asked for with no system prompt."""


def opening_of(target: Target, wish: str, seed: int) -> Opening:
    """What makes the target write a text of some kind.

    Args:
        target: The target.
        wish: One of `WISHES`.
        seed: Draws what it is about.

    Raises:
        DraftgymError: The target has no chat template, or none that takes a system prompt.
    """
    draw, begun = random.Random(seed), beginning_of(wish, seed)
    if wish == "article":
        request = f"Write {draw.choice(_ARTICLES)} of about 120 words about "
        return Opening(target.encode(request + draw.choice(SUBJECTS) + "."))
    if wish == "dialogue":
        asked = target.encode(
            "Write a chat of about eight lines between two people. Begin every line with the name "
            "of who speaks and a colon."
        )
        said = encode_text(target.tokenizer, begun, target.name).to(asked.device)
        return Opening(torch.cat([asked, said]))
    told = _SYSTEMS.get(wish)
    return user_turn(target, told and told.format(draw.choice(_LANGUAGES)), begun)


def user_turn(target: Target, system: str | None, begun: str = "") -> Opening:
    """The beginning of a user's turn in the target's chat template.

    Args:
        target: The target.
        system: What it is told before; None leaves that to its template.
        begun: The user's first words.

    Raises:
        DraftgymError: As `opening_of`.
    """
    writer = target.tokenizer
    if not getattr(writer, "chat_template", None):
        raise DraftgymError(
            f"target {target.name!r} has no chat template, so no turn of a user to write",
            "name a target that was trained to chat, or bring prompts of your own",
        )
    said = [] if system is None else [{"role": "system", "content": system}]
    written = write_messages(writer, [*said, {"role": "user", "content": _MARK}], target.name, {})
    before, _, behind = written.text.partition(_MARK)
    ids = encode_text(writer, before + begun, target.name)
    target.check_tokens(ids)
    return Opening(ids, _turn_end(target, behind.strip()))


def prompt_of(wish: str, written: Written, seed: int) -> Written | None:
    """The prompt that a text makes; None where it is not what was wished for.

    Args:
        wish: One of `WISHES`.
        written: What the target wrote.
        seed: Draws how it is put.
    """
    begun = beginning_of(wish, seed)
    if begun and len(written.text.split()) < FEWEST_OWN:
        return None
    text = begun + written.text
    if wish not in ("article", "dialogue"):
        return Written(text.strip(), written.ended)
    if wish == "dialogue":
        text, ended = _spoken(text, written.ended), True
    else:
        text, ended = _PREAMBLE.sub("", text.strip()).strip(), written.ended
    if len(text.split()) < FEWEST_WORDS or (
        wish == "dialogue" and text.count("\n") + 1 < FEWEST_LINES
    ):
        return None
    draw = random.Random(~seed)
    requests = _ABOUT_ARTICLES if wish == "article" else _ABOUT_DIALOGUES
    return Written(draw.choice(requests).format(draw.choice(_LENGTHS), text), ended)


def _spoken(text: str, ended: bool) -> str:
    """The first lines of a dialogue, as far as somebody speaks in them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = lines if ended else lines[:-1]  # the last one was cut
    return "\n".join(takewhile(_SPEAKS.match, whole[:MOST_LINES]))


def _turn_end(target: Target, behind: str) -> Stops:
    """What ends a user's turn: a token of the template's where there is one, else its words."""
    if not behind:
        return NO_STOPS
    first = int(encode_text(target.tokenizer, behind, target.name)[0])
    if first in target.tokenizer.added_tokens_decoder:
        return Stops(token_ids=(first,))
    return Stops(strings=(behind.splitlines()[0],))
