"""What a target is made to write, so that prompts come of it.

Most prompts are written as Magpie does (arXiv 2406.08464): the chat template is left open behind
the beginning of a user's turn, and the target goes on with what a user would say, in the light of a
system prompt that tells what its users ask about. Pasted texts it writes badly that way. So
for requests to summarise it is asked, as an assistant, for an article or a dialogue, which is then
put into a request of ours.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.messages import encode_text, write_messages
from draftgym.decoding.model.target import Target
from draftgym.decoding.stops import NO_STOPS, Stops

FEWEST_WORDS = 45
"""Of an article or a dialogue that is worth a summary."""
FEWEST_LINES = 4
"""Of a dialogue: what somebody says."""

_SUBJECTS = (
    *("a lighthouse", "a school garden", "a lost dog", "a new tram line", "a bakery", "honeybees"),
    *("a village football club", "a chess tournament", "an old bridge", "a flooded cellar"),
    *("a museum of clocks", "a night train", "a power cut", "a jazz festival", "solar panels"),
    *("a repair shop for bicycles", "a public library", "a heat wave", "an earthquake drill"),
    *("a wedding in the rain", "a broken laptop", "a job interview", "moving to a new flat"),
    *("a delayed flight", "a surprise party", "a camping trip", "a science fair", "a marathon"),
    *("learning to cook", "a visit to the dentist", "a fishing harbour", "a film shot in town"),
    *("a start-up company", "a city budget", "a court case", "a hospital", "a volcano", "coral"),
    *("a rare bird", "the history of paper", "a space telescope", "antibiotics", "coffee farming"),
    *("an art theft", "a charity concert", "a strike of bus drivers", "a bank", "a snow storm"),
    *("a group project at university", "a rented car", "neighbours and noise", "a cat and a vet"),
    *("an online order that went wrong", "a gym membership", "a school trip", "a book club"),
)
_ARTICLES = (
    *("a local news report", "a magazine article", "a short encyclopedia entry", "a blog entry"),
    *("a letter to the editor", "a press release", "a diary entry", "a product review"),
    *("a scientific abstract", "a travel report", "a short story", "an email to colleagues"),
)
_SPEAKERS = (
    *("Anna", "Ben", "Chidi", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ines", "Jonas", "Kofi"),
    *("Lena", "Marek", "Nadia", "Omar", "Paula", "Rosa", "Samir", "Tess", "Viktor", "Wanda"),
)
_LANGUAGES = (
    *("Python", "JavaScript", "Java", "C++", "SQL", "Bash", "TypeScript", "Go", "C#", "Rust"),
    *("HTML and CSS", "Python", "Python"),
)
_EXERCISES = (
    *("arithmetic", "word problems", "percentages", "algebra", "geometry", "probability", "money"),
    *("speed and distance", "fractions", "number theory", "calculus", "statistics", "time", "work"),
)
_FORMS = (
    *("JSON", "Markdown tables", "YAML", "CSV", "numbered lists", "bulleted lists", "XML", "JSON"),
)
_SYSTEMS = {
    "code": "You are an assistant for programmers. The user asks you to write, explain or correct "
    "code in {0}, and says precisely what it is to do.",
    "math": "You solve exercises in mathematics step by step. The user gives you one exercise on "
    "{0}, with all numbers in it, and asks for the result.",
    "structured": "You answer in {0}. The user asks you for facts, plans or made-up data in that "
    "form, and says which fields or items they want.",
}
_DRAWN = {"code": _LANGUAGES, "math": _EXERCISES, "structured": _FORMS}
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
    draw = random.Random(seed)
    if wish == "article":
        request = f"Write {draw.choice(_ARTICLES)} of about 120 words about "
        return Opening(target.encode(request + draw.choice(_SUBJECTS) + "."))
    if wish == "dialogue":
        one, other = draw.sample(_SPEAKERS, 2)
        return Opening(
            target.encode(
                f"Write a chat of about eight lines between {one} and {other} about "
                f"{draw.choice(_SUBJECTS)}. Begin every line with the name of who speaks and a "
                "colon."
            )
        )
    told = _SYSTEMS.get(wish)
    return user_turn(target, told and told.format(draw.choice(_DRAWN[wish])))


def user_turn(target: Target, system: str | None) -> Opening:
    """The beginning of a user's turn in the target's chat template.

    Args:
        target: The target.
        system: What it is told before; None leaves that to its template.

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
    ids = encode_text(writer, before, target.name)
    target.check_tokens(ids)
    return Opening(ids, _turn_end(target, behind.strip()))


def prompt_of(wish: str, text: str, seed: int) -> str | None:
    """The prompt that a finished text makes; None where it is not what was wished for.

    Args:
        wish: One of `WISHES`.
        text: What the target wrote.
        seed: Draws how it is put.
    """
    text = text.strip()
    if wish not in ("article", "dialogue"):
        return text
    text = _PREAMBLE.sub("", text).strip()
    spoken = [line for line in text.splitlines() if re.match(r"\W*\w+(?:[ .]+\w+)?\W*:", line)]
    if len(text.split()) < FEWEST_WORDS or (wish == "dialogue" and len(spoken) < FEWEST_LINES):
        return None
    draw = random.Random(~seed)
    requests = _ABOUT_ARTICLES if wish == "article" else _ABOUT_DIALOGUES
    return draw.choice(requests).format(draw.choice(_LENGTHS), text)


def _turn_end(target: Target, behind: str) -> Stops:
    """What ends a user's turn: a token of the template's where there is one, else its words."""
    if not behind:
        return NO_STOPS
    first = int(encode_text(target.tokenizer, behind, target.name)[0])
    if first in target.tokenizer.added_tokens_decoder:
        return Stops(token_ids=(first,))
    return Stops(strings=(behind.splitlines()[0],))
