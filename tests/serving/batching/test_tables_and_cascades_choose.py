"""Tables by batch size, lookup before other policies, and specs that are neither."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import RoundRecord
from draftgym.serving.batching.choosing import Writing
from draftgym.serving.batching.policies import LookupFirst, make_batch_policy
from tests.serving.writings import PATTERN, play, some_writings, writing

TABLE = "by-batch@1=eagle3:3x6,3=ngram:8,5=plain"
CASCADE = "ngram:8>eagle3:3"


def test_a_table_chooses_by_everyone_in_the_pass(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    policy, texts = make_batch_policy(TABLE, drafters, target), some_writings(target, drafters, 6)
    chosen = [policy.choose(texts[:1], texts[:size]) for size in range(1, 7)]
    wanted = ["eagle3:3x6"] * 2 + ["ngram:8"] * 2 + ["plain"] * 2
    assert [str(arms[0]) for arms in chosen] == wanted
    assert len(policy.choose(texts[:4], texts)) == 4
    assert [*map(str, policy.arms)] == ["eagle3:3x6", "ngram:8", "plain"]
    assert policy.name == TABLE


def test_the_lines_of_a_table_come_in_any_order(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    policy = make_batch_policy("by-batch@ 4=plain, 1=eagle3", drafters, target)
    texts = some_writings(target, drafters, 4)
    assert [str(policy.choose(texts, texts[:size])[0]) for size in (3, 4)] == ["eagle3:2", "plain"]


class Chooser:
    """A policy of a batch that keeps what it is asked and told."""

    name, arms = "chooser", (parse_arm("eagle3:2"),)

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Writing], Sequence[Writing]]] = []
        self.told: list[tuple[Writing, Arm, RoundRecord]] = []

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """Its only arm."""
        self.asked.append((mine, batch))
        return [self.arms[0]] * len(mine)

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """Keeps it."""
        self.told.append((text, arm, record))


def test_prompt_lookup_goes_first_where_it_offers_something(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    inner = Chooser()
    policy = LookupFirst("cascade", parse_arm("ngram:8"), inner)
    repeats, new = writing(target, drafters, PATTERN), writing(target, drafters, [9, 10, 11])
    repeats.session.token_ids[:] = [*PATTERN, PATTERN[0]]
    new.session.token_ids[:] = [9, 10, 11, 12]
    texts = [new, repeats]
    assert [*map(str, policy.choose(texts, texts))] == ["eagle3:2", "ngram:8"]
    assert inner.asked == [([new], texts)]
    assert [*map(str, policy.choose([repeats], texts))] == ["ngram:8"]
    assert len(inner.asked) == 1  # nothing is left to ask for


def test_what_is_not_sure_enough_is_not_offered(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    text = writing(target, drafters, PATTERN)
    text.session.token_ids[:] = [*PATTERN, PATTERN[0]]
    for head, chosen in (("ngram:8@1", "ngram:8@1"), ("ngram:8@99", "eagle3:2")):
        policy = LookupFirst("cascade", parse_arm(head), Chooser())
        assert [*map(str, policy.choose([text], [text]))] == [chosen]


def test_what_prompt_lookup_offers_is_what_it_drafts(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    texts = some_writings(target, drafters, 4)
    policy = make_batch_policy(CASCADE, drafters, target)
    copied = 0
    while not any(text.session.finished for text in texts):
        for record in play(policy, texts):
            assert record.drafted_by in ("ngram:8", "eagle3:3", "plain")
            copied += record.drafted_by == "ngram:8"
    assert copied


def test_choosers_are_told_cascades(target: Target, drafters: dict[str, Drafter]) -> None:
    told = "entropy:1.5@ngram:8>eagle3:2,ngram:8>dflash:2"
    assert [*map(str, make_batch_policy(told, drafters, target).arms)] == told[12:].split(",")
    assert isinstance(make_batch_policy(f"ngram:4>{told}", drafters, target), LookupFirst)


def test_the_inner_policy_is_told_of_every_round(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    inner, texts = Chooser(), some_writings(target, drafters, 3)
    policy = LookupFirst("cascade", parse_arm("ngram:8"), inner)
    for _ in range(5):
        play(policy, texts)
    assert len(inner.told) == 15
    assert {record.arm.drafter for _, _, record in inner.told} == {"eagle3", "ngram"}


def test_the_last_token_is_left_to_the_target(target: Target, drafters: dict[str, Drafter]) -> None:
    text = writing(target, drafters, PATTERN, new=2)
    text.session.token_ids[:] = [*PATTERN, PATTERN[0]]
    policy = LookupFirst("cascade", parse_arm("ngram:8"), Chooser())
    assert str(policy.choose([text], [text])[0]) == "eagle3:2"


@pytest.mark.parametrize(
    "spec",
    ["ngram:16>entropy", "ngram>ucb@eagle3:2,plain", "ngram:4>by-batch@1=eagle3,2=plain"],
)
def test_anything_may_stand_behind(target: Target, drafters: dict[str, Drafter], spec: str) -> None:
    policy, texts = make_batch_policy(spec, drafters, target), some_writings(target, drafters, 3)
    assert policy.name == spec
    for _ in range(6):
        assert all(record.arm in policy.arms for record in play(policy, texts))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("by-batch", "without a number or an arm"),
        ("by-batch@", "without a number or an arm"),
        ("by-batch@1=eagle3,", "without a number or an arm"),
        ("by-batch@eagle3:2", "without a number or an arm"),
        ("by-batch@0=eagle3", "from '0' texts on"),
        ("by-batch@one=eagle3", "from 'one' texts on"),
        ("by-batch@1=eagle3,1=plain", "1 texts twice"),
        ("by-batch@2=eagle3,4=plain", "fewer than 2"),
        ("by-batch@1=eagle9", "unknown drafter"),
        ("by-batch@1=eagle3:99", "drafts more than eagle3 can"),
        ("eagle3:2>plain", "no prompt lookup"),
        ("plain>eagle3", "no prompt lookup"),
        (">eagle3", "no prompt lookup"),
        ("random>eagle3", "no prompt lookup"),
        ("ngram:8>", "empty name"),
        ("ngram:99>eagle3", "drafts more than ngram can"),
        ("ngram:8x8>eagle3", "chains only"),
        ("ngram:8>eagle9", "unknown policy"),
        ("eagle9", "unknown policy"),
        ("", "empty name"),
    ],
)
def test_a_wrong_spec_is_refused_with_a_remedy(
    target: Target, drafters: dict[str, Drafter], spec: str, said: str
) -> None:
    with pytest.raises(DraftgymError) as error:
        make_batch_policy(spec, drafters, target)
    assert said in error.value.problem and error.value.remedy


def test_prompt_lookup_must_be_loaded(target: Target, drafters: dict[str, Drafter]) -> None:
    with pytest.raises(DraftgymError, match="no prompt lookup"):
        make_batch_policy(CASCADE, {"eagle3": drafters["eagle3"]}, target)
