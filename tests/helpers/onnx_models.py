"""A small network for the tests of ONNX files; torch's exporter writes each of its graphs once."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import pytest
import torch
from numpy.random import default_rng
from PIL import Image

from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx import export as onnx_export
from autoformer_zoo.space import SubnetConfig

SUBNET = SubnetConfig(2, 128, (2, 1), (2.0, 1.5))

IN_ONE_PROCESS = pytest.mark.xdist_group("onnx")  # which then exports each graph once
_to_proto = onnx_export._to_proto
_graphs: dict[tuple[Any, ...], bytes] = {}


@cache
def small_model() -> AutoFormer:
    """A nano of two blocks at 16 x 24 px with loud weights; not to be changed."""
    torch.manual_seed(0)
    model: Any = create_model("autoformer_nano", subnet=SUBNET, img_size=(16, 24))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3 if "rel_pos" in name else 0.1)
    return model.eval()


def reuse_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what torch's exporter, seconds a call, wrote, by the weights that it wrote."""

    def reused(networks: Any, batch_size: int | None, opset: int, half: bool) -> onnx.ModelProto:
        weights = sum(p.double().sum().item() for p in networks.reference.parameters())
        key = (type(networks.exported), networks.input_size, weights, batch_size, opset, half)
        if key not in _graphs:
            _graphs[key] = _to_proto(networks, batch_size, opset, half).SerializeToString()
        return onnx.load_from_string(_graphs[key])

    monkeypatch.setattr(onnx_export, "_to_proto", reused)


def made_images(count: int = 8, seed: int = 0) -> list[Image.Image]:
    """Return images of odd sizes, with the smooth parts and edges of photographs."""
    rng = default_rng(seed)
    images = []
    for _ in range(count):
        height, width = (int(side) for side in rng.integers(17, 90, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), "uint8"))
        images.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return images
