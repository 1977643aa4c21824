"""Decoded texts as HTML: every token in the colour of its drafter, every round, every rejection.

Classes in the markup: `round` holds a round's tokens, `d0`, `d1`, ... say who drafted (see
`drafter_classes`), `own` marks the target's own tokens, `part` a token that is only a part of a
character, `special` one without a text. What was drafted and not kept stands in `<del>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import DecodedRound, Generation
from draftgym.decoding.model.target import Target
from draftgym.rollouts.report.rows import Evaluation, Texts, first_difference, index_texts


def text_section(result: Evaluation, target: Target) -> str:
    """Choices, a legend, every prompt and every text; all but the first are hidden at first.

    Args:
        result: A finished evaluation.
        target: Decodes its tokens.
    """
    texts = index_texts(result.texts)
    prompts = {text.prompt.question_id: text.prompt for text in result.texts}
    policies = list(result.choices)
    first = len(policies) - 1  # the one a user names last is often the one that matters
    classes, pieces = drafter_classes(text.generation for text in result.texts), Pieces(target)
    names = [f"{one.question_id} ({one.category})" for one in prompts.values()]
    parts = [_controls(names, policies, first), _legend(classes)]
    for number, prompt in enumerate(prompts.values()):
        hidden = " hidden" if number else ""
        asked = escape(visible(prompt.text))
        parts.append(f'<blockquote data-prompt="{number}"{hidden}>{asked}</blockquote>')
        for index, policy in enumerate(policies):
            hidden = "" if (number, index) == (0, first) else " hidden"
            body = _text(texts, policy, prompt.question_id, pieces, classes)
            parts.append(
                f'<article data-prompt="{number}" data-policy="{index}"{hidden}>{body}</article>'
            )
    parts.append('<output id="round"></output>')
    return f'<div class="texts">{"".join(parts)}</div>'


def _text(
    texts: Texts, policy: str, question: str, pieces: Pieces, classes: Mapping[str, str]
) -> str:
    mine, plain = texts[policy, question].generation, texts[PLAIN, question].generation
    written = render_text(mine, pieces, classes)
    return f'<p class="note">{_summary(policy, mine, plain)}</p><div class="text">{written}</div>'


def _summary(policy: str, mine: Generation, plain: Generation) -> str:
    facts = [
        f"<b>{escape(policy)}</b>: {len(mine.tokens)} tokens in {len(mine.rounds)} rounds",
        f"{mine.acceptance_length:.2f} tokens a round",
        f"{mine.tokens_per_second:.1f} tokens/s",
    ]
    if policy != PLAIN:
        if plain.tokens_per_second:
            facts.append(
                f"{mine.tokens_per_second / plain.tokens_per_second:.2f}&times; plain decoding"
            )
        index = first_difference(mine.tokens, plain.tokens)
        facts.append(
            "the same text as plain's" if index is None else f"another text from token {index}"
        )
    return ", ".join(facts)


def _controls(prompts: Sequence[str], policies: Sequence[str], first: int) -> str:
    def choice(name: str, options: Sequence[str], chosen: int) -> str:
        items = "".join(
            f'<option value="{at}"{" selected" if at == chosen else ""}>{escape(one)}</option>'
            for at, one in enumerate(options)
        )
        return f'<label>{name} <select id="{name}">{items}</select></label>'

    return (
        f'<div class="controls">{choice("prompt", prompts, 0)}{choice("policy", policies, first)}'
        '<label><input type="checkbox" id="rejected" checked> rejected drafts</label></div>'
    )


def _legend(classes: Mapping[str, str]) -> str:
    entries = [
        *(
            f'<span class="{css}"><span>{escape(name)}</span></span>'
            for name, css in classes.items()
        ),
        '<span><span class="own">the target\'s own</span></span>',
        "<span><del>rejected</del></span>",
        '<span><del class="tree" data-nodes="5"></del> nodes of a tree not taken</span>',
        '<span><span class="part"></span> part of a character</span>',
    ]
    return f'<p class="legend text">{"".join(entries)}</p>'


CONTEXT = 8
"""Tokens of the text that are decoded in front of rejected ones."""

LINE_END = '<i class="nl"></i>\n'
"""A line break that can be seen, and so can the token that it belongs to."""

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which HTML does not allow, to their pictures."""


def drafter_classes(texts: Iterable[Generation]) -> dict[str, str]:
    """CSS class of every drafter that drafted in the texts."""
    rounds = [item.record for text in texts for item in text.rounds]
    names = dict.fromkeys("+".join(one.drafters) for one in rounds if one.drafters)
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
    kind = f"round {classes.get('+'.join(record.drafters), '')}".strip()
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


class Pieces:
    """Splits texts into their tokens' pieces; the same tokens are split only once.

    Args:
        target: Decodes token ids.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._special = {*target.stop_tokens, *getattr(target.tokenizer, "all_special_ids", ())}
        self._known: dict[tuple[int, ...], list[str]] = {}

    def of(self, tokens: Sequence[int]) -> list[str]:
        """One piece per token; together they are exactly what the target decodes the tokens to.

        A character whose bytes come in several tokens belongs to the last of them, and the pieces
        of the others are empty. So are those of special tokens.
        """
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = self._split(list(tokens))
        return self._known[key]

    def after(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """Pieces of tokens that were drafted behind others and may not have been kept.

        Args:
            before: Some tokens of the text in front of them: some tokenizers drop a text's first
                blank, and a character may have begun there.
            tokens: What was drafted.
        """
        return self._split([*before, *tokens], len(before))

    def name(self, token: int) -> str | None:
        """What a token without a text is called, if it is special (end of text, padding)."""
        if token not in self._special:
            return None
        return str(self._target.tokenizer.convert_ids_to_tokens(token))

    def _split(self, tokens: list[int], skipped: int = 0) -> list[str]:
        """Pieces of the tokens behind the first `skipped`."""
        whole = self._target.decode(tokens)
        settled = _agreement(self._target.decode(tokens[:skipped]), whole)
        pieces = []
        for count in range(skipped + 1, len(tokens) + 1):
            # Half a character decodes to something that the whole text has not got there.
            text = whole if count == len(tokens) else self._target.decode(tokens[:count])
            end = max(settled, _agreement(text, whole))
            pieces.append(whole[settled:end])
            settled = end
        return pieces


def _agreement(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
