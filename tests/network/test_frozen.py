"""Frozen models: the same results, from weights that nothing can write to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import vector_to_parameters
from torch.utils.flop_counter import FlopCounterMode

from autoformer_zoo.network import packed_linear
from autoformer_zoo.network.fast import fast_blocks
from autoformer_zoo.network.frozen import FrozenAutoFormer, freeze
from autoformer_zoo.network.packed_linear import (
    HAS_ONEDNN,
    PackedLinear,
    is_onednn_faster,
    linear,
    processor,
)
from autoformer_zoo.network.vit import AutoFormer
from tests.helpers.small_network import make_images, make_model

PACKS = [pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN")), False]


@pytest.fixture(params=PACKS, ids=lambda packs: "packed" if packs else "as it is")
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights are packed, whatever this processor is."""
    monkeypatch.setattr(packed_linear, "is_onednn_faster", lambda: request.param)
    return bool(request.param)


@torch.no_grad()
def expected_of(model: AutoFormer, x: Tensor) -> Tensor:
    return model(x)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_packed_layer_is_the_layer_for_any_rows(packs: bool, has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 48, bias=has_bias).requires_grad_(False)
    original = copy.deepcopy(layer).double()
    PackedLinear.convert(layer)
    assert layer.packed.is_mkldnn == packs
    assert torch.equal(layer.dense(), original.weight.float())
    with torch.no_grad():
        for shape in [(10, 24), (2, 5, 24), (3, 7, 24), (1, 24)]:
            x = torch.randn(shape)
            expected = original(x.double())
            for found, wanted in [
                (layer(x), expected),
                (linear(x, layer.packed, layer.bias, gelu=True), F.gelu(expected)),
                (linear(x, layer.dense(), layer.bias), expected),
            ]:
                torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("packs")
def test_frozen_model_computes_the_same_and_is_independent() -> None:
    model, x = make_model().train(), make_images()
    frozen = freeze(model)
    assert model.training
    assert not frozen.training
    expected = expected_of(model.eval(), x)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-5, atol=1e-6)
    tokens, grid = frozen._embed(x)
    with torch.no_grad():
        steps = fast_blocks(frozen.blocks, tokens, grid)
        for parameter in model.parameters():
            parameter.zero_()
    assert not any(isinstance(step, nn.Module) for step in steps)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-5, atol=1e-6)


def saved_and_loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded, freeze],
    ids=["deepcopy", "pickle", "file", "freeze"],
)
def test_copy_of_a_frozen_model_is_frozen(duplicate: Callable[[Any], Any]) -> None:
    frozen, x = freeze(make_model()), make_images()
    twin = duplicate(frozen)
    assert type(twin) is FrozenAutoFormer
    assert torch.equal(twin(x), frozen(x))


WRITES: dict[str, Callable[[Any], object]] = {
    "optimizer": lambda model: torch.optim.AdamW(model.parameters()),
    "vector": lambda model: vector_to_parameters(torch.ones(9), model.parameters()),
    "state dict": lambda model: model.state_dict()["blocks.0.mlp.fc1.weight"].mul_(2),
    "load": lambda model: model.load_state_dict(make_model().state_dict()),
    "load and assign": lambda m: m.blocks.load_state_dict(
        make_model().blocks.state_dict(), assign=True
    ),
    "weight": lambda model: model.blocks[0].attn.qkv.weight.data.mul_(2),
    "new weight": lambda m: setattr(m.blocks[0].mlp.fc2, "weight", nn.Parameter(torch.ones(9, 9))),
    "registered weight": lambda m: m.blocks[0].mlp.fc2.register_parameter(
        "weight", nn.Parameter(torch.ones(9, 9))
    ),
    "new packed weight": lambda m: setattr(m.blocks[0].mlp.fc2, "packed", torch.ones(9, 9)),
    "_parameters replaced": lambda m: setattr(m.blocks[0].mlp.fc2, "_parameters", {}),
    "lent weights": lambda m: functional_call(
        m, dict(make_model().named_parameters()), make_images()
    ),
    "shared memory": lambda model: model.blocks[0].mlp.fc1.weight.share_memory_(),
    "DLPack": lambda model: torch.from_dlpack(model.blocks[0].mlp.fc1.weight).mul_(2),
    "NumPy": lambda model: model.blocks[0].mlp.fc1.weight.numpy(),
    "collective": lambda m: torch.distributed.broadcast(m.blocks[0].mlp.fc1.weight, 0),
    "training": lambda model: model.train(),
    "requires_grad_": lambda model: model.requires_grad_(),
    "half a block": lambda model: model.blocks[0].attn.proj.half(),
    "device": lambda model: model.to("meta"),
    "init": lambda model: model.init_weights(),
    "compile": lambda m: torch.compile(m, backend="eager", fullgraph=True)(make_images()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_could_change_a_frozen_model_is_refused(write: Callable[[Any], object]) -> None:
    torch._dynamo.reset()
    frozen = freeze(make_model())
    with pytest.raises((RuntimeError, AttributeError), match="frozen"):
        write(frozen)


@pytest.mark.parametrize("part", ["norm.weight", "blocks.1.attn.rel_pos", "blocks.0.mlp.fc1.bias"])
def test_tensors_that_are_not_packed_are_used_where_they_are(part: str) -> None:
    model, x = make_model(), make_images()
    frozen = freeze(model)
    for network in (model, frozen):
        network.get_parameter(part).data.mul_(2)
    torch.testing.assert_close(frozen(x), expected_of(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("packs")
def test_frozen_model_serves_what_observes_or_differentiates() -> None:
    model, frozen, x = make_model(), freeze(make_model()), make_images()
    gradients, product = [], F.linear
    for network in (model, frozen):
        leaf = x.clone().requires_grad_()
        network(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        frozen(x)
    flops = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert flops == counter.get_total_flops()
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(x).dtype == torch.bfloat16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", lambda *args: 2 * product(*args))
        torch.testing.assert_close(frozen(x), model(x).detach(), rtol=1e-4, atol=1e-5)
    seen: list[Tensor] = []
    frozen.blocks[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2]))
    torch.testing.assert_close(frozen(x), expected_of(model, x), rtol=1e-5, atol=1e-6)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_freeze_as_they_are(dtype: torch.dtype) -> None:
    model, x = make_model(dtype=dtype), make_images().to(dtype)
    frozen = freeze(model)
    assert frozen.eval().to(dtype).cpu().to(memory_format=torch.channels_last) is frozen
    assert torch.equal(frozen(x), expected_of(model, x))


@pytest.mark.parametrize("layer", ["attn.qkv", "mlp.fc2"])
def test_adapter_is_refused(layer: str) -> None:
    model = make_model()
    base = model.get_submodule(f"blocks.1.{layer}")
    parent, _, name = layer.partition(".")
    setattr(model.blocks[1].get_submodule(parent), name, nn.Sequential(base))
    with pytest.raises(ValueError, match=rf"{layer} is a .*Sequential; .* plain Linear: merge ada"):
        freeze(model)


class Quantized(Tensor):
    pass


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("store", "text"),
    [
        (lambda weight: weight.as_subclass(Quantized), r"is a Quantized \(torch.strided\)"),
        (Tensor.to_sparse_csr, r"is a Parameter \(torch.sparse_csr\)"),
    ],
    ids=["subclass", "sparse"],
)
def test_weight_of_another_kind_is_refused(store: Callable[[Tensor], Tensor], text: str) -> None:
    model = make_model()
    layer = model.blocks[1].mlp.fc2
    layer.weight = nn.Parameter(store(layer.weight.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=rf"blocks.1.mlp.fc2.weight {text}; expected a plain"):
        freeze(model)


def test_only_an_autoformer_freezes() -> None:
    with pytest.raises(TypeError, match="freeze takes an AutoFormer; Linear given"):
        freeze(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vendor", "capability", "onednn", "expected"),
    [
        ("GenuineIntel", "AVX512", True, False),
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", True, False),
        ("AuthenticAMD", "AVX512", False, False),
    ],
    ids=["Intel", "AMD", "AMD without AVX-512", "no oneDNN"],
)
def test_packing_follows_the_processor(
    vendor: str, capability: str, onednn: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "processor", lambda field: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(packed_linear, "HAS_ONEDNN", onednn)
    assert is_onednn_faster.__wrapped__() == expected  # without its cache


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Xeon: 2 GHz\n" * 2, "Xeon: 2 GHz"),
        (None, "arm"),
        ("CPU part\t: 0xd0c\n", "arm"),
    ],
    ids=["Linux", "not Linux", "ARM"],
)
def test_first_processor_is_described(
    content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(packed_linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor("model name") == expected
