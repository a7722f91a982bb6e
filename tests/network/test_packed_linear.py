"""Packed linear layers against PyTorch's own, and the choice of the library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from autoformer_zoo.network import packed_linear
from autoformer_zoo.network.packed_linear import (
    HAS_MKL,
    HAS_ONEDNN,
    Library,
    LinearStep,
    packing_library,
)

LIBRARIES = [
    pytest.param("mkl", marks=pytest.mark.skipif(not HAS_MKL, reason="no MKL")),
    pytest.param("onednn", marks=pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN")),
]


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    packing_library.cache_clear()
    yield
    packing_library.cache_clear()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_packed_layer_is_the_layer_for_any_rows(library: Library, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 24), torch.randn(48) if has_bias else None
    step = LinearStep(weight, bias).pack(library, 10)
    assert step.packed is not None
    with torch.no_grad():
        for shape in [(10, 24), (2, 5, 24), (3, 7, 24), (1, 24)]:
            x = torch.randn(shape)
            expected = F.linear(
                x.double(), weight.double(), bias if bias is None else bias.double()
            )
            for found, wanted in [(step.run(x), expected), (step.run_gelu(x), F.gelu(expected))]:
                assert found.shape == wanted.shape
                torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_layer_that_is_not_packed_is_the_layer() -> None:
    weight, bias, x = torch.randn(8, 4), torch.randn(8), torch.randn(3, 4)
    step = LinearStep(weight, bias)
    assert torch.equal(step.run(x), F.linear(x, weight, bias))
    assert torch.equal(step.run_gelu(x), F.gelu(F.linear(x, weight, bias)))


@pytest.mark.parametrize(
    ("vendor", "capability", "onednn", "mkl", "expected"),
    [
        ("GenuineIntel", "AVX512", True, True, "mkl"),
        ("AuthenticAMD", "AVX512", True, True, "onednn"),
        ("AuthenticAMD", "AVX2", True, True, "mkl"),
        ("AuthenticAMD", "AVX512", False, True, "mkl"),
        ("GenuineIntel", "AVX512", True, False, None),
        ("Intel64 Family 6", "AVX512", True, True, "mkl"),
    ],
    ids=["Intel", "AMD", "AMD without AVX-512", "no oneDNN", "no MKL", "not Linux"],
)
@pytest.mark.usefixtures("fresh_choice")
def test_library_follows_the_processor(
    vendor: str,
    capability: str,
    onednn: bool,
    mkl: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_linear, "processor", lambda field: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(packed_linear, "HAS_ONEDNN", onednn)
    monkeypatch.setattr(packed_linear, "HAS_MKL", mkl)
    assert packing_library() == expected
