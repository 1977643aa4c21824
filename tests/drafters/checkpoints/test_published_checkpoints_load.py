"""Public checkpoints of all four formats load key for key, and draft without changing the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.compact.layers import rms_norm
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import load_drafter, read_checkpoint
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.formats import recognise
from tests.feature_context import FeatureContext, HeardRule, random_batch
from tests.published.checkpoints import (
    FORMATS,
    SIZES,
    Size,
    config_of,
    draft_ids,
    tensors_of,
    write_checkpoint,
)

ROOT = Path(__file__).resolve().parents[3]
EAGLE3 = ("native-eagle3", "speculators-eagle3")
BOTH_SIZES = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
ALL_FORMATS = pytest.mark.parametrize("form", FORMATS)


def publish(folder: Path, form: str, size: Size, target: Target, **changes: Any) -> Path:
    """Writes a published checkpoint with copies of the target's tables, and some changed keys."""
    tensors = tensors_of(form, size, target.decoder.embedding, target.decoder.head)
    return write_checkpoint(folder, config_of(form, size) | changes, tensors)


def our_name(name: str, form: str) -> str:
    return name.replace("layers.0.", "midlayer.") if form == "speculators-eagle3" else name


def check_lossless(target: Target, drafter: Drafter) -> list[int]:
    """Drafts, compares with plain decoding and returns the drafted tokens."""
    prompt, plain = torch.tensor([5, 9, 7, 30, 2]), PlainPolicy()
    expected = SpeculativeDecoder(target, {}, plain).generate(prompt, 24).tokens
    policy = PlainPolicy()
    policy.arms = (Arm(drafter.name, 4),)
    result = SpeculativeDecoder(target, {drafter.name: drafter}, policy).generate(prompt, 24)
    assert result.tokens == expected
    return [token for item in result.rounds for token in item.record.drafted]


@ALL_FORMATS
@BOTH_SIZES
def test_every_tensor_arrives_and_the_text_stays(
    target: Target, tmp_path: Path, form: str, size: Size
) -> None:
    drafter = load_drafter(publish(tmp_path, form, size, target), target)
    assert isinstance(drafter, Eagle3Drafter | DFlashDrafter)
    assert drafter.name == form.partition("-")[2]
    stored = tensors_of(form, size, target.decoder.embedding, target.decoder.head)
    stored = {our_name(name, form): value for name, value in stored.items()}
    stored.pop("embed_tokens.weight", None)  # the target's own, which is read from there
    if form.endswith("dflash"):
        stored.pop("lm_head.weight", None)
    loaded = drafter.network.state_dict()
    assert loaded.keys() == stored.keys() | {"d2t", "t2d"}
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert drafter.embedding is target.decoder.embedding
    drafted = check_lossless(target, drafter)
    assert drafted and set(drafted) <= set(draft_ids(size))


@ALL_FORMATS
def test_the_config_is_read_key_by_key(target: Target, tmp_path: Path, form: str) -> None:
    size = SIZES["odd"]
    config = read_checkpoint(publish(tmp_path, form, size, target), target).network.config
    assert (config.hidden_size, config.intermediate_size) == (32, 40)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 24)
    assert (config.vocab_size, config.draft_vocab_size) == (61, 61)
    assert (config.rms_norm_eps, config.max_position_embeddings) == (1e-5, 2048)
    assert config.rope_parameters["rope_theta"] == 10000.0
    if form.endswith("dflash"):
        extra = [getattr(config, key) for key in ("num_hidden_layers", "block_size")]
        assert [*extra, getattr(config, "mask_token_id", None)] == [1, 5, 3]


@pytest.mark.parametrize(
    ("form", "changes", "taps"),
    [
        ("native-eagle3", {}, (1, 2, 2)),  # the default of six layers: 1, n // 2 - 1, n - 4
        ("native-eagle3", {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}, (1, 3, 4)),  # SpecForge
        ("native-eagle3", {"eagle_aux_hidden_state_layer_ids": [2, 3, 3]}, (1, 2, 2)),  # vLLM
        (
            "native-eagle3",
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 3, 3]}},
            (1, 2, 2),
        ),
        ("speculators-eagle3", {}, (1, 2, 4)),
        ("speculators-eagle3", {"eagle_aux_hidden_state_layer_ids": None}, (1, 2, 2)),
        ("native-dflash", {}, (1, 3)),
        ("speculators-dflash", {}, (1, 3)),
    ],
)
def test_layer_ids_are_read_in_their_own_convention(
    target: Target, tmp_path: Path, form: str, changes: dict[str, Any], taps: tuple[int, ...]
) -> None:
    folder = publish(tmp_path, form, SIZES["small"], target, **changes)
    assert load_drafter(folder, target).tap_layers == taps


def test_the_first_published_form_loads(target: Target, tmp_path: Path) -> None:
    """LlamaForCausalLM by name, weights in pytorch_model.bin, no head_dim and no rotary keys."""
    size = SIZES["small"]
    folder = publish(tmp_path, "native-eagle3", size, target, architectures=["LlamaForCausalLM"])
    body = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "rope_theta", "rope_scaling"):
        body.pop(key)
    (folder / "config.json").write_text(json.dumps(body))
    (folder / "model.safetensors").unlink()
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in tensors_of("native-eagle3", size).items()
    }
    torch.save(halves, folder / "pytorch_model.bin")
    drafter = load_drafter(folder, target)
    assert isinstance(drafter, Eagle3Drafter)
    loaded = drafter.network.state_dict()
    assert all(torch.equal(loaded[name].to(v.dtype), v) for name, v in halves.items())
    check_lossless(target, drafter)


def test_a_language_model_is_no_drafter() -> None:
    body = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "vocab_size": 61}
    assert recognise(body) is None


def first_logits(t: dict[str, Tensor], taps: Tensor, token: Tensor, **flags: bool) -> Tensor:
    """Logits of the first draft behind a text of two tokens, by the published formulas.

    One position means one key, so attention returns its value.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, t[name], 1e-5)

    if flags.get("norm_before_fc"):
        taps = norm(taps, "input_norm.weight")
    if flags.get("fc_norm"):
        each = enumerate(taps.chunk(3, -1))
        taps = torch.cat([norm(tap, f"fc_norm.{i}.weight") for i, tap in each], -1)
    g = taps @ t["fc.weight"].T
    e = norm(t["embed_tokens.weight"][token], "layers.0.input_layernorm.weight")
    normed = norm(g, "layers.0.hidden_norm.weight")
    value = torch.cat([e, normed], -1) @ t["layers.0.self_attn.v_proj.weight"].T
    repeated = value.view(1, 2, 1, 8).expand(1, 2, 2, 8).reshape(1, 32)  # two heads a group
    r = normed if flags.get("norm_before_residual") else g
    r = r + repeated @ t["layers.0.self_attn.o_proj.weight"].T
    x = norm(r, "layers.0.post_attention_layernorm.weight")
    gate = torch.nn.functional.silu(x @ t["layers.0.mlp.gate_proj.weight"].T)
    up = x @ t["layers.0.mlp.up_proj.weight"].T
    out = r + (gate * up) @ t["layers.0.mlp.down_proj.weight"].T
    return norm(out, "norm.weight") @ t["lm_head.weight"].T


@pytest.mark.parametrize(
    "flag", ["none", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"]
)
def test_wiring_flags_are_honoured(target: Target, tmp_path: Path, flag: str) -> None:
    size, form = SIZES["small"], "speculators-eagle3"
    flags = {} if flag == "none" else {flag: True}
    tensors = tensors_of(form, size, target.decoder.embedding)
    if flag == "norm_before_fc":
        tensors["input_norm.weight"] = 1 + 0.3 * torch.randn(96)
    if flag == "fc_norm":
        tensors |= {f"fc_norm.{i}.weight": 1 + 0.3 * torch.randn(32) for i in range(3)}
    write_checkpoint(tmp_path, config_of(form, size) | flags, tensors)
    drafter = load_drafter(tmp_path, target)
    assert isinstance(drafter, Eagle3Drafter)
    batch = random_batch(target, drafter.tap_layers, [(2, 4)])
    rule = HeardRule(batch.tokens[0])
    state, context = drafter.new_state(32), FeatureContext(batch, 0, 2, rule)
    drafter.catch_up(state, context)
    drafter.propose(state, context, DraftShape(2))
    expected = first_logits(tensors, batch.taps[0, :1], batch.tokens[0, 1:2], **flags)
    torch.testing.assert_close(rule.heard[0], expected[0], rtol=1e-4, atol=1e-4)
    out = torch.randn(1, 32)
    carried = rms_norm(out, tensors["norm.weight"], 1e-5) if flag == "norm_output" else out
    assert torch.equal(drafter.network.carry(out), carried)
    check_lossless(target, drafter)


@pytest.mark.parametrize("form", ["native-eagle3", "speculators-eagle3", "speculators-dflash"])
def test_tables_of_its_own_are_used(
    target: Target, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trained embedding (and head) is part of the drafter; only copies are left aside."""
    size = SIZES["small"]
    tensors = tensors_of(form, size)
    own = tensors.setdefault("embed_tokens.weight", torch.randn(61, 32))
    drafter = load_drafter(write_checkpoint(tmp_path, config_of(form, size), tensors), target)
    assert isinstance(drafter, Eagle3Drafter | DFlashDrafter)
    assert torch.equal(drafter.embedding, own)
    assert "embedding" in capsys.readouterr().err
    if isinstance(drafter, DFlashDrafter):
        assert torch.equal(drafter.head, tensors["lm_head.weight"])
    check_lossless(target, drafter)


@pytest.mark.parametrize("form", ["speculators-eagle3", "speculators-dflash"])
def test_tables_of_the_target_may_be_rounded_or_absent(
    target: Target, tmp_path: Path, form: str
) -> None:
    size = SIZES["small"]
    tensors = tensors_of(form, size, target.decoder.embedding, target.decoder.head)
    low = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    write_checkpoint(tmp_path / "low", config_of(form, size), low)
    tensors.pop("embed_tokens.weight")
    if form.endswith("dflash"):
        tensors.pop("lm_head.weight")
    write_checkpoint(tmp_path / "absent", config_of(form, size), tensors)
    for folder in ("low", "absent"):
        drafter = load_drafter(tmp_path / folder, target)
        assert isinstance(drafter, Eagle3Drafter | DFlashDrafter)
        assert drafter.embedding is target.decoder.embedding


def test_other_rotary_settings_than_the_target_has_are_noted(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are used as they stand: the first published heads were trained with theta 10000."""
    folder = publish(tmp_path, "native-eagle3", SIZES["small"], target)
    load_drafter(folder, target)
    assert capsys.readouterr().err == ""
    publish(folder, "native-eagle3", SIZES["small"], target, rope_theta=5e5)
    drafter = load_drafter(folder, target)
    assert isinstance(drafter, Eagle3Drafter)
    assert drafter.network.config.rope_parameters["rope_theta"] == 5e5
    assert "rope_theta" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eagle3-smollm2-135m", "dflash-smollm2-135m"])
def test_the_shipped_checkpoints_load(name: str) -> None:
    checkpoint = read_checkpoint(ROOT / "checkpoints" / name)
    assert checkpoint.origin.fingerprint
    assert checkpoint.network.config.vocab_size == 49152
    assert checkpoint.origin.name == "smollm2-135m"
