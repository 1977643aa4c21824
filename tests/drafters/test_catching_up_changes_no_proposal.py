"""Lazy or eager, keys and values or in full: when and how drafters catch up changes time alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import Generation, PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import LAZY_KV_ONLY, CatchUp, Drafter, DraftShape
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.policies.routers.rules import RandomPolicy
from draftgym.rollouts.decode.evaluation import EvaluateArgs
from draftgym.rollouts.decode.generation import GenerateArgs, generate
from draftgym.rollouts.decode.interleaved import DecodeSettings, write, write_together
from tests.tiny_text import save_drafters, save_target

VARIANTS = [CatchUp(eager, full) for eager, full in product([False, True], repeat=2)]
OTHERS = [variant for variant in VARIANTS if variant != LAZY_KV_ONLY]
NAMES = ["eagle3", "dflash", "small", "ngram", "suffix"]
ARMS = ["eagle3:3", "eagle3:3x9", "dflash:4", "dflash:3x9", "small:2", "small:3x6", "ngram:5"]
ARMS += ["suffix:5", "suffix:3x9"]
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])
WRITTEN = 40


@pytest.fixture(scope="module")
def drafters(drafters: dict[str, Drafter]) -> dict[str, Drafter]:
    """Suffix decoding, too."""
    return {**drafters, "suffix": SuffixDrafter()}


def arms(*names: str) -> tuple[Arm, ...]:
    return tuple(parse_arm(name) for name in names)


def dice(seed: int) -> RandomPolicy:
    """Every arm, plain decoding too, at random."""
    return RandomPolicy(arms(*ARMS, "plain"), seed)


def open_session(
    target: Target, drafters: dict[str, Drafter], variant: CatchUp, temperature: float = 0.0
) -> Session:
    rule = make_rule(None, temperature, 0, target.vocab_size)
    session = Session(target, PROMPT, rule, 60, drafters, catching_up=variant)
    session.prefill()
    return session


def play(session: Session, names: Sequence[str], tokens: int = WRITTEN) -> None:
    """Cycles through the arms until exactly `tokens` are written; the session stays open."""
    step = 0
    while len(session.new_tokens) < tokens:
        arm = parse_arm(names[step % len(names)])
        most = tokens - len(session.new_tokens) - 1
        play_round(session, Arm(arm.drafter, min(arm.length, most), arm.nodes if most else None))
        step += 1


def propose(session: Session, drafter: Drafter, shape: DraftShape) -> Proposal:
    session.catch_up(drafter)
    return drafter.propose(session.state_of(drafter), session, shape)


def rounds(text: Generation) -> list[tuple[Any, ...]]:
    """What happened in every round, but for catching up and times."""
    return [
        (str(record.arm), record.context, record.drafted, record.accepted, record.committed)
        for record in (item.record for item in text.rounds)
    ]


@pytest.mark.parametrize(("seed", "temperature"), [(0, 0.0), (0, 1.0), (1, 0.0), (2, 1.0)])
def test_all_variants_draft_and_write_the_same_in_every_round(
    target: Target, drafters: dict[str, Drafter], seed: int, temperature: float
) -> None:
    texts = []
    for variant in VARIANTS:
        decoder = SpeculativeDecoder(target, drafters, dice(seed))
        settings = DecodeSettings(WRITTEN, temperature, seed, catching_up=variant)
        texts.append(write(decoder, PROMPT, settings))
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    expected = plain.generate(PROMPT, WRITTEN, temperature, seed).tokens
    assert all(text.tokens == expected for text in texts)
    assert all(rounds(text) == rounds(texts[0]) for text in texts[1:])
    assert len({arm for arm, *_ in rounds(texts[0])}) > 4, "the policy switches"


@pytest.mark.parametrize("variant", OTHERS, ids=str)
def test_proposals_agree_down_to_their_log_probabilities(
    target: Target, drafters: dict[str, Drafter], variant: CatchUp
) -> None:
    usual, other = (open_session(target, drafters, v) for v in (LAZY_KV_ONLY, variant))
    for session in (usual, other):
        play(session, ["plain", *ARMS])
    for drafter in map(drafters.__getitem__, NAMES):
        shape = DraftShape(3, 9 if drafter.max_tree_nodes else None)
        one, two = propose(usual, drafter, shape), propose(other, drafter, shape)
        assert len(one) > 0 and one.tokens.tolist() == two.tokens.tolist()
        assert one.parents.tolist() == two.parents.tolist()
        torch.testing.assert_close(one.logprobs, two.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_policies_in_shared_passes_catch_up_as_they_are_told(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    texts = [
        write_together(
            target,
            drafters,
            {str(seed): dice(seed) for seed in range(2)},
            PROMPT,
            DecodeSettings(24, temperature, catching_up=variant),
        )
        for variant in VARIANTS
    ]
    assert all(text == texts[0] for text in texts[1:])


@pytest.mark.parametrize("full", [False, True])
def test_lazy_never_works_for_a_drafter_that_is_not_used(
    target: Target, drafters: dict[str, Drafter], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dflash", "small", "ngram", "suffix"):
        monkeypatch.setattr(drafters[name], "catch_up", None)  # calling it would fail
    session = open_session(target, drafters, CatchUp(full=full))
    play(session, ["eagle3:2", "plain", "eagle3:3x6"])
    with pytest.raises(TypeError):
        play_round(session, parse_arm("dflash:2"))


@pytest.mark.parametrize("full", [False, True])
def test_eager_leaves_no_backlog_to_any_drafter(
    target: Target, drafters: dict[str, Drafter], full: bool
) -> None:
    session = open_session(target, drafters, CatchUp(eager=True, full=full))
    names = ["plain", *ARMS]
    for step in range(12):
        play_round(session, parse_arm(names[step % len(names)]))
        assert not session.finished
        assert [session.catch_up(drafter) for drafter in drafters.values()] == [0] * len(NAMES)


def test_a_round_counts_what_all_its_drafters_caught_up(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    session = open_session(target, drafters, CatchUp(eager=True))
    first, *later = [play_round(session, parse_arm("eagle3:2")) for _ in range(6)]
    assert first.caught_up > len(NAMES) * len(PROMPT) - len(NAMES), "the prompt"
    for record in later:
        assert record.caught_up == len(NAMES) * len(record.committed)
        assert record.times.catch_up > 0


def test_nobody_catches_up_behind_the_last_round(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    session = open_session(target, drafters, CatchUp(eager=True))
    while not session.finished:
        record = play_round(session, parse_arm("plain"))
    assert record.caught_up == 0
    assert session.catch_up(drafters["dflash"]) == 1


def test_full_runs_attention_mlp_and_head_for_every_missed_position(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the tests above: the full variants really are other computations."""
    eagle3, small = drafters["eagle3"], drafters["small"]
    assert isinstance(eagle3, Eagle3Drafter) and isinstance(small, SmallLMDrafter)
    seen: dict[str, int] = {}
    for name in ("q_proj", "o_proj", "mlp", "lm_head"):
        module = next(m for path, m in eagle3.network.named_modules() if path.endswith(name))
        module_forward = module.forward

        def forward(x: Any, name: str = name, run: Any = module_forward) -> Any:
            seen[name] = seen.get(name, 0) + len(x)
            return run(x)

        monkeypatch.setattr(module, "forward", forward)
    session = open_session(target, drafters, CatchUp(full=True))
    play(session, ["plain"])
    missed = session.catch_up(eagle3)
    assert missed > 20 and seen == dict.fromkeys(["q_proj", "o_proj", "mlp", "lm_head"], missed)

    heads = []
    score = small.decoder.row_work.score

    def counted(hidden: Any) -> Any:
        heads.append(len(hidden))
        return score(hidden)

    monkeypatch.setattr(small.decoder.row_work, "score", counted)
    assert session.catch_up(small) == heads[0] > 20


def test_encoding_writes_the_keys_and_values_of_a_whole_pass(target: Target) -> None:
    decoder = target.decoder
    whole, short = decoder.new_cache(32), decoder.new_cache(32)
    for tokens in (PROMPT, PROMPT[:3], PROMPT[:1]):
        decoder.forward([NewRows(whole, tokens)])
        decoder.encode(NewRows(short, tokens))
        for cache in (whole, short):
            cache.keep(len(tokens))
    assert torch.equal(whole.keys[:, :, : whole.length], short.keys[:, :, : short.length])
    assert torch.equal(whole.values[:, :, : whole.length], short.values[:, :, : short.length])


def test_the_command_line_chooses_the_variant(tmp_path: Path) -> None:
    assert EvaluateArgs().settings.catching_up == LAZY_KV_ONLY
    chosen = EvaluateArgs(catch_up="eager", prefill="full").settings.catching_up
    assert chosen == CatchUp(eager=True, full=True)
    save_target(tmp_path / "target")
    target = load_target(str(tmp_path / "target"), "float32", 1)
    folders = tuple(save_drafters(target, tmp_path))
    texts = []
    for eager in (False, True):
        args = GenerateArgs(
            prompt="why?",
            policy="random",
            max_new_tokens=24,
            target=str(tmp_path / "target"),
            drafters=folders,
            dtype="float32",
            threads=1,
            catch_up="eager" if eager else "lazy",
        )
        texts.append(generate(args))
    lazy, eager_text = texts
    assert lazy.tokens == eager_text.tokens
    encoded = [sum(item.record.caught_up for item in text.rounds) for text in texts]
    assert encoded[1] > encoded[0]
