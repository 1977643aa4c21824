"""How weak the target is: the share of its answers about held-out scenes that are exactly right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.multimodal.prompts import PromptsArgs, answers_to
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Text


def exactly_right(target: Target, texts: Iterable[Text], asked: PromptsArgs) -> dict[str, Any]:
    """Shares by kind of question, and over all.

    Args:
        target: Who answered.
        texts: Its answers about held-out scenes.
        asked: What their prompts were made with.
    """
    answers = answers_to(asked)
    right: dict[str, list[bool]] = defaultdict(list)
    for text in texts:
        exchange = answers[text.question_id]
        said = target.decode(text.tokens[text.prompt_length :].tolist()).strip()
        right[exchange.kind].append(said == exchange.answer)
    found = [one for row in right.values() for one in row]
    shares = {kind: sum(row) / len(row) for kind, row in sorted(right.items())}
    return {"all": sum(found) / len(found), **shares}
