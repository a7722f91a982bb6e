"""What tests of the command share: files of a supernet and of an image, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, save_supernet
from autoformer_zoo.weights.layouts import Architecture

SUPERNET = SubnetConfig(2, 192, (3, 3), (4.0, 4.0))
SUBNET = SubnetConfig(2, 128, (2, 1), (2.0, 1.5))

Run = Any  # what the fixture `run` is: arguments -> exit code, stdout, stderr


def write_supernet(
    folder: Path, sizes: SubnetConfig = SUPERNET, notes: Mapping[str, str] | None = None
) -> Path:
    """Write a supernet's file with random weights, 32 px and ten classes as nano."""
    network = AutoFormer(sizes, img_size=32, patch_size=4, num_classes=10)
    net = Architecture(sizes, (32, 32), (4, 4), in_chans=3, num_classes=10)
    weights = SupernetWeights(network.state_dict(), net, "prefix", notes or {})
    save_supernet(weights, folder / "supernet.safetensors")
    return folder / "supernet.safetensors"


def write_image(folder: Path, name: str = "image.png") -> Path:
    """Write a gradient."""
    Image.linear_gradient("L").convert("RGB").save(folder / name)
    return folder / name


def assert_refused(result: tuple[int, str, str], text: str) -> None:
    """One line on stderr that holds `text`, nothing on stdout, exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("autoformer-zoo: ")
    assert err.count("\n") == 1
    assert text in err
