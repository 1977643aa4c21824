"""A decoded text as HTML: every token in the colour of its drafter, every round, every rejection.

Classes in the markup: `round` holds a round's tokens, `d0`, `d1`, ... say who drafted (see
`drafter_classes`), `own` marks the target's own tokens, `part` a token that is only a part of a
character, `special` one without a text. What was drafted and not kept stands in `<del>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from draftgym.decoding.decoder import DecodedRound, Generation
from draftgym.rollouts.report.pieces import Pieces

CONTEXT = 8
"""Tokens of the text that are decoded in front of rejected ones."""

LINE_END = '<i class="nl"></i>\n'
"""A line break that can be seen, and so can the token that it belongs to."""

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which HTML does not allow, to their pictures."""


def drafter_classes(texts: Iterable[Generation]) -> dict[str, str]:
    """CSS class of every drafter that drafted in the texts."""
    rounds = [item.record for text in texts for item in text.rounds]
    names = dict.fromkeys(one.arm.drafter for one in rounds if one.arm.drafts)
    return {name: f"d{index}" for index, name in enumerate(sorted(names))}


def render_text(text: Generation, pieces: Pieces, classes: Mapping[str, str]) -> str:
    """All tokens of a text, round by round.

    Args:
        text: A finished text.
        pieces: Of the target that wrote it.
        classes: Of its drafters.

    Returns:
        HTML for an element that keeps white space.
    """
    shown = pieces.of(text.tokens)
    tip = f"prefill: the prompt and the first token, {1000 * text.prefill_seconds:.1f} ms"
    first = _token(text.tokens[0], shown[0], pieces, "own")
    rounds, at = [f'<span class="round" title="{tip}">{first}</span>'], 1
    for number, item in enumerate(text.rounds, start=1):
        end = at + len(item.record.committed)
        before = text.tokens[max(0, at - CONTEXT) : at]
        rounds.append(_round(number, item, shown[at:end], before, pieces, classes))
        at = end
    return "".join(rounds)


def visible(text: str) -> str:
    """A text as the page shows it, before escaping: control characters as pictures."""
    return text.translate(CONTROLS)


def _round(
    number: int,
    item: DecodedRound,
    shown: Sequence[str],
    before: Sequence[int],
    pieces: Pieces,
    classes: Mapping[str, str],
) -> str:
    record = item.record
    committed = list(zip(record.committed, shown, strict=True))
    drafted = [_token(*one, pieces) for one in committed[: record.accepted]]
    own = [_token(*one, pieces, "own") for one in committed[record.accepted :]]
    kept = set(record.path)
    lost = [token for node, token in enumerate(record.drafted) if node not in kept]
    rejected = ""
    if lost and len(record.drafted) == record.depth:
        rejected = _rejected_chain(lost, [*before, *record.committed[: record.accepted]], pieces)
    elif lost:
        rejected = _rejected_tree(lost, before, pieces)
    kind = f"round {classes.get(record.arm.drafter, '')}".strip()
    body = "".join([*drafted, rejected, *own])
    return f'<span class="{kind}" title="{_tip(number, item)}">{body}</span>'


def _rejected_chain(lost: Sequence[int], before: Sequence[int], pieces: Pieces) -> str:
    """In the place where they would have stood."""
    shown = pieces.after(before, lost)
    tokens = (_token(token, piece, pieces) for token, piece in zip(lost, shown, strict=True))
    return f"<del>{''.join(tokens)}</del>"


def _rejected_tree(lost: Sequence[int], before: Sequence[int], pieces: Pieces) -> str:
    """Their number; which they were can be read in the tooltip."""
    words = []
    for token in lost:
        word = visible(pieces.after(before, [token])[0]) or pieces.name(token) or "\ufffd"
        words.append(word.replace("\n", "\u21b5").replace(" ", "\u2423"))
    tip = f"{len(lost)} nodes of the tree not taken: {' · '.join(words)}"
    return f'<del class="tree" title="{escape(tip)}" data-nodes="{len(lost)}"></del>'


def _token(token: int, piece: str, pieces: Pieces, *kinds: str) -> str:
    label = text = ""
    if piece:
        text = escape(visible(piece)).replace("\n", LINE_END)
    elif (name := pieces.name(token)) is not None:
        kinds, label = (*kinds, "special"), f' data-name="{escape(name)}"'
    else:
        kinds = (*kinds, "part")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<span{kind}{label}>{text}</span>"


def _tip(number: int, item: DecodedRound) -> str:
    record = item.record
    facts = [f"round {number}: {record.arm}"]
    if record.arm.drafts:
        facts.append(f"{len(record.drafted)} drafted, {record.accepted} accepted")
    if record.caught_up:
        facts.append(f"{record.caught_up} caught up")
    facts.append(f"{1000 * (record.times.total + item.decide_seconds):.1f} ms")
    return escape(", ".join(facts))
