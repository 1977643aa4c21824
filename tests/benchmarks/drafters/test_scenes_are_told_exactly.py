"""Drawn scenes, what is said of them, and the tower that looks at them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from benchmarks.multimodal.alignment import EDGE, align, words_at
from benchmarks.multimodal.scenes import MOST, PLACES, draw, make_scene
from benchmarks.multimodal.talks import ASK, NUMBERS, ask, talk
from benchmarks.multimodal.tower import tower_config, tower_weights

SCENES = [make_scene(5, number) for number in range(30)]


def test_a_seed_is_a_scene() -> None:
    assert make_scene(5, 3) == SCENES[3] != SCENES[4]
    one, other = (np.asarray(draw(make_scene(5, 3))) for _ in range(2))
    assert (one == other).all()
    assert {len(scene.shapes) for scene in SCENES} == set(range(1, MOST + 1))


def test_shapes_of_a_scene_differ_and_stand_in_reading_order() -> None:
    for scene in SCENES:
        assert len({(one.kind, one.color) for one in scene.shapes}) == len(scene.shapes)
        places = [one.place for one in scene.shapes]
        assert places == sorted(set(places))


def test_answers_are_true() -> None:
    for scene in SCENES:
        said = {kind: ask(scene, kind, np.random.default_rng(1)) for kind in ASK}
        assert NUMBERS[len(scene.shapes)] in said["count"].answer
        told = json.loads(said["json"].answer)
        assert [(one["shape"], one["color"], one["size"]) for one in told] == [
            (one.kind, one.color, one.size) for one in scene.shapes
        ]
        for shape in scene.shapes:
            look = f"{shape.size} {shape.color} {shape.kind} is {PLACES[shape.place]}."
            assert look in said["describe"].answer
        kind = said["is there"].question.removeprefix("Is there a ").removesuffix("?")
        there = any(shape.kind == kind for shape in scene.shapes)
        assert said["is there"].answer.startswith("Yes" if there else "No")


def test_a_talk_asks_different_things() -> None:
    for scene in SCENES:
        assert len({one.kind for one in talk(scene, 5)}) == 5
        assert talk(scene, 5, 1) == talk(scene, 5, 1) != talk(scene, 5, 2)


def test_the_words_at_a_place_are_what_is_there() -> None:
    for scene in SCENES:
        words = words_at(scene)
        assert len(words) == EDGE**2
        for shape in scene.shapes:
            assert any(f"{shape.size} {shape.color} {shape.kind}" in one for one in words)
        assert any(scene.background in one for one in words)


def test_a_projector_learns_to_say_them() -> None:
    torch.manual_seed(0)
    grids, wanted = torch.randn(32, 4, 6), torch.randn(6, 8)
    layer = torch.nn.Linear(6, 8)
    assert align(layer, grids, grids @ wanted, epochs=200, lr=0.1) < 0.05


@pytest.fixture(scope="module")
def lite() -> dict[str, Tensor]:
    """A Lite0 net with random weights, by the names of its publishers."""
    generator, weights = torch.Generator().manual_seed(0), {}

    def layer(name: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5

    def norm(name: str, width: int) -> None:
        for part in ("weight", "running_var"):
            weights[f"{name}.{part}"] = torch.rand(width, generator=generator) + 0.5
        for part in ("bias", "running_mean"):
            weights[f"{name}.{part}"] = 0.1 * torch.randn(width, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (narrow, out, kernel, _, expand) in enumerate(blocks()):
        name, wide = f"_blocks.{index}", narrow * expand
        if expand > 1:
            layer(f"{name}._expand_conv", wide, narrow, 1, 1)
            norm(f"{name}._bn0", wide)
        layer(f"{name}._depthwise_conv", wide, 1, kernel, kernel)
        norm(f"{name}._bn1", wide)
        layer(f"{name}._project_conv", out, wide, 1, 1)
        norm(f"{name}._bn2", out)
    layer("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    weights["_fc.weight"] = torch.zeros(1000, 1280)
    return weights


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Widths in and out, kernel, stride and expansion of each block of Lite0, from its paper."""
    stages = (
        *((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3)),
        *((112, 5, 1, 6, 3), (192, 5, 2, 6, 4), (320, 3, 1, 6, 1)),
    )
    made, width = [], 32
    for out, kernel, stride, expand, count in stages:
        for number in range(count):
            made.append((width, out, kernel, 1 if number else stride, expand))
            width = out
    return made


def lite_net(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Lite0 without its classifier, written down once more: no squeeze, no excitation."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        kernel, size = weight.shape[-1], x.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, behind = pad // 2, pad - pad // 2
        return F.conv2d(F.pad(x, (before, behind) * 2), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (
            weights[f"{name}.{one}"] for one in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for index, (narrow, out, _, stride, expand) in enumerate(blocks()):
        name, y = f"_blocks.{index}", x
        if expand > 1:
            y = F.relu6(norm(conv(y, f"{name}._expand_conv"), f"{name}._bn0"))
        y = F.relu6(norm(conv(y, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
        y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if narrow == out and stride == 1 else y
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1"))


def test_transformers_efficientnet_computes_a_lite_net(lite: dict[str, Tensor]) -> None:
    model = transformers.EfficientNetModel(tower_config()).eval()
    model.load_state_dict(tower_weights(lite))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        seen = model(pixels).last_hidden_state
    assert seen.shape == (1, 1280, 2, 2)
    torch.testing.assert_close(seen, lite_net(lite, pixels), rtol=1e-4, atol=1e-4)
