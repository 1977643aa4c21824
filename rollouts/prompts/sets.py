"""Prompts to decode: the two shipped sets, or any JSON-lines file in the MT-bench shape.

One prompt per line, `{"question_id": "chat-train-001", "category": "chat", "turns": ["..."]}`, as
in MT-bench and Spec-Bench, so their question files load as they are; `"system": "..."` may stand
beside it. Each turn is a text of its own, behind the target's own answers to the turns before it.
The shipped sets hold 30 prompts of one turn in each of five categories (chat, code, math, summary,
structured). Tune on `train`, report on `heldout`.

A line may have `images` beside `turns`, for targets that see: paths relative to the file, one list
per turn (`"images": [["cat.png"], []]`), or one list for the first turn.
"""

from __future__ import annotations

import difflib
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import check_unicode, parse_json, user_path
from draftgym.rollouts.prompts.images import read_images
from draftgym.rollouts.prompts.prompt import Prompt as Prompt
from draftgym.rollouts.prompts.prompt import further_turns as further_turns
from draftgym.rollouts.prompts.prompt import note_first_turns as note_first_turns

SHIPPED_SETS = ("train", "heldout")
UNCATEGORISED = "uncategorised"
_SHAPE = '{"question_id": "my-001", "category": "chat", "turns": ["Hello!"]}'
_REMEDY = f"write each prompt as one JSON object on one line, such as {_SHAPE}"


def load_prompts(
    source: str | Path = "heldout",
    *,
    limit_per_category: int | None = None,
    categories: Sequence[str] | None = None,
    turns: int | None = None,
) -> list[Prompt]:
    """Reads a prompt set, in the order of its file.

    Args:
        source: `"train"` or `"heldout"` (shipped sets), or the path of a `.jsonl` file. A file that
            happens to have a set's name is reached as `./train` or as a `Path`.
        limit_per_category: Keep at most this many prompts of each category, the first ones.
        categories: Keep only these categories; None keeps all.
        turns: Keep at most this many turns of each prompt, the first ones.

    Returns:
        At least one prompt.

    Raises:
        DraftgymError: The file is missing, empty or not UTF-8, a line is malformed or repeats a
            `question_id` (the message names file and line), or no prompt can match the request.
    """
    if limit_per_category is not None and limit_per_category < 1:
        raise DraftgymError(
            f"limit_per_category must be at least 1, got {limit_per_category}",
            "ask for one prompt per category or more, or pass None for all of them",
        )
    if turns is not None and turns < 1:
        raise DraftgymError(f"--turns is {turns}", "play one turn of each prompt or more")
    path = _locate(source)
    prompts = [replace(one, turns=one.turns[:turns]) for one in _read(path)]
    if categories is not None:
        prompts = _select(prompts, categories, path)
    if limit_per_category is not None:
        prompts = _first_of_each(prompts, limit_per_category)
    return prompts


def as_prompts(source: str | Path | Sequence[Prompt]) -> list[Prompt]:
    """Prompts as they are given to an environment: a set's name, a file, or a list of `Prompt`.

    Raises:
        DraftgymError: The file cannot be read, or the list is empty or holds something else.
    """
    if isinstance(source, str | Path):
        return load_prompts(source)
    prompts = list(source)
    strange = [one for one in prompts if not isinstance(one, Prompt)]
    if strange or not prompts:
        raise DraftgymError(
            f"{strange[0]!r} is not a Prompt" if strange else "there is no prompt",
            "give a set's name, the path of a prompt file, or a list of Prompt with one at least",
        )
    return prompts


def refuse_held_out(question_ids: Iterable[str]) -> None:
    """Raises `DraftgymError` if prompts that results are reported on are among those to learn from.

    Args:
        question_ids: Of the prompts to tune or train on.
    """
    held_out = {prompt.question_id for prompt in load_prompts("heldout")}
    found = sorted(held_out.intersection(question_ids))
    if found:
        raise DraftgymError(
            f"nothing may be tuned or trained on held-out prompts, such as {found[0]!r}",
            "trace training prompts: draftgym collect --prompts train",
        )


def interleave_categories(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Deals the prompts round-robin by category, so that every prefix is balanced.

    Categories come in the order of their first prompt and keep their inner order; one that runs out
    is skipped. The result depends on the input alone.
    """
    groups: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.category].append(prompt)
    rounds = zip_longest(*groups.values())
    return [prompt for one_round in rounds for prompt in one_round if prompt is not None]


def _first_of_each(prompts: Iterable[Prompt], limit: int) -> list[Prompt]:
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.category] += 1
        if seen[prompt.category] <= limit:
            kept.append(prompt)
    return kept


def _locate(source: str | Path) -> Path:
    """The file behind a set's name or a path."""
    if isinstance(source, str) and source in SHIPPED_SETS:
        return Path(__file__).with_name(f"{source}.jsonl")
    path = user_path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise DraftgymError(f"{path} is a folder, not a prompt file", "name a .jsonl file in it")
    close = difflib.get_close_matches(str(source), SHIPPED_SETS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DraftgymError(
        f"there is no prompt set or file named {str(source)!r}",
        f"{hint}Shipped sets: {', '.join(SHIPPED_SETS)}; or give the path of a .jsonl file",
    )


def _read(path: Path) -> list[Prompt]:
    """All prompts of a file, checked."""
    first_line: dict[str, int] = {}
    prompts = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        prompt = _parse(line, where, path.parent)
        earlier = first_line.setdefault(prompt.question_id, number)
        if earlier != number:
            raise DraftgymError(
                f"{where}: question_id {prompt.question_id!r} is already used in line {earlier}",
                "give every prompt an id of its own; results are filed under it",
            )
        prompts.append(prompt)
    if not prompts:
        raise DraftgymError(
            f"{path} contains no prompts", f"write one JSON object per line, such as {_SHAPE}"
        )
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and text of the lines that are not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DraftgymError(
            f"{path} cannot be read: {error.strerror}", "check the file's permissions"
        ) from error
    # Bytes are split before decoding: a bad byte then has a line number, and only real newlines
    # count (str.splitlines would also cut at U+2028, which JSON allows inside strings).
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DraftgymError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)",
                "save the file with UTF-8 encoding",
            ) from error
        if line:
            yield number, line


def _parse(line: str, where: str, folder: Path) -> Prompt:
    """One line as a prompt; `where` opens every complaint, and `folder` holds its images."""
    record = parse_json(line, f"{where}: it", _REMEDY)
    names, turns = (_question_id(record, where), _category(record, where)), _turns(record, where)
    images = read_images(record.get("images"), len(turns), where, folder)
    prompt = Prompt(*names, turns, _system(record, where), images=images)
    for text in (*names, *turns, prompt.system or ""):
        check_unicode(text, f"{where}: it")
    return prompt


def _question_id(record: dict[str, object], where: str) -> str:
    """The id as text (MT-bench has integers)."""
    value = record.get("question_id")
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DraftgymError(
            f'{where}: "question_id" is missing, empty or neither text nor an integer',
            'add an id that no other line has, such as "question_id": "my-001"',
        )
    return str(value)


def _category(record: dict[str, object], where: str) -> str:
    """The category, or `uncategorised` where there is none."""
    value = record.get("category")
    if value is None:
        return UNCATEGORISED
    if not isinstance(value, str) or not value.strip():
        raise DraftgymError(
            f'{where}: "category" must be text that is not empty, found {reprlib.repr(value)}',
            'write for example "category": "chat", or leave the key out',
        )
    return value


def _turns(record: dict[str, object], where: str) -> tuple[str, ...]:
    """The user's turns, at least one and none of them blank."""
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise DraftgymError(
            f'{where}: "turns" is missing, empty or not a list',
            'write the prompt as a list with one string per turn: "turns": ["Hello!"]',
        )
    for index, turn in enumerate(turns, start=1):
        if not isinstance(turn, str) or not turn.strip():
            raise DraftgymError(
                f"{where}: turn {index} is empty or not text",
                "make every turn a string that is not blank",
            )
    return tuple(turns)


def _system(record: dict[str, object], where: str) -> str | None:
    """What the target is told before the first turn."""
    value = record.get("system")
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise DraftgymError(
            f'{where}: "system" must be text that is not empty, found {reprlib.repr(value)}',
            'write for example "system": "Be brief.", or leave the key out',
        )
    return value


def _select(prompts: list[Prompt], categories: Sequence[str], path: Path) -> list[Prompt]:
    """The prompts of the categories asked for; a lone string is one category."""
    wanted = (categories,) if isinstance(categories, str) else tuple(categories)
    known = list(dict.fromkeys(prompt.category for prompt in prompts))
    if not wanted:
        raise DraftgymError("an empty list of categories was given", f"name some of {known}")
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DraftgymError(
                f"{path} has no category {name!r}", f"{hint}It has: {', '.join(known)}"
            )
    return [prompt for prompt in prompts if prompt.category in wanted]
