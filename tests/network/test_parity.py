"""The public path against the official code's and NNI's own numbers, in every attention form."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoformer_zoo.models.factory import build_subnet, extract_subnet
from autoformer_zoo.network.attention import FORM_VARIABLE
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, open_checkpoint
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.upstream import (
    GOLDEN,
    fill,
    golden_json,
    images,
    official_state,
    training_checkpoint,
    uniform,
)

FORMS = ("explicit", "augmented", "decomposed")
PARITY_FOLDER = os.environ.get("AUTOFORMER_ZOO_PARITY")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(FORM_VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def nni_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = golden_json("nni")["tiny"]
    path = tmp_path_factory.mktemp("nni") / "tiny-subnet.pth"
    torch.save({name: fill(about["salt"], name, s) for name, s in about["shapes"].items()}, path)
    return path


@pytest.mark.parametrize("case", ["mini", "clamp"])
def test_small_supernets_match_official_logits(case: str, form: str, tmp_path: Path) -> None:
    about = golden_json(case)
    if case == "clamp" and form == "explicit":
        about["cases"] = about["cases"][:1]  # 400 patches: N x N x 64 takes its time
    state = small_state(about["img_size"], about["num_classes"], about["salt"])
    torch.save(training_checkpoint(state), tmp_path / "supernet.pth")
    supernet = load_supernet(tmp_path / "supernet.pth")
    check_cases(supernet, about, case, "", batch=4, tolerance=1e-5)


@pytest.mark.skipif(PARITY_FOLDER is None, reason="AUTOFORMER_ZOO_PARITY names no folder")
def test_official_training_checkpoint_matches_official_logits() -> None:
    supernet = load_supernet(Path(str(PARITY_FOLDER), "mini_supernet.pth"), "packed_prefix")
    check_cases(supernet, golden_json("mini"), "mini", "", batch=4, tolerance=1e-5)


@pytest.mark.usefixtures("form")
def test_published_tiny_matches_official_logits() -> None:
    about = golden_json("full")["tiny"]
    about["cases"] = about["cases"][:1]
    check_cases(released_supernet("tiny", about["salt"]), about, "full", "tiny.")


@pytest.mark.slow
@pytest.mark.parametrize("space", ["tiny", "small", "base"])
@pytest.mark.usefixtures("form")
def test_all_released_cases_match_official_logits(space: str) -> None:
    about = golden_json("full")[space]
    check_cases(released_supernet(space, about["salt"]), about, "full", f"{space}.")


@pytest.mark.usefixtures("form")
def test_prenas_matches_its_logits() -> None:
    about = golden_json("prenas")["tiny"]
    supernet = released_supernet("tiny", about["salt"], about["layout"])
    check_cases(supernet, about, "prenas", "tiny.")


@pytest.mark.usefixtures("form")
def test_nni_subnet_matches_its_logits(nni_file: Path) -> None:
    about = golden_json("nni")["tiny"]
    network = build_subnet(open_checkpoint(nni_file).subnet())
    assert sum(weight.numel() for weight in network.parameters()) == about["params"]
    compare(network, about, "nni", "tiny.logits", 2, 2e-5)


@cache
def small_state(img_size: int, num_classes: int, salt: str) -> dict[str, Tensor]:
    return official_state(uniform(4, 192, 3), img_size, num_classes, salt)


@lru_cache(maxsize=2)
def released_supernet(space: str, salt: str, layout: str = "packed_prefix") -> SupernetWeights:
    state = official_state(SPACES[space].supernet, 224, 1000, salt)
    return load_supernet(state, layout)


def check_cases(
    supernet: SupernetWeights,
    about: dict[str, Any],
    golden: str,
    prefix: str,
    batch: int = 2,
    tolerance: float = 2e-5,
) -> None:
    for i, case in enumerate(about["cases"]):
        network = extract_subnet(supernet, SubnetConfig.from_dict(case["subnet"]))
        assert sum(weight.numel() for weight in network.parameters()) == case["params"]
        compare(network, about, golden, f"{prefix}logits_{i}", batch, tolerance)


def compare(
    network: AutoFormer, about: dict[str, Any], golden: str, key: str, batch: int, tolerance: float
) -> None:
    expected = load_file(GOLDEN / f"{golden}.safetensors")[key]
    x = images(about["input_seed"], batch, about.get("img_size", 224))
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=0, atol=tolerance)
