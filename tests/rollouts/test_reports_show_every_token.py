"""A report is one page that needs nothing else, and shows every token, kept or rejected."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import DecodedRound, Generation
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import RoundRecord, RoundTimes
from draftgym.rollouts.decode.evaluation import EvaluateArgs, chosen_policies, compare, evaluate
from draftgym.rollouts.decode.interleaved import DecodeSettings
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.page import write_report
from draftgym.rollouts.report.palette import colours_of
from draftgym.rollouts.report.plots import grouped_bars, stacked_shares, to_svg
from draftgym.rollouts.report.rows import ALL, Evaluation
from draftgym.rollouts.report.statistics import (
    Interval,
    best_single_arm,
    make_intervals,
    ratio_of_sums,
)
from draftgym.rollouts.report.texts import Pieces, render_text, visible
from tests.tiny import tiny_drafters
from tests.tiny_text import byte_tokenizer, save_drafters, save_prompts, save_target, text_target

POLICIES = ["plain", "eagle3:3", "eagle3:3x6", "ngram:4", "random"]
PROMPTS = [
    Prompt("a", "chat", ("</blockquote><script>alert(1)</script>",)),
    Prompt("b&b", "chat", ('"quoted" & <b>bold</b>\n  indented',)),
    Prompt("c", "code", ("Grüße 🙂",)),
]
VOID = {"meta", "input", "path", "use", "br"}


@dataclass
class Shown:
    """What a page shows of one text.

    Attributes:
        kept: Its text without rejected drafts.
        tokens: Classes of every kept token.
        rejected: Text of all rejected chains.
        rejected_tokens: Tokens in them.
        nodes: Nodes of trees that were not taken.
        tips: Tooltips of the rounds.
    """

    kept: str = ""
    tokens: list[str] = field(default_factory=list)
    rejected: str = ""
    rejected_tokens: int = 0
    nodes: int = 0
    tips: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """Reads a report the way a browser does."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.prompts: list[str] = []
        self.texts: dict[tuple[int, int], Shown] = {}
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert not self._open, "every element is closed"

    @property
    def _now(self) -> Shown | None:
        articles = [attrs for tag, attrs in self._open if tag == "article"]
        written = any(attrs.get("class") == "text" for _, attrs in self._open)
        if not articles or not written:
            return None
        key = int(articles[0]["data-prompt"]), int(articles[0]["data-policy"])
        return self.texts.setdefault(key, Shown())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Keeps track of where we are."""
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.links += [given[one] for one in ("src", "href", "xlink:href", "data") if one in given]
        if now := self._now:
            inside = {one for one, _ in self._open}
            if tag == "del":
                now.nodes += int(given.get("data-nodes", 0))
            elif tag == "span" and given.get("class", "").startswith("round"):
                now.tips.append(given["title"])
            elif tag == "span" and "del" in inside:
                now.rejected_tokens += 1
            elif tag == "span":
                now.tokens.append(given.get("class", ""))
        if tag == "blockquote":
            self.prompts.append("")
        if tag not in VOID:
            self._open.append((tag, given))

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """As `<path/>` in figures."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Elements close in order."""
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Text goes where it stands."""
        if now := self._now:
            if any(tag == "del" for tag, _ in self._open):
                now.rejected += data
            else:
                now.kept += data
        elif self._open and self._open[-1][0] == "blockquote":
            self.prompts[-1] += data


@pytest.fixture(scope="module")
def writer() -> Target:
    """A target whose tokens are bytes, most of them no characters."""
    return text_target()


@pytest.fixture(scope="module")
def result(writer: Target) -> Evaluation:
    """Chains, a tree, and a policy that mixes."""
    drafters = tiny_drafters(writer)
    policies = chosen_policies(POLICIES, drafters, writer)
    return compare(
        *(writer, drafters, policies, PROMPTS, DecodeSettings(max_new_tokens=40)),
        environment={"target": "tiny <text>", "command": "python evaluate.py --prompts 'a & b'"},
        predict_seconds=lambda record: 2 * record.times.total,
        progress=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, result: Evaluation, writer: Target) -> Path:
    """A written report."""
    return write_report(tmp_path_factory.mktemp("report") / "new", result, writer).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """Its page."""
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def each(result: Evaluation, page: Page) -> list[tuple[Generation, Shown]]:
    """Every text with what the page shows of it."""
    questions = list(dict.fromkeys(text.prompt.question_id for text in result.texts))
    policies = list(result.choices)
    pairs = [
        (text.generation, page.texts[questions.index(text.prompt.question_id), at])
        for text in result.texts
        for at, policy in enumerate(policies)
        if policy == text.policy
    ]
    assert len(pairs) == len(page.texts) == len(PROMPTS) * len(POLICIES)
    return pairs


@pytest.mark.slow
def test_the_page_needs_nothing_else(folder: Path, page: Page) -> None:
    assert page.links and all(link.startswith("#") for link in page.links)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") - page.tags.count("svg") == 1
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert all(part.startswith("#") for part in text.split("url(")[1:])


def test_every_committed_token_is_shown(result: Evaluation, page: Page, writer: Target) -> None:
    for text, shown in each(result, page):
        assert shown.kept == visible(writer.decode(text.tokens))
        assert len(shown.tokens) == len(text.tokens)
        own = 1 + sum(len(i.record.committed) - i.record.accepted for i in text.rounds)
        assert sum("own" in kinds.split() for kinds in shown.tokens) == own
        assert len(shown.tips) == 1 + len(text.rounds)


def test_every_rejected_draft_is_shown(result: Evaluation, page: Page, writer: Target) -> None:
    chains = nodes = 0
    for text, shown in each(result, page):
        lost = {True: 0, False: 0}
        for one in (item.record for item in text.rounds):
            lost[len(one.drafted) == one.depth] += len(one.drafted) - one.accepted
        assert shown.rejected_tokens == lost[True]
        assert shown.nodes == lost[False]
        chains, nodes = chains + lost[True], nodes + lost[False]
    assert chains and nodes


def test_a_rejected_chain_stands_between_what_was_kept_and_the_targets_own(
    result: Evaluation, page: Page
) -> None:
    """Letters are tokens here, so where all bytes are letters the words can be read off."""
    tokenizer, compared = byte_tokenizer(), 0
    for text, shown in each(result, page):
        records = [item.record for item in text.rounds]
        lost = [t for one in records for t in one.drafted[one.accepted :]]
        if all(len(one.drafted) == one.depth for one in records):
            letters = [s for s in map(tokenizer.decode, lost) if s.isalnum() and s.isascii()]
            assert [s for s in shown.rejected if s.isalnum() and s.isascii()] == letters
            compared += len(letters)
    assert compared


def test_what_people_wrote_is_escaped(page: Page) -> None:
    assert sorted(page.prompts) == sorted(prompt.text for prompt in PROMPTS)
    assert page.tags.count("script") == 1 and "tiny" not in page.tags


def test_the_path_of_a_round_leads_to_its_committed_tokens(result: Evaluation) -> None:
    branched = 0
    for one in (item.record for text in result.texts for item in text.generation.rounds):
        assert len(one.path) == one.accepted
        assert [one.drafted[node] for node in one.path] == one.committed[: one.accepted]
        branched += one.path != list(range(one.accepted))
    assert branched, "no tree took a node that was not the first"


@pytest.mark.parametrize("text", ["zażółć 🙂🌳\n\n\tend ", "", "a\r\x00<b>"])
def test_pieces_are_the_text(writer: Target, text: str) -> None:
    tokens = writer.tokenizer(text)["input_ids"]
    pieces = Pieces(writer).of(tokens)
    assert len(pieces) == len(tokens) and "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert Pieces(writer).after(tokens[:3], tokens[3:]) == pieces[3:]


def test_the_end_of_a_text_can_be_seen(writer: Target) -> None:
    """It has no text of its own; a draft behind it was not taken."""
    times = RoundTimes(0.01, 0.02, 0.03, 0.04)
    letter, end = (writer.tokenizer.convert_tokens_to_ids(one) for one in ("a", "<end>"))
    drafted, committed = [letter, end, letter], [letter, end]
    record = RoundRecord(
        Arm("eagle3", 3), 5, drafted, 3, len(committed), committed, 7, times, path=[0, 1]
    )
    text = Generation([letter, *committed], 4, [DecodedRound(record, 0.0)])
    html = render_text(text, Pieces(writer), {"eagle3": "d0"})
    kept = '<span>a</span><span class="special" data-name="&lt;end&gt;"></span>'
    assert f"{kept}<del><span>a</span></del></span>" in html
    assert "eagle3:3, 3 drafted, 2 accepted, 7 caught up, 100.0 ms" in html


def test_figures_have_intervals_around_their_values(result: Evaluation) -> None:
    intervals = make_intervals(result)
    for row in result.rows:
        sure = intervals[row.policy, row.category]
        assert sure.speedup.value == pytest.approx(row.speedup)
        assert sure.acceptance_length.value == pytest.approx(row.acceptance_length)
        for one in (sure.speedup, sure.acceptance_length, sure.against_best):
            assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    best = best_single_arm(result)
    assert best != "random" and intervals[best, ALL].against_best.value == 1
    rows = {row.policy: row for row in result.rows if row.category == ALL}
    assert intervals["random", ALL].against_best.value == pytest.approx(
        rows["random"].tokens_per_second / rows[best].tokens_per_second
    )


def test_a_ratio_of_sums_is_sure_where_prompts_agree() -> None:
    assert ratio_of_sums([(4, 2), (8, 4)]) == Interval(2, 2, 2)
    mixed = ratio_of_sums([(4, 4), (9, 3), (2, 1), (10, 4)])
    assert mixed.value == pytest.approx(25 / 12) and 1 <= mixed.low < mixed.value < mixed.high <= 3
    with pytest.raises(ValueError, match="at least one"):
        ratio_of_sums([])


def test_files_lie_beside_the_page(folder: Path, result: Evaluation) -> None:
    names = {path.name for path in folder.iterdir()}
    plots = {"speed.svg", "acceptance.svg", "arms.svg", "arms-by-category.svg"}
    assert names == {"index.html", "figures.json", *plots}
    body = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert len(body["rows"]) == len(result.rows)


def test_figures_are_drawn_from_plain_data() -> None:
    bars = {"one": [Interval(1, 0.5, 1.5)], "two & three": [Interval(2, 2, 2)]}
    figure = grouped_bars("Title", ["group"], bars, "seconds", reference=1.0)
    svg = to_svg(figure, "some")
    assert svg.startswith("<svg") and 'id="some-' in svg
    for word in ("Title", "group", "two &amp; three", "seconds"):
        assert word in svg
    assert svg == to_svg(grouped_bars("Title", ["group"], bars, "seconds", reference=1.0), "some")
    shares = {"row": {"a": 0.25, "b": 0.75}}
    for narrow in (False, True):
        assert "75%" in to_svg(stacked_shares("Shares", shares, "rounds", narrow=narrow), "x")


def test_every_name_has_its_colour() -> None:
    names = ["plain", "eagle3:2", "eagle3:4x8", "dflash", "ngram", "small", "router", "random"]
    colours = colours_of(names)
    assert set(colours) == set(names) and len(set(colours.values())) == len(names)
    assert colours_of(["eagle3"])["eagle3"] == colours["eagle3:2"]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets to loading a model comes too late."""
    monkeypatch.setattr(EvaluateArgs, "load", None)


@pytest.mark.usefixtures("no_loading")
def test_a_folder_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DraftgymError, match="--report"):
            evaluate(EvaluateArgs(report=place))


@pytest.mark.usefixtures("no_loading")
def test_without_matplotlib_there_is_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def bare(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", bare)
    with pytest.raises(DraftgymError, match=r"pip install 'draftgym\[report\]'"):
        evaluate(EvaluateArgs(report=tmp_path / "report"))


def test_evaluating_with_a_report_writes_the_same_figures_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAFTGYM_CACHE", str(tmp_path / "cache"))
    target = save_target(tmp_path / "target")
    drafters = save_drafters(text_target(), tmp_path)
    args = EvaluateArgs(
        target=str(target),
        drafters=tuple(drafters),
        policies=("eagle3:2",),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl", 1)),
        max_new_tokens=8,
        dtype="float32",
        threads=1,
        json=tmp_path / "figures.json",
        report=tmp_path / "report",
    )
    result = evaluate(args)
    figures = (tmp_path / "report" / "figures.json").read_text(encoding="utf-8")
    assert figures == (tmp_path / "figures.json").read_text(encoding="utf-8")
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Cost model" in page and result.environment["command"].split()[0] in page
