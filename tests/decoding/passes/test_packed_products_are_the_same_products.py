"""Packed weights change how long a product takes, not what comes out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.compact import products as products_module
from draftgym.decoding.model.compact.products import (
    FEWEST,
    PackedLinear,
    Products,
    pack_linears,
    packing_gain,
)
from draftgym.decoding.model.precision import Precision, choose_precision
from draftgym.decoding.model.target import wrap_model
from draftgym.policies.routers.rules import FixedPolicy
from tests.tiny import tiny_eagle3, tiny_model

WEIGHT = torch.randn(400, 192, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, FEWEST - 1, FEWEST, 9, 17, 200])
@pytest.mark.parametrize("bias", [None, BIAS])
@torch.inference_mode()
def test_packed_products_equal_torchs(rows: int, bias: torch.Tensor | None) -> None:
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(rows))
    got = Products(packed=True)(x, WEIGHT, bias)
    torch.testing.assert_close(got, F.linear(x, WEIGHT, bias), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    original = products_module._pack
    monkeypatch.setattr(
        products_module, "_pack", lambda weight: packed.append(len(weight)) or original(weight)
    )
    products = Products(packed=True)
    for rows in (1, FEWEST, 9, 200):
        products(torch.randn(rows, 192), WEIGHT)
    products(torch.randn(8, 16), torch.randn(8, 16))  # too small to be worth it
    Products()(torch.randn(8, 192), WEIGHT)
    assert packed == [400]


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or packing_gain() == 0,
    reason="a promise of oneDNN's kernels for AVX-512, not of packed products as such",
)
@pytest.mark.parametrize("shape", [(400, 192), (576, 1536), (192, 576), (4096, 576)])
@torch.inference_mode()
def test_a_row_does_not_depend_on_how_many_rows_there_are(shape: tuple[int, int]) -> None:
    """So one pass over five rows and five passes over one row agree to the last bit."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    x = torch.randn(64, shape[1], generator=generator)
    products = Products(packed=True)
    together = products(x, weight)
    for count in (1, 2, 3, 4, 5, 9, 17, 33):
        assert torch.equal(products(x[:count], weight), together[:count])


@torch.inference_mode()
def test_a_packed_network_is_the_same_network() -> None:
    """Same outputs for any leading axes, same names in its state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(192, 400), nn.Sequential(nn.Linear(400, 192, bias=False)))
    x = torch.randn(2, 3, 192)
    before, names = network(x), set(network.state_dict())
    pack_linears(network, Products(packed=True))
    assert all(isinstance(one, PackedLinear) for one in (network[0], network[1][0]))
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)
    assert set(network.state_dict()) == names


def test_texts_with_packed_weights_are_plain_decodings() -> None:
    model = tiny_model(hidden_size=256, intermediate_size=320, head_dim=64, vocab_size=300)
    target = wrap_model(model, None, "tiny", Precision("float32", 1, "tests", packed=True))
    drafter = tiny_eagle3(target)
    prompt = torch.tensor([5, 9, 5, 9, 7])
    plain = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 40)
    tree = SpeculativeDecoder(target, {"eagle3": drafter}, FixedPolicy(parse_arm("eagle3:4x12")))
    assert tree.generate(prompt, 40).tokens == plain.tokens
    assert target.decoder.row_work.products._copies


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
