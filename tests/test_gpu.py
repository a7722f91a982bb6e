"""The same numbers on a GPU as on the CPU: attention, networks, training, prediction.

Without CUDA, `pytest -m gpu tests/test_gpu.py` runs the tests on the CPU, as a rehearsal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import autoformer_zoo as az
from autoformer_zoo.network.attention import explicit_attention, relpos_attention
from autoformer_zoo.network.relpos import positions
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAT = Path(__file__).parent.parent / "docs" / "cat.jpg"
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32, whose errors would hide others
    yield
    torch.set_float32_matmul_precision(before)


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().cpu().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (24, 24), (3, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("form", ["augmented", "decomposed"])
@pytest.mark.parametrize("training", [False, True])
def test_fast_forms_have_at_most_twice_the_error_of_the_explicit_one(
    form: str, dtype: torch.dtype, grid: tuple[int, int], training: bool
) -> None:
    qkv = torch.randn(3, 2, 3, 1 + grid[0] * grid[1], 64, dtype=torch.float64)
    tables = 0.3 * torch.randn(4, 30, 64, dtype=torch.float64)
    exact = explicit_attention(*qkv, tables, grid)
    low = [each.to(GPU, dtype).requires_grad_(training) for each in (qkv, tables)]

    fast = relpos_attention(low[0], low[1], grid, form=form)  # type: ignore[arg-type]
    explicit = relpos_attention(low[0], low[1], grid, form="explicit")

    assert _relative(fast, exact) <= max(2 * _relative(explicit, exact), 1e-6)


def test_positions_are_made_once_for_all_blocks() -> None:
    like = torch.zeros(1, device=GPU)
    assert positions((5, 6), like)[1] is positions((5, 6), like)[1]
    assert positions((5, 6), like)[1].device == like.device


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_network_gives_the_cpu_s_logits(dtype: torch.dtype) -> None:
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        exact = model.double()(images.double())
        logits = model.to(GPU, dtype)(images.to(GPU, dtype))

    limits = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
    assert _relative(logits, exact) < limits[dtype]


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_stays_near_the_cpu_s_logits(dtype: torch.dtype) -> None:
    model = az.create_model("autoformer_nano", pretrained=True).eval()
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        exact = model(images).double()
        model.to(GPU)
        with torch.autocast(GPU.type, dtype):
            logits = model(images.to(GPU))

    assert _relative(logits, exact) < 5e-2


def test_compiled_network_gives_the_same_logits() -> None:
    model = az.create_model("autoformer_nano", pretrained=True).eval().to(GPU)
    images = torch.rand(8, 3, 32, 32, device=GPU)
    with torch.inference_mode():
        exact = model(images).double().cpu()
        assert _relative(torch.compile(model)(images), exact) < 1e-5


def test_supernet_step_gives_the_cpu_s_gradients() -> None:
    space = SPACES["nano"]
    torch.manual_seed(0)
    supernet = Supernet(space).eval()  # no drop path, whose draws differ between devices
    subnet = space.sample(random.Random(0))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    def gradients(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        supernet.to(device, dtype).zero_grad()
        F.cross_entropy(supernet(images.to(device, dtype), subnet), labels.to(device)).backward()
        named = supernet.named_parameters()
        return {name: p.grad.detach().cpu().double() for name, p in named if p.grad is not None}

    exact = gradients(torch.device("cpu"), torch.float64)
    found = gradients(GPU, torch.float32)

    assert found.keys() == exact.keys()
    assert max(_relative(found[name], exact[name]) for name in exact) < 1e-3


def test_prediction_on_the_gpu_names_the_cat() -> None:
    model = az.create_model("autoformer_nano", pretrained=True).to(GPU)
    assert az.predict(model, CAT)[0][0].label == "cat"
