"""Packed weights change how long a product takes, not what comes out, and only for a few rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from decoding import products as products_module
from decoding.arms import parse_arm
from decoding.decoder import PlainPolicy, SpeculativeDecoder
from decoding.probe import Precision, choose_precision
from decoding.products import FEWEST, MOST, Products, packing_gain
from decoding.target import wrap_model
from policies.fixed import FixedPolicy
from tests.tiny import tiny_eagle3, tiny_model

WEIGHT = torch.randn(400, 192, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, FEWEST - 1, FEWEST, 9, 17, MOST, MOST + 1, 200])
@pytest.mark.parametrize("bias", [None, BIAS])
@torch.inference_mode()
def test_packed_products_equal_torchs(rows: int, bias: torch.Tensor | None) -> None:
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(rows))
    got = Products(packed=True)(x, WEIGHT, bias)
    torch.testing.assert_close(got, F.linear(x, WEIGHT, bias), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_weight_is_packed_once_and_only_for_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    original = products_module._pack
    monkeypatch.setattr(
        products_module, "_pack", lambda weight: packed.append(len(weight)) or original(weight)
    )
    products = Products(packed=True)
    for rows in (1, MOST + 1, FEWEST, 9, MOST):
        products(torch.randn(rows, 192), WEIGHT)
    products(torch.randn(8, 16), torch.randn(8, 16))  # too small to be worth it
    Products()(torch.randn(8, 192), WEIGHT)
    assert packed == [400]


def test_texts_with_packed_weights_are_plain_decodings() -> None:
    """Plain decoding has one row a pass and never uses the packed copies; trees do."""
    model = tiny_model(hidden_size=256, intermediate_size=320, head_dim=64, vocab_size=300)
    target = wrap_model(model, None, "tiny", Precision("float32", 1, "tests", packed=True))
    drafter = tiny_eagle3(target)
    prompt = torch.tensor([5, 9, 5, 9, 7])
    plain = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 40)
    tree = SpeculativeDecoder(target, {"eagle3": drafter}, FixedPolicy(parse_arm("eagle3:4x12")))
    assert tree.generate(prompt, 40).tokens == plain.tokens
    assert target.decoder.products._copies


def test_packing_is_chosen_by_trying_it() -> None:
    precision = choose_precision("float32", threads=1)
    assert precision.packed == (packing_gain() > 1.1)
    assert ("packed" in precision.reason) == precision.packed
    assert not choose_precision("bfloat16", threads=1).packed


def test_a_torch_without_the_operators_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    monkeypatch.setattr(products_module, "_pack", missing)
    packing_gain.cache_clear()
    assert packing_gain() == 0.0
    packing_gain.cache_clear()
