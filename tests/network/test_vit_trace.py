"""The network traced, scripted and taken apart: what works for timm's ViT works here, exactly."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.helpers.small_network import make_images, make_model, timm_fx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def saved_script(model: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    return torch.jit.load(file)


MADE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model),
    "timm's fx": lambda model, x: timm_fx(model),
    "timm's fx, scripted": lambda model, x: torch.jit.script(timm_fx(model)),
    "jit.trace": torch.jit.trace,
    "jit.script": saved_script,
}


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_traced_network_computes_the_same(make: Callable[..., Any], gradients: bool) -> None:
    model, x = make_model(), make_images()
    with torch.set_grad_enabled(gradients):
        out = make(model, x)(x)
        out = next(iter(out.values())) if isinstance(out, dict) else out
        torch.testing.assert_close(out, model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["autoformer_nano", "autoformer_tiny"])
def test_registered_names_are_scripted(name: str) -> None:
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-5, atol=1e-6)


def test_exported_graph_has_few_operators() -> None:
    def operators(model: nn.Module) -> int:
        program = torch.export.export(model, (make_images(),))
        return Counter(node.op for node in program.graph.nodes)["call_function"]

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 48), depth=3, embed_dim=128, num_heads=2
    )
    by_form = {form: operators(make_model(attention=form)) for form in ("auto", "decomposed")}
    assert by_form["auto"] < by_form["decomposed"]
    assert by_form["auto"] <= 2.2 * operators(vit.eval())
