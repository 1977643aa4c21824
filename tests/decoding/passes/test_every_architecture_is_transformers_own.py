"""Every architecture of the compact decoder computes what transformers computes.

Texts are longer than the windows, and passes are of all forms: prefills, rounds of a few rows,
trees, sequences together, keys and values only.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.compact import cache as caches
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target, wrap_model
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.policies.routers.rules import FixedPolicy
from tests.compact_models import COMPACT, compact_model
from tests.tiny import ONE_THREAD

TOKENS = torch.randint(3, 61, (30,), generator=torch.Generator().manual_seed(5))
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-4}


@cache
def pair(name: str) -> tuple[Any, Target]:
    """The transformers model and our target of it."""
    model = compact_model(name)
    return model, wrap_model(model, None, name, ONE_THREAD)


@torch.no_grad()
def theirs(model: Any, tokens: Tensor) -> Tensor:
    """Logits `[n, vocab]` of transformers' own pass."""
    logits: Tensor = model(tokens[None]).logits[0]
    return logits


@pytest.mark.parametrize("together", [512, 4])
@pytest.mark.parametrize("name", COMPACT)
def test_logits_hidden_states_and_taps_equal_transformers(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "ROWS_TOGETHER", together)
    model, target = pair(name)
    store, outputs = target.decoder.new_cache(40), []
    for piece in TOKENS.split([11, 1, 5, 1, 12]):
        outputs.append(target.decoder.forward([NewRows(store, piece)], range(6))[0])
        store.keep(len(piece))
    with torch.no_grad():
        raw: list[Tensor] = []
        hook = model.model.layers[-1].register_forward_hook(
            lambda module, args, out: raw.append(out[0] if isinstance(out, tuple) else out)
        )
        whole = model(TOKENS[None], output_hidden_states=True)
        hook.remove()
    taps = [*(state[0] for state in whole.hidden_states[1:6]), raw[0].view(len(TOKENS), -1)]
    torch.testing.assert_close(torch.cat([o.logits for o in outputs]), whole.logits[0], **CLOSE)
    hidden = torch.cat([o.hidden for o in outputs])
    torch.testing.assert_close(hidden, whole.hidden_states[-1][0], **CLOSE)
    torch.testing.assert_close(torch.cat([o.taps for o in outputs]), torch.stack(taps, 1), **CLOSE)


@pytest.mark.parametrize("name", COMPACT)
def test_every_path_of_a_tree_is_a_text_of_its_own(name: str) -> None:
    """Levels that grow one by one, as drafters draw them, and the whole tree, as it is verified."""
    model, target = pair(name)
    prefix, nodes = TOKENS[:12], torch.tensor([7, 21, 33, 8, 44, 13, 50])
    parents = [-1, -1, 0, 0, 1, 2, 5]
    depths = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    sees = torch.eye(7, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    store = target.decoder.new_cache(40)
    target.compact.encode(NewRows(store, prefix))
    store.keep(len(prefix))
    whole = target.decoder.forward([NewRows(store, nodes, 12 + depths, sees)])[0].logits
    levels = []
    for level in ([0, 1], [2, 3, 4], [5], [6]):
        some = torch.tensor(level)
        rows = NewRows(store, nodes[some], 12 + depths[some], sees[some, : level[-1] + 1])
        levels.append(target.decoder.forward([rows])[0].logits)
        store.keep(len(level))
    torch.testing.assert_close(torch.cat(levels), whole, **CLOSE)
    for node in range(7):
        path = nodes[sees[node]]
        alone = theirs(model, torch.cat([prefix, path]))[-1]
        torch.testing.assert_close(whole[node], alone, **CLOSE)
    store.roll_back(12)
    accepted = target.decoder.forward([NewRows(store, nodes, 12 + depths, sees)])[0]
    assert accepted.logits.shape == whole.shape
    store.keep(torch.tensor([0, 2, 5]))
    after = target.decoder.forward([NewRows(store, TOKENS[12:22])])[0].logits
    text = torch.cat([prefix, nodes[[0, 2, 5]], TOKENS[12:22]])
    torch.testing.assert_close(after, theirs(model, text)[15:], **CLOSE)


@pytest.mark.parametrize("name", COMPACT)
def test_sequences_together_and_rolled_back_ones_are_as_alone(name: str) -> None:
    model, target = pair(name)
    texts = [TOKENS[:9], TOKENS[5:25], TOKENS[10:13]]
    batch = [NewRows(target.decoder.new_cache(40), text) for text in texts]
    for text, rows, output in zip(texts, batch, target.decoder.forward(batch), strict=True):
        torch.testing.assert_close(output.logits, theirs(model, text), **CLOSE)
        rows.cache.keep(len(text))
    batch[1].cache.roll_back(11)
    more = [NewRows(rows.cache, TOKENS[20:23]) for rows in batch]
    kept = [texts[0], texts[1][:11], texts[2]]
    for text, output in zip(kept, target.decoder.forward(more), strict=True):
        alone = theirs(model, torch.cat([text, TOKENS[20:23]]))[-3:]
        torch.testing.assert_close(output.logits, alone, **CLOSE)


@pytest.mark.parametrize("name", COMPACT)
def test_as_a_small_lm_it_drafts_what_it_writes(name: str) -> None:
    _, target = pair(name)
    drafters = {"small": SmallLMDrafter(target.compact)}
    plain = SpeculativeDecoder(target, drafters, PlainPolicy()).generate(TOKENS[:6], 13)
    for arm, least in (("small:3", 3), ("small:3x6", 1)):
        policy = FixedPolicy(parse_arm(arm))
        text = SpeculativeDecoder(target, drafters, policy).generate(TOKENS[:6], 13)
        assert text.tokens == plain.tokens
        accepted = [one.record.accepted for one in text.rounds]
        assert min(accepted[:-1]) >= least, arm


def test_the_settings_of_these_models_matter() -> None:
    """Guards the tests above: without its oddity, each model would compute something else."""
    odd = {
        "gemma2": {"attn_logit_softcapping": None},
        "gemma3": {"sliding_window": 200},
        "phi3": {"rope_parameters": None},
        "granite": {"attention_multiplier": 0.3},
        "smollm3": {"no_rope_layers": [1] * 6},
        "qwen3_moe": {"norm_topk_prob": False},
        "mistral window": {"sliding_window": None},
    }
    for name, change in odd.items():
        plain = theirs(compact_model(name, **change), TOKENS)[-1]
        assert (plain - theirs(pair(name)[0], TOKENS)[-1]).abs().max() > 0.02, name


@pytest.mark.parametrize("name", ["gemma2", "gemma3 capped", "granite"])
def test_teachers_read_some_rows_of_the_head_with_its_scales_and_caps(name: str) -> None:
    model, target = pair(name)
    hidden = target.decoder.forward([NewRows(target.decoder.new_cache(30), TOKENS)])[0].hidden
    rows = torch.tensor([40, 3, 17])
    learner = hidden.clone().requires_grad_()
    expected = theirs(model, TOKENS)
    torch.testing.assert_close(target.decoder.logits(hidden, rows), expected[:, rows], **CLOSE)
    learnt = target.decoder.logits(learner)
    torch.testing.assert_close(learnt, expected, **CLOSE)
    learnt.sum().backward()  # type: ignore[no-untyped-call]
    assert learner.grad is not None and learner.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["gemma3", "granite"])
def test_in_bfloat16_embeddings_are_scaled_as_transformers_rounds_it(name: str) -> None:
    """Gemma rounds the scale, Granite does not: off by one rounding, all rows are."""
    model = compact_model(name, hidden_size=40, embedding_multiplier=3.3)
    target = wrap_model(model.to(torch.bfloat16), None, name, replace(ONE_THREAD, dtype="bfloat16"))
    with torch.no_grad():
        first = model(TOKENS[None, :9], output_hidden_states=True).hidden_states[0][0]
    assert torch.equal(target.compact._embed(TOKENS[:9]), first)


def test_a_model_that_is_loaded_in_bfloat16_agrees_whatever_its_width(tmp_path: Path) -> None:
    compact_model("gemma3", hidden_size=40).save_pretrained(tmp_path)
    assert load_target(str(tmp_path), "bfloat16", 1, "cpu", "compact").decoder.draws_trees
