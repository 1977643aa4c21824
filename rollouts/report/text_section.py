"""The part of a report that shows the texts, one at a time, by prompt and policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation
from draftgym.decoding.model.target import Target
from draftgym.rollouts.report.pieces import Pieces
from draftgym.rollouts.report.rows import Evaluation, Texts, first_difference, index_texts
from draftgym.rollouts.report.text_view import drafter_classes, render_text, visible


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
