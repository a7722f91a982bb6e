"""Attention: every form against the definition, in values, gradients, precision and memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoformer_zoo.network import attention
from autoformer_zoo.network.attention import (
    FORM_VARIABLE,
    augmented_attention,
    choose_form,
    decomposed_attention,
    explicit_attention,
    relpos_attention,
)
from autoformer_zoo.network.relpos import pad_channels, positions, relative_index
from tests.helpers.network_definition import defined_attention

FORMS = {
    "explicit": explicit_attention,
    "augmented": augmented_attention,
    "decomposed": decomposed_attention,
}
FAST = ["augmented", "decomposed"]
GRIDS = [(4, 4), (14, 14), (6, 10), (1, 7), (16, 4), (3, 24), (1, 1), (15, 15), (20, 20)]


def _inputs(
    grid: tuple[int, int], batch: int = 1, heads: int = 1, scale: float = 1.0, seed: int = 0
) -> list[Tensor]:
    """Return q, k, v and tables in float64; no table row is zero and no two are alike."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, heads, 1 + grid[0] * grid[1], 64)
    qkv = [scale * torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3)]
    return [*qkv, 0.5 * torch.randn(4, 30, 64, generator=rng, dtype=torch.float64)]


def _packed(inputs: list[Tensor]) -> Tensor:
    """Return q, k and v (3, B, H, N, D) in memory as the network's projection returns them."""
    packed = torch.stack(inputs[:3]).permute(1, 3, 0, 2, 4).contiguous()  # (B, N, 3, H, D)
    return packed.permute(2, 0, 3, 1, 4)


def _relpos(inputs: list[Tensor], grid: tuple[int, int], **arguments: Any) -> Tensor:
    return relpos_attention(_packed(inputs), inputs[3], grid, **arguments)


def _output_and_gradients(
    form: Callable[..., Tensor], inputs: list[Tensor], grid: tuple[int, int]
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = form(*leaves, grid)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).cos()
    (out * weight).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


class _Record(TorchDispatchMode):
    """Keep the sizes of all tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A view of zero strides, as expand makes, takes no memory.
            if isinstance(leaf, Tensor) and 0 not in leaf.stride():
                self.largest = max(self.largest, leaf.numel())
        return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grid", [(6, 10), (20, 3), (2, 17)], ids=str)
def test_form_follows_the_definition(form: str, grid: tuple[int, int]) -> None:
    inputs = _inputs(grid, heads=2)
    out = FORMS[form](*inputs, grid)
    torch.testing.assert_close(out, defined_attention(*inputs, grid), rtol=0, atol=1e-12)
    assert FORMS[form](*(x[:0] for x in inputs[:3]), inputs[3], grid).shape == (0, *out.shape[1:])


@pytest.mark.parametrize(
    ("grid", "batch", "heads"),
    [*((grid, 1, 1) for grid in GRIDS), ((5, 3), 1, 3), ((5, 3), 5, 2), ((5, 3), 3, 4)],
    ids=str,
)
def test_fast_forms_equal_explicit(grid: tuple[int, int], batch: int, heads: int) -> None:
    inputs = _inputs(grid, batch, heads)
    expected = _output_and_gradients(explicit_attention, inputs, grid)
    qkv, tables = _packed(inputs), inputs[3].clone()
    for form in FAST:
        actual = _output_and_gradients(FORMS[form], inputs, grid)
        for name, one, other in zip("oqkvt", actual, expected, strict=True):
            assert (one - other).abs().max() < 1e-10, (form, name)
        for _ in range(2):  # in inference, where the second call finds a workspace
            with torch.no_grad():
                out = relpos_attention(qkv, tables, grid, form=form)
            torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-10, msg=form)
    assert torch.equal(qkv, torch.stack(inputs[:3]))
    assert torch.equal(tables, inputs[3])


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("grid", [(4, 4), (6, 10), (20, 20)], ids=str)
def test_channels_without_marks_change_no_attention(form: str, grid: tuple[int, int]) -> None:
    inputs = _inputs(grid, heads=2)
    padded = pad_channels(positions(grid, inputs[0]))
    channels = {8: 16, 16: 24, 40: 48}[sum(grid)]  # 2 more than rows and columns, to multiples of 8
    assert padded[0].shape == padded[1].shape == (1 + grid[0] * grid[1], channels)
    expected = _output_and_gradients(explicit_attention, inputs, grid)
    actual = _output_and_gradients(partial(FORMS[form], shared=padded), inputs, grid)
    for name, one, other in zip("oqkvt", actual, expected, strict=True):
        assert (one - other).abs().max() < 1e-10, name


@pytest.mark.parametrize("form", FORMS)
def test_form_is_exact_under_dropout(form: str) -> None:
    # Values that are unit vectors, and no relative values, make the output the weights as dropped.
    grid, tokens = (5, 6), 31
    q, k, v, tables = _inputs(grid, heads=2)
    rows, columns = relative_index(grid)
    unit = torch.eye(tokens, 64, dtype=q.dtype).expand(1, 2, -1, -1)
    only_keys = torch.cat([tables[:2], torch.zeros_like(tables[2:])])
    torch.manual_seed(7)
    dropped = FORMS[form](q, k, unit, only_keys, grid, 0.3)[..., :tokens]  # (B, H, N, N)
    torch.manual_seed(7)
    out = FORMS[form](q, k, v, tables, grid, 0.3)

    whole = explicit_attention(q, k, unit, only_keys, grid)[..., :tokens]
    kept = dropped.abs() > 1e-15
    assert 0.6 < kept.double().mean() < 0.8
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.7, rtol=0, atol=1e-10)
    values = v.unsqueeze(2) + tables[2][rows] + tables[3][columns]  # (B, H, N, N, D)
    expected = torch.einsum("bhij,bhijd->bhid", dropped, values)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def _half_errors(
    form: str, dtype: torch.dtype, grid: tuple[int, int], scale: float, mode: str
) -> tuple[float, float]:
    """Return norm-wise and largest error against explicit fp32, means over some inputs."""
    norms, maxima = [], []
    for seed in range(3):
        rounded = [x.to(dtype) for x in _inputs(grid, heads=2, scale=scale, seed=seed)]
        exact = [x.float() for x in rounded]
        reference = explicit_attention(*exact, grid)
        # Autocast: q, k and v come out of a linear layer in half, tables are fp32 parameters.
        inputs = [*rounded[:3], exact[3]] if mode == "autocast" else rounded
        with (
            torch.autocast("cpu", dtype=dtype, enabled=mode == "autocast"),
            torch.set_grad_enabled(mode != "inference"),
        ):
            error = _relpos(inputs, grid, form=form).float() - reference
        norms.append((error.norm() / reference.norm()).item())
        maxima.append(error.abs().max().item())
    return float(np.mean(norms)), float(np.mean(maxima))


@pytest.mark.parametrize("mode", ["training", "autocast", "inference"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FAST)
def test_half_precision_errs_at_most_twice_as_explicit(
    form: str, dtype: torch.dtype, scale: float, mode: str
) -> None:
    norm, maximum = _half_errors(form, dtype, (8, 9), scale, mode)
    explicit_norm, explicit_maximum = _half_errors("explicit", dtype, (8, 9), scale, mode)
    assert norm <= 2 * explicit_norm
    assert maximum <= 2 * explicit_maximum


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", FORMS)
def test_only_the_explicit_form_builds_a_vector_for_each_pair(form: str, gradients: bool) -> None:
    grid, tokens = (14, 14), 197
    inputs = [x.float().requires_grad_(gradients) for x in _inputs(grid)]
    with _Record() as record:
        out = FORMS[form](*inputs, grid)
        if gradients:
            out.sum().backward()
    bound = {"explicit": tokens**2 * 64, "decomposed": tokens**2, "augmented": tokens * 128}
    assert record.largest <= bound[form]
    if form == "explicit":
        assert record.largest == bound[form]  # the recorder sees such tensors


@pytest.mark.parametrize("form", FORMS)
def test_argument_and_environment_choose_the_form(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention._FORMS, form, lambda *_: "taken")
    assert _relpos(_inputs((2, 2)), (2, 2), form=form) == "taken"
    monkeypatch.setenv(FORM_VARIABLE, form)
    assert _relpos(_inputs((2, 2)), (2, 2)) == "taken"
    monkeypatch.setenv(FORM_VARIABLE, "explicit" if form != "explicit" else "augmented")
    assert _relpos(_inputs((2, 2)), (2, 2), form=form) == "taken"


@pytest.mark.parametrize(
    ("tokens", "device", "training", "dtype", "expected"),
    [
        (65, "cpu", False, torch.float32, "augmented"),
        (197, "cpu", True, torch.float32, "decomposed"),
        (4097, "cpu", True, torch.float32, "augmented"),
        (65, "cpu", False, torch.bfloat16, "decomposed"),
        (197, "cuda", False, torch.bfloat16, "augmented"),
    ],
)
def test_choose_form_follows_its_table(
    tokens: int, device: str, training: bool, dtype: torch.dtype, expected: str
) -> None:
    assert choose_form(tokens, device, training, dtype) == expected
    in_place = choose_form(tokens, device, training, dtype, in_place=True)
    assert in_place == ("augmented" if dtype == torch.bfloat16 else expected)
    assert choose_form(tokens, device, training, dtype, is_graph=True) == "augmented"


def test_unknown_form_and_wrong_grid_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="attention is 'fused'; expected one of auto, explicit"):
        _relpos(_inputs((2, 2)), (2, 2), form="fused")
    with pytest.raises(ValueError, match=r"5 tokens given; a grid of \(2, 3\) needs 1 \+ 2 \* 3"):
        _relpos(_inputs((2, 2)), (2, 3))
    monkeypatch.setenv(FORM_VARIABLE, "quick")
    with pytest.raises(ValueError, match="AUTOFORMER_ZOO_ATTENTION is 'quick'; expected one of"):
        _relpos(_inputs((2, 2)), (2, 2))
