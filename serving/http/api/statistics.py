"""What an answer tells about how its texts came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from draftgym.serving.http.api.choice import Choice
from draftgym.serving.http.metrics import speculative_decoding


def usage_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens, as OpenAI's API counts them; prompts once, however many texts they have."""
    prompts = [one for one in choices if one.asked.first]
    prompt = sum(len(one.asked.request.prompt) for one in prompts)
    written = sum(one.tokens for one in choices)
    done = [one.statistics for one in choices if one.statistics is not None]
    reused = sum(one.statistics.reused_tokens for one in prompts if one.statistics is not None)
    drafted, accepted = sum(sum(s.drafted) for s in done), sum(sum(s.accepted) for s in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": reused},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(drafted - accepted, 0),
        },
    }


def details_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """Rounds by arm, tokens and seconds of finished texts."""
    done = [one.statistics for one in choices if one.statistics is not None]
    arms: Counter[str] = Counter()
    for one in done:
        arms.update(one.arms)
    return {
        "arms": dict(arms.most_common()),
        "tokens": sum(one.tokens for one in choices),
        "drafted": sum(sum(one.drafted) for one in done),
        "accepted": sum(sum(one.accepted) for one in done),
        "queue_seconds": max((one.queue_seconds for one in done), default=0.0),
        "first_token_seconds": max((one.first_token_seconds for one in done), default=0.0),
        "seconds": max((one.seconds for one in done), default=0.0),
    }


def metrics_of(choices: Sequence[Choice]) -> dict[str, Any] | None:
    """What vLLM tells of a single text's speculation; None of several."""
    if len(choices) != 1 or (statistics := choices[0].statistics) is None:
        return None
    return {"speculative_decoding": speculative_decoding(statistics)}
