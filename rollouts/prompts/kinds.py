"""What kind of text a prompt asks for, told by its words.

A model that is asked for a prompt of some kind often writes one of another, so prompts are sorted
by what they are. The patterns are rough and of English; what none of them knows is `chat`.
"""

from __future__ import annotations

import re

KINDS = ("chat", "code", "math", "summary", "structured")
"""The categories of the shipped prompts."""
PASTED = 15
"""Words that a text to summarise has at least."""
LONGEST_REQUEST = 40
"""Words that the line which asks for a summary has at most."""


def _pattern(*choices: str) -> re.Pattern[str]:
    """Any of some words or patterns."""
    return re.compile(rf"\b(?:{'|'.join(choices)})(?!\w)", re.IGNORECASE)


_SUMMARY = _pattern(
    r"summari[sz]e|summary|abstract|sum (?:\w+ )?(?:up|following)|tl;?dr|gist|condense|shorten",
    r"(?:main|key) (?:points?|ideas?|facts?)|in (?:your own|fewer|simple|plain) words",
    r"headlines?|minutes of|boil .{1,30} down|what was agreed",
)
_CODE_LINE = re.compile(
    r"```|^\s*(?:def \w+\(|class \w+[:({]|import \w+$|from \w+ import |#include|public static |"
    r"function \w+\(|(?:const|let|var) \w+ ?=|SELECT .+ FROM |for \(\w+)",
    re.MULTILINE,
)
_LANGUAGE = _pattern(
    r"python|javascript|typescript|sql|c\+\+|c#|golang|php|bash|html and css|css|node\.?js|react",
    r"numpy|pandas|django|flask|shell script|(?-i:Java|Rust|Ruby|Swift|Kotlin|Perl|Scala|Go|R|C)",
)
_CODE_WORD = _pattern(
    r"functions?|methods?|scripts?|programs?|code|class(?:es)?|algorithms?|quer(?:y|ies)|apis?",
    r"loops?|arrays?|strings?|integers?|dictionar(?:y|ies)|library|variables?|database|debug|bug",
    r"implement(?:s|ed|ation)?|compiler?|recursi(?:ve|on)|syntax|modules?|parameters?|parser?",
    r"web ?page",
)
_CODE_REQUEST = re.compile(
    r"\b(?:in|with|using) (?:python|java|javascript|c\+\+|c#|php|bash|sql)(?!\w)|"
    r"\b(?:write|create|implement|build|develop|design|fix|debug|explain|optimi[sz]e)\b.{0,60}\b"
    r"(?:algorithm|sql|regex|regular expression|source code|unit tests?|code snippet|pseudocode|"
    r"linked list|binary (?:tree|search)|function (?:that|to|which|called|named))\b",
    re.IGNORECASE | re.DOTALL,
)
_COUNTED = r"(?:\d+|two|three|four|five|six|seven|eight|nine|ten|some|the (?:top|main|first))"
_STRUCTURED = _pattern(
    r"json|yaml|xml|csv|(?:markdown|html) (?:table|list)|insert statements?|columns|checklist",
    r"(?:as|in|into|make|create|build|draw) an? (?:\w+ ){0,2}table|table (?:of|with|showing)",
    r"table comparing|(?:bullet(?:ed)?|numbered|ordered)[- ](?:points?|lists?)",
    r"(?:to-?do|shopping|packing) list",
    r"(?:make|create|give me|write|generate|provide)(?: me)? an? (?:\w+ ){0,2}list",
)
_LIST = re.compile(rf"(?:^|[.!?:\n]\s*)(?:please )?(?:list|name|give me) {_COUNTED}\b", re.I)
_NUMBER = re.compile(
    r"(?<![\w.])(?!(?:1[5-9]|20)\d\d(?![\w%]))\d[\d,.]*(?:%|(?!\w)|(?= ?(?:[kcm]?m|kg|g|l|ml|h)\b))"
    r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|"
    r"forty|fifty|hundred|thousand|half|third|quarter|twice|double|triple|dozen)\b",
    re.IGNORECASE,
)
"""Neither years nor ordinals nor names such as 5G."""
_MEASURE = (
    r"(?:totals?|sum|area|average|mean|value|probability|volume|perimeter|length|distance|cost|"
    r"price|product|difference|ratio|number|amount|speed|term|size|weight|height|width|profit|"
    r"percentage|chance|result|remainder|age|angle|radius|score|salary|discount|fraction)"
)
_QUANTITY = _pattern(
    r"how (?:many|much|far|long|old|fast|tall|big|heavy|high|deep)|calculate|compute|solve",
    r"simplify|what percentage|equation|what is \d|prime numbers?|find (?:x|y|out how)",
    rf"(?:find|determine|evaluate) (?:its|the|their) (?:\w+ ){{0,2}}{_MEASURE}",
    rf"what(?:'s| is| are| was| were| will be| would be) (?:\w+ ){{0,4}}{_MEASURE}",
    rf"what {_MEASURE}",
)
_ADVICE = _pattern(
    r"I(?:'m| am) (?:an?|the|in|on|not|\w+ing)|I(?:'ve| have) (?:a|an|been|the|to)|I(?:'d| would)",
    r"I (?:want|need) to|can you|could you|(?:how|what) (?:do|can|should|could) (?:I|we)|should I",
    r"help me|my (?:task|goal|plan|budget|team|company|boss|partner)",
)
"""Words of somebody who has numbers in mind, but no exercise."""
_EQUATION = re.compile(r"[\w)]\s*(?:[=^]|\\frac|[-+*/\u00d7\u00f7]\s*\d).*\d|\d\s*[=^]")
_MATHS = _pattern(
    r"derivative of|integral of|solve for \w|quadratic equation|hypotenuse|prime factori[sz]ation",
    r"greatest common (?:divisor|factor)|least common multiple|system of (?:linear )?equations",
    r"(?:area|perimeter|circumference|volume) of an? (?:circle|square|rectangle|triangle|sphere)",
    r"volume of an? cube|simplify the (?:expression|fraction)",
)
_OF_A_TEXT = r"(?:article|passage|paragraph|text|dialogue|conversation|story|poem|essay|speech)"
_OF_A_THING = r"(?:code|function|list|table|data|sentences?|numbers|equations?|e-?mail|document)"
_POINTING = r"\b(?:following|attached|provided|below|above)(?: \w+){0,2}? "
_LACKS_TEXT = re.compile(_POINTING + _OF_A_TEXT + r"\b|\bthis " + _OF_A_TEXT + r"\b", re.I)
_LACKS_THING = re.compile(
    rf"{_POINTING}(?:{_OF_A_TEXT}|{_OF_A_THING})\W*$|{_OF_A_THING} (?:below|above)\W*$", re.I
)


def kind_of(text: str) -> str:
    """Which of `KINDS` a prompt is.

    Args:
        text: What the user says.
    """
    if _asks_for_summary(text):
        return "summary"
    if _asks_for_code(text):
        return "code"
    if _STRUCTURED.search(text) or _LIST.search(text):
        return "structured"
    return "math" if _asks_for_quantity(text) else "chat"


def lacks_its_text(text: str) -> bool:
    """Whether a prompt is about a text that the user forgot to paste."""
    body = re.split(r"[:\n]", text, maxsplit=1)[1:]
    if len(text.split()) >= PASTED + LONGEST_REQUEST or (body and len(body[0].split()) > 3):
        return False
    return bool(_LACKS_TEXT.search(text) or _LACKS_THING.search(text))


def _asks_for_summary(text: str) -> bool:
    """Whether the first or the last line asks for a summary, and there is a text to it."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (*lines[:1], *lines[-1:]):
        head, colon, body = line.partition(":")
        said = head if colon and len(body.split()) >= PASTED else line
        rest = len(text.split()) - len(said.split())
        short = len(said.split()) <= LONGEST_REQUEST
        if short and rest >= PASTED and _SUMMARY.search(said):
            return True
    return False


def _asks_for_code(text: str) -> bool:
    """Whether there is code, a request for it, or a language with what is written in it."""
    words = {word.lower().rstrip("s") for word in _CODE_WORD.findall(text)}
    return bool(
        _CODE_LINE.search(text)
        or _CODE_REQUEST.search(text)
        or (words and _LANGUAGE.search(text))
        or len(words) >= 3
    )


def _asks_for_quantity(text: str) -> bool:
    """Whether numbers are given and another is asked for, or there are the words of an exercise."""
    if _MATHS.search(text):
        return True
    numbers, asks = len(_NUMBER.findall(text)), bool(_QUANTITY.search(text))
    if numbers and asks and _EQUATION.search(text):
        return True
    asks |= numbers >= 3 and "?" in text and "\n" not in text.strip()
    return numbers >= 2 and asks and not _ADVICE.search(text)
