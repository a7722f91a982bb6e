"""Plain inference: the modules' results, never from old weights, left where it does not apply."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed import HashStore
from torch.func import functional_call, vmap
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from autoformer_zoo.network import packed_linear, workspace
from autoformer_zoo.network.block import Mlp, RelPosAttention
from autoformer_zoo.network.fast import fast_blocks
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.network.workspace import give_back, is_plain_inference, take_workspace
from tests.helpers.small_network import CFG, make_images, make_model


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def by_modules(model: AutoFormer, x: Tensor) -> Tensor:
    """Run the blocks as modules, in the explicit form, as they are now."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, RelPosAttention):
            module.form = "explicit"
    tokens, grid = model._embed(x)
    for block in model.blocks:
        tokens = block(tokens, grid)
    return model.forward_head(model.norm(tokens))


def is_fast(model: AutoFormer, x: Tensor) -> list[bool]:
    tokens, grid = model._embed(x)
    steps = fast_blocks(model.blocks, tokens, grid)
    return [not isinstance(step, nn.Module) for step in steps]


def assert_agrees(model: AutoFormer, x: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(model(x), by_modules(model, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 16), (16, 80)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
def test_agrees_with_the_modules(
    dtype: torch.dtype, tolerance: float, size: tuple[int, int]
) -> None:
    model, x = make_model(dynamic_img_size=True, dtype=dtype), make_images(3, size).to(dtype)
    assert is_fast(model, x) == [True] * CFG.depth
    assert_agrees(model, x, tolerance)


# Writing into weights


def step_of_adamw(block: Any) -> None:
    for parameter in block.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(block.parameters(), 0.1, fused=True).step()


def gather_into(block: Any) -> None:
    weight = block.mlp.fc1.weight
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        torch.distributed.all_gather([weight.data], 2 * weight.detach())
    finally:
        torch.distributed.destroy_process_group()


def write_into_the_vector(block: Any) -> None:
    vector = parameters_to_vector(block.parameters())
    vector_to_parameters(vector, block.parameters())
    vector.mul_(2)  # the parameters are views of it now


def drop_in_training_mode(block: Any) -> None:
    block.mlp.drop.p = 1.0  # all of it, so that the answer stays certain
    block.mlp.drop.train()


class Tripled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def set_linear(block: Any, name: str, value: Any) -> None:
    setattr(block.mlp.fc2, name, value)


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda block: block.attn.qkv.weight.mul_(2),
    "fused AdamW": step_of_adamw,
    "one value of data": lambda block: block.mlp.fc2.weight.data[3, 5].add_(1),
    "one value of a table's data": lambda block: block.attn.rel_pos.data[0, 15, 3].add_(1),
    "NumPy": lambda block: block.attn.proj.weight.detach().numpy()[5].fill(0),
    "flat buffer": write_into_the_vector,
    "DLPack": lambda block: torch.from_dlpack(block.mlp.fc2.weight.detach()).mul_(2),
    "all_gather": gather_into,
    "data replaced": lambda b: set_linear(b, "weight", nn.Parameter(b.mlp.fc2.weight * 2)),
    "_parameters replaced": lambda b: set_linear(
        b, "_parameters", {k: nn.Parameter(2 * p) for k, p in b.mlp.fc2._parameters.items()}
    ),
    "bias removed": lambda block: set_linear(block, "bias", None),
    "state dict": lambda block: block.load_state_dict(
        {name: 2 * tensor for name, tensor in block.state_dict().items()}
    ),
    "eps": lambda block: setattr(block.norm1, "eps", 1.0),
    "form": lambda block: setattr(block.attn, "form", "decomposed"),
    "layer of another class": lambda block: set_linear(block, "__class__", Tripled),
    "activation replaced": lambda block: setattr(block.mlp, "act", nn.ReLU().eval()),
    "tanh activation": lambda block: setattr(block.mlp.act, "approximate", "tanh"),
    "dropout in training mode": drop_in_training_mode,
    "hook": lambda block: block.mlp.register_forward_hook(lambda *call: 2 * call[2]),
    "hook before": lambda block: block.attn.qkv.register_forward_pre_hook(lambda _, x: 2 * x[0]),
    "hook that changes the batch": lambda block: block.register_forward_hook(
        lambda *call: torch.cat([2 * call[2], call[2]])
    ),
    "forward replaced": lambda block: setattr(block.mlp, "forward", torch.zeros_like),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_shows_in_the_next_result_at_every_size(change: Callable[[Any], object]) -> None:
    model, inputs = make_model(dynamic_img_size=True), [make_images(), make_images(3, (48, 16))]
    before = [model(x) for _ in range(2) for x in inputs][-2:]
    change(model.blocks[1])
    for x, old in zip(inputs, before, strict=True):
        assert_agrees(model, x, 1e-5)
        new = model(x)[: len(x)]
        assert (change is CHANGES["form"]) == torch.allclose(new, old, rtol=1e-5, atol=1e-5)


def receive(
    collective: Callable[[Tensor, Tensor], object], weight: nn.Parameter, folder: Path
) -> Callable[[], None]:
    """Return what writes to a weight as another process's value comes in."""

    def write() -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1
        )
        try:
            collective(weight.data, 2 * weight.detach())
        finally:
            torch.distributed.destroy_process_group()

    return write


def map_a_file(weight: nn.Parameter, folder: Path) -> Callable[[], None]:
    """Move a weight into memory shared with a file, which is then written through a second map."""
    file = folder / "weight"
    weight.detach().numpy().tofile(file)
    weight.data = torch.from_file(str(file), True, weight.numel()).view_as(weight)

    def write() -> None:
        np.memmap(file, np.float32, "r+")[:] *= 2

    return write


def share_memory(weight: nn.Parameter, folder: Path) -> Callable[[], None]:
    """Move a weight into shared memory, where another process writes to it."""
    weight.data.share_memory_()
    context = torch.multiprocessing.get_context("spawn")

    def write() -> None:
        process = context.Process(target=Tensor.mul_, args=(weight.detach(), 2))
        process.start()
        process.join()

    return write


@pytest.mark.parametrize(
    "prepare",
    [
        partial(receive, lambda weight, double: torch.distributed.all_gather([weight], double)),
        partial(receive, lambda weight, double: torch.distributed.scatter(weight, [double])),
        map_a_file,
        share_memory,
    ],
    ids=["all_gather", "scatter", "mapped file", "shared memory"],
)
def test_write_from_outside_shows_in_the_next_result(
    prepare: Callable[[nn.Parameter, Path], Callable[[], None]], tmp_path: Path
) -> None:
    model, x = make_model(), make_images()
    weight = model.blocks[1].mlp.fc1.weight
    expected = 2 * weight.detach()
    write = prepare(weight, tmp_path)
    before = model(x)
    write()
    assert torch.equal(weight, expected)
    assert_agrees(model, x, 1e-5)
    assert not torch.allclose(model(x), before)


def test_weights_lent_for_one_call_are_those_of_the_call() -> None:
    model, x = make_model(), make_images()
    own = model(x)
    for factor in (1.5, 1.0):
        lent = {name: factor * tensor for name, tensor in model.named_parameters()}
        other = copy.deepcopy(model)
        other.load_state_dict(lent)
        answer = functional_call(model, lent, (x,))
        torch.testing.assert_close(answer, by_modules(other, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(model(x), own)


# Modules that are called


def test_hooks_change_nothing_and_see_everything() -> None:
    model, x = make_model(), make_images()
    expected, seen = model(x), []
    handles = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in (model.blocks[0].mlp, model.blocks[1].attn.proj)
    ]
    assert is_fast(model, x) == [False, False, True]
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    assert seen == [model.blocks[0].mlp, model.blocks[1].attn.proj]
    handles.append(model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        model(x)
    for handle in handles:
        handle.remove()
    assert is_fast(model, x) == [True] * 3
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_patched_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make_model(), make_images()
    before = model(x)
    monkeypatch.setattr(Mlp, "forward", lambda self, x: torch.zeros_like(x))
    assert_agrees(model, x, 1e-5)
    assert not torch.equal(model(x), before)


PATCHES = {
    "nn.Linear": (nn.Linear, "forward"),
    "nn.GELU": (nn.GELU, "forward"),
    **{f"F.{name}": (F, name) for name in ("linear", "gelu", "layer_norm", "dropout")},
}


@pytest.mark.parametrize(("owner", "name"), PATCHES.values(), ids=PATCHES)
def test_what_is_patched_in_torch_is_called_as_with_gradients(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make_model(attention="augmented"), make_images()  # calls no dropout of its own
    before, original, calls = model(x), getattr(owner, name), []

    def patched(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(name)
        return 2 * original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    with torch.enable_grad():
        expected = model(x).detach()
    count = len(calls)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 * count > 0
    assert not torch.allclose(expected, before)


class Doubled(Tensor):
    """A weight with a product of its own, as quantized ones are."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        return 2 * out.as_subclass(Tensor) if func is F.linear else out


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["subclass", "sparse"])
def test_weight_of_another_kind_has_its_own_product(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "is_onednn_faster", lambda: packed_linear.HAS_ONEDNN)
    model, x = make_model(), make_images()
    for layer in (model.blocks[0].attn.qkv, model.blocks[1].mlp.fc1):
        weight = layer.weight.detach()
        other = weight.as_subclass(Doubled) if kind == "subclass" else weight.to_sparse_csr()
        layer.weight = nn.Parameter(other, requires_grad=False)
    with torch.enable_grad():
        expected = model(x).detach()
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    is_changed = not torch.allclose(expected, make_model()(x), rtol=1e-5, atol=1e-5)
    assert is_changed == (kind == "subclass")


def test_weights_made_in_inference_mode_and_outside_take_turns() -> None:
    with torch.inference_mode():
        models = [make_model()]
    models.append(make_model())
    x = make_images()
    expected = by_modules(models[1], x)
    for mode in (torch.no_grad, torch.inference_mode) * 2:
        for model in models:
            with mode():
                torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_compiled_block_is_called() -> None:
    model, x = make_model(), make_images()
    expected, calls = model(x), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        def run(*inputs: Any) -> Any:
            calls.append(graph)
            return graph(*inputs)

        return run

    torch._dynamo.reset()
    model.blocks[1].compile(backend=backend)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


# Where it does not apply


class NoGelu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is nn.functional.gelu else func(*args, **(kwargs or {}))


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "gradients": torch.enable_grad,
    "forward-mode AD": forward_ad.dual_level,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dispatch mode": lambda: FlopCounterMode(display=False),
    "function mode": NoGelu,
    "profiler": torch.profiler.profile,
}


@pytest.mark.parametrize("make_state", STATES.values(), ids=STATES)
def test_plain_inference_reads_private_state(
    make_state: Callable[[], AbstractContextManager[object]],
) -> None:
    x = torch.ones(1)
    assert is_plain_inference(x, ())
    with make_state():
        assert not is_plain_inference(x, ())
    assert is_plain_inference(x, ())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_plain_inference_sees_traces_transforms_and_global_hooks() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_plain_inference(x, ()))
        return 2 * x

    vmap(look)(torch.ones(2))
    torch.jit.trace(look, torch.ones(2), check_trace=False)
    torch.compile(look, backend="eager")(torch.ones(2))
    handle = register_module_forward_hook(lambda *_: None)
    look(torch.ones(2))
    handle.remove()
    assert seen == [False] * 4
    look(torch.ones(2))
    assert seen[-1]


# Workspaces


def test_alternating_sizes_make_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(dynamic_img_size=True)
    inputs = [make_images(1, (32, 48)), make_images(2, (48, 48)), make_images(3, (32, 32))]
    for x in inputs:
        model(x)
    monkeypatch.setattr(workspace, "Workspace", None)  # a call would fail
    for x in inputs * 2:
        assert model(x).shape == (len(x), 7)


def test_workspaces_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_waiting", [])
    keys = [(batch, 7, 3, (2, 3), torch.float64) for batch in (2, 1)]
    first, second = (take_workspace(key) for key in keys)
    monkeypatch.setattr(workspace, "MAX_KEPT_BYTES", first.size_bytes)
    for used in (first, second):
        give_back(used)
    assert workspace._waiting == [second]
    assert take_workspace(keys[1]) is second
    assert take_workspace(keys[1]) is not second  # it is in use


def test_threads_share_a_model() -> None:
    model = make_model()
    inputs = [torch.randn(1 + i % 2, 3, 32, 48) for i in range(4)]
    expected = [by_modules(model, x) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.allclose(model(inputs[i]), expected[i], rtol=1e-5, atol=1e-5):
                    wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
