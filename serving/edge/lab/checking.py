"""Are the devices' texts plain decoding's? Every one is compared, token by token."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import load_target
from draftgym.serving.edge.devices.journal import texts_of
from draftgym.serving.edge.lab.args import EdgeLabArgs

SAME, PREFIX, OTHER = "same", "beginning", "other"


def check_texts(args: EdgeLabArgs, devices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compares texts with plain decoding of their prompts alone.

    Args:
        args: What the lab was asked for.
        devices: What each device keeps, by its name.

    Returns:
        Of each text its device, question and session, and whether it is the `same`, unfinished and
        its `beginning`, or an `other`, with the index of the first other token. Nothing for
        texts that have plain decoding's law alone.
    """
    if args.temperature and args.payload != "tokens":
        return []
    texts = [(name, text) for name, body in devices.items() for text in texts_of(body)]
    print(f"writing {len(texts)} texts again, by plain decoding", file=sys.stderr, flush=True)
    target = load_target(args.target, args.dtype, args.threads, args.device)
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    plain: dict[tuple[int, ...], list[int]] = {}
    found = []
    for name, text in texts:
        prompt = tuple(text["prompt"])
        if prompt not in plain:
            ids, most = torch.tensor(prompt), text["max_new_tokens"]
            plain[prompt] = decoder.generate(ids, most, text["temperature"], text["seed"]).tokens
        verdict, index = compare(text["tokens"], plain[prompt], bool(text["finish_reason"]))
        facts = {key: text[key] for key in ("question_id", "session")}
        found.append({"device": name, **facts, "is": verdict, "index": index})
    return found


def compare(tokens: list[int], plain: list[int], finished: bool) -> tuple[str, int | None]:
    """What a text is beside plain decoding's, and the index of the first other token."""
    expected = plain if finished else plain[: len(tokens)]
    if tokens == expected:
        return (SAME if finished else PREFIX), None
    pairs = zip(tokens, expected, strict=False)
    index = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    return OTHER, min(len(tokens), len(expected)) if index is None else index
