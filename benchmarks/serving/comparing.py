"""What the blocks of a measurement say: figures by server and policy, and texts that differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.report import Json
from benchmarks.results import Record, Result
from benchmarks.serving.load import Answer, summarise
from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.rollouts.decode.fitting import encode_prompt
from draftgym.rollouts.decode.interleaved import DecodeSettings, write
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.statistics import Work, speed_ratio


def make_rows(
    records: Sequence[Record], policies: Sequence[str], texts: Mapping[str, str]
) -> list[Result]:
    """Figures by clients, server and policy, over all repeats.

    Args:
        records: Blocks.
        policies: In the order of the rows.
        texts: Plain decoding's, by prompt.
    """
    blocks: dict[tuple[int, str, str], list[Record]] = defaultdict(list)
    for record in records:
        blocks[record["clients"], record["server"], record["policy"]].append(record)
    servers = list(dict.fromkeys(one["server"] for one in records))
    ours = [one["server"] for one in records if one["ours"]]
    rows = []
    for clients, server, policy in sorted(
        blocks, key=lambda key: (key[0], servers.index(key[1]), policies.index(key[2]))
    ):
        mine, own = blocks[clients, server, policy], server in ours
        reference = blocks.get((clients, server if own else ours[0], PLAIN), [])
        answers = [Answer(**one) for record in mine for one in record["answers"]]
        rows.append(
            {
                "server": server,
                "weights": mine[0]["weights"],
                "clients": clients,
                "policy": policy if own else "",
                **summarise(answers, sum(record["seconds"] for record in mine)),
                "same_texts": sum(one.text == texts.get(one.name) for one in answers),
                "ratio": _ratio(mine, reference),
            }
        )
    return rows


def _ratio(mine: Sequence[Record], reference: Sequence[Record]) -> Json | None:
    """Goodput over that of the reference's blocks in the same repeats."""
    by_repeat = {record["repeat"]: _work(record) for record in reference}
    pairs = [(_work(one), by_repeat.get(one["repeat"], Work(0, 0.0))) for one in mine]
    pairs = [(one, other) for one, other in pairs if one.tokens and other.tokens]
    if not pairs:
        return None
    return asdict(speed_ratio([one for one, _ in pairs], [other for _, other in pairs]))


def _work(record: Record) -> Work:
    answers = [Answer(**one) for one in record["answers"]]
    return Work(sum(one.tokens for one in answers if one.complete), record["seconds"])


def without_texts(record: Record) -> Record:
    """A block as it is published."""
    answers = [{key: one[key] for key in one if key != "text"} for one in record["answers"]]
    return {**record, "answers": answers}


def find_differences(
    target: Target, prompts: Sequence[Prompt], records: Sequence[Record], max_new_tokens: int
) -> tuple[list[Json], dict[str, str]]:
    """Every answer of our servers that is not plain decoding's text.

    Where all answers to a prompt are the same, and plain decoding is among them, that is its text.
    Where two differ, it is written again, alone and in this process.

    Args:
        target: The target, in float32.
        prompts: All prompts.
        records: Blocks.
        max_new_tokens: Tokens of a text at most.

    Returns:
        Answers that differ, with the margin of plain decoding's token where they part (None where
        the answer is no whole text), and plain decoding's texts by prompt.
    """
    answers = [
        (record, Answer(**one)) for record in records if record["ours"] for one in record["answers"]
    ]
    written: dict[str, set[str]] = defaultdict(set)
    for _, one in answers:
        written[one.name].add(one.text)
    texts = {name: next(iter(some)) for name, some in written.items() if len(some) == 1}
    differences: list[Json] = []
    for prompt in prompts:
        if len(written.get(prompt.question_id, ())) < 2:
            continue
        alone = _Alone(target, prompt, max_new_tokens)
        texts[prompt.question_id] = alone.text
        for record, one in answers:
            if one.name == prompt.question_id and one.text != alone.text:
                told = {key: record[key] for key in ("server", "repeat", "clients", "policy")}
                margin = alone.margin(one.text) if one.complete else None
                differences.append({**told, "margin": margin, **asdict(one)})
    return differences, texts


class _Alone:
    """A prompt's text by plain decoding alone.

    Args:
        target: The target.
        prompt: The prompt.
        max_new_tokens: Tokens at most.
    """

    def __init__(self, target: Target, prompt: Prompt, max_new_tokens: int) -> None:
        plain = SpeculativeDecoder(target, {}, PlainPolicy())
        settings = DecodeSettings(max_new_tokens)
        written = write(plain, encode_prompt(target, prompt), settings, with_margins=True)
        self.target, self.tokens, self.margins = target, written.tokens, written.margins
        self.text = self._beginning(len(written.tokens))

    def margin(self, text: str) -> float | None:
        """The margin at the first token that is not in another text."""
        for count, margin in enumerate(self.margins, start=1):
            # An unfinished character at the end says nothing yet.
            if not text.startswith(self._beginning(count).rstrip("\N{REPLACEMENT CHARACTER}")):
                return margin
        return None

    def _beginning(self, count: int) -> str:
        kept = [one for one in self.tokens[:count] if one not in self.target.stop_tokens]
        return self.target.decode(kept)
