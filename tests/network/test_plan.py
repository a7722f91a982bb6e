"""The plan of plain inference: the modules' results, never stale, away where it does not apply."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from autoformer_zoo.network import plan as inference_plan
from autoformer_zoo.network.attention import FORM_VARIABLE
from autoformer_zoo.network.block import Mlp, RelPosAttention
from autoformer_zoo.network.packed_linear import HAS_MKL, HAS_ONEDNN, Library
from autoformer_zoo.network.plan import BlockStep, InferencePlan
from autoformer_zoo.network.vit import AutoFormer
from tests.helpers.small_network import CFG, make_images, make_model

needs_mkl = pytest.mark.skipif(not HAS_MKL, reason="this build of torch has no MKL")
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")


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


def plan_of(model: AutoFormer) -> InferencePlan | None:
    kept = model._plans._kept
    return None if kept is None else kept[-1]


def planned(model: AutoFormer) -> list[bool]:
    plan = plan_of(model)
    assert plan is not None
    return [isinstance(step, BlockStep) for step in plan._steps]


def assert_agrees(model: AutoFormer, x: Tensor, tolerance: float = 1e-6) -> None:
    """Compare three calls with the modules: plan made, weights packed, both used again."""
    expected = by_modules(model, x)
    for _ in range(3):
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
def test_agrees_with_the_modules(
    dtype: torch.dtype, tolerance: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORM_VARIABLE, "augmented")  # or bf16 takes another form
    model = make_model(dtype=dtype)
    assert_agrees(model, make_images(batch).to(dtype), tolerance)
    assert planned(model) == [True] * CFG.depth


def test_bf16_runs_the_modules_whose_form_is_the_faster_one() -> None:
    model = make_model(dtype=torch.bfloat16)
    model(make_images().to(torch.bfloat16))
    assert plan_of(model) is None


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 16), (16, 80)])
def test_agrees_on_every_grid(size: tuple[int, int]) -> None:
    model = make_model(dynamic_img_size=True, dtype=torch.float64)
    assert_agrees(model, make_images(2, size).double(), 1e-12)


def test_nothing_is_made_again_while_nothing_changes() -> None:
    model, x = make_model(), make_images()
    model(x)
    plan = plan_of(model)
    assert plan is not None
    for batch in (2, 1, 2):
        model(make_images(batch))
        assert plan_of(model) is plan
    assert plan_of(model.eval()) is plan
    assert plan_of(model.train()) is None
    model.eval()(x)
    assert plan_of(model.to(torch.float64)) is None


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        pytest.param("mkl", [0, 14, 14, 14, 14, 7], marks=needs_mkl),  # when a size comes again
        pytest.param("onednn", [14] * 6, marks=needs_onednn),  # once for any size
        (None, [0] * 6),
    ],
)
def test_weights_are_packed_when_it_pays(
    library: Library | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_plan, "packing_library", lambda: library)
    model = make_model()
    packed = []
    for batch in [2, 2, 1, 2, 1, 1]:
        x = make_images(batch)
        torch.testing.assert_close(model(x), by_modules(model, x), rtol=2e-6, atol=2e-6)
        model(x[:0])  # no image: no plan, and none is lost
        plan = plan_of(model)
        assert plan is not None
        packed.append(plan.packed_rows)
    assert packed == expected


@needs_mkl
def test_many_rows_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_plan, "packing_library", lambda: "mkl")
    monkeypatch.setattr(inference_plan, "MOST_ROWS", 10)
    model = make_model()
    assert_agrees(model, make_images(2))
    plan = plan_of(model)
    assert plan is not None
    assert plan.packed_rows == 0


def replace_linear(block: Any) -> None:
    block.mlp.fc2 = nn.Linear(block.mlp.fc2.in_features, block.mlp.fc2.out_features)


class Tripled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def swap_class(block: Any) -> None:
    block.attn.proj.__class__ = Tripled


def drop_at_rest(block: Any) -> None:
    block.mlp.drop.p = 1.0  # all of it, so that the answer stays certain
    block.mlp.drop.train()


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight in place": lambda block: block.attn.qkv.weight.mul_(2),
    "weight's data in place": lambda block: block.attn.proj.weight.data.mul_(2),
    "weight's data replaced": lambda block: setattr(
        block.mlp.fc1.weight, "data", block.mlp.fc1.weight * 2
    ),
    "weight replaced": lambda block: setattr(
        block.mlp.fc2, "weight", nn.Parameter(block.mlp.fc2.weight * 2)
    ),
    "bias in place": lambda block: block.attn.qkv.bias.add_(1),
    "bias removed": lambda block: setattr(block.mlp.fc1, "bias", None),
    "tables in place": lambda block: block.attn.rel_pos.mul_(3),
    "norm in place": lambda block: block.norm1.weight.mul_(2),
    "norm replaced": lambda block: setattr(block.norm2, "weight", nn.Parameter(torch.ones(100))),
    "norm without weights": lambda block: setattr(
        block, "norm1", nn.LayerNorm(100, elementwise_affine=False).eval()
    ),
    "eps": lambda block: setattr(block.norm1, "eps", 1.0),
    "a head's data": lambda block: block.attn.proj.weight.data[:, 64:128].zero_(),
    "a head's query data": lambda block: block.attn.qkv.weight.data[64:128].zero_(),
    "masked data": lambda block: block.mlp.fc1.weight.data.mul_(
        torch.rand(block.mlp.fc1.weight.shape) > 0.5
    ),
    "data of the value tables": lambda block: block.attn.rel_pos.data[2:].zero_(),
    "state dict": lambda block: block.load_state_dict(
        {name: 2 * tensor for name, tensor in block.state_dict().items()}
    ),
    "layer replaced": replace_linear,
    "layer of another class": swap_class,
    "activation replaced": lambda block: setattr(block.mlp, "act", nn.ReLU().eval()),
    "tanh activation": lambda block: setattr(block.mlp.act, "approximate", "tanh"),
    "dropout in training mode": drop_at_rest,
    "hook that changes": lambda block: block.mlp.register_forward_hook(lambda *call: 2 * call[2]),
    "hook that changes the batch": lambda block: block.register_forward_hook(
        lambda *call: torch.cat([call[2], call[2]])
    ),
    "forward replaced": lambda block: setattr(block.mlp, "forward", torch.zeros_like),
    "form": lambda block: setattr(block.attn, "form", "explicit"),
    "bias of the same values": lambda block: setattr(
        block.mlp.fc2, "bias", nn.Parameter(block.mlp.fc2.bias.clone())
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_never_missed(change: Callable[[Any], object]) -> None:
    model, x = make_model(), make_images()
    for _ in range(3):
        before = model(x)
    change(model.blocks[1])
    assert_agrees(model, x, 1e-5)
    assert torch.equal(model(x), before) == (change is CHANGES["bias of the same values"])


def test_weights_that_are_plain_attributes_are_read_at_every_call() -> None:
    model, x = make_model(), make_images()
    linear = model.blocks[1].mlp.fc1
    weight = linear.weight.detach()
    del linear.weight
    for factor in (1.0, 2.0, 3.0):
        linear.weight = factor * weight
        assert_agrees(model, x, 1e-5)


@pytest.mark.parametrize("compiled", ["block", "child", "method"])
def test_blocks_compiled_by_themselves_are_called(compiled: str) -> None:
    model, x = make_model(), make_images()
    expected = model(x)
    calls: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        def run(*inputs: Any) -> Any:
            calls.append(graph)
            return graph(*inputs)

        return run

    torch._dynamo.reset()
    if compiled == "block":
        model.blocks[1] = torch.compile(model.blocks[1], backend=backend)
    elif compiled == "child":
        model.blocks[1].mlp = torch.compile(model.blocks[1].mlp, backend=backend)
    else:
        model.blocks[1].compile(backend=backend)
    for count in (1, 2):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        assert len(calls) == count
    assert planned(model) == [True, False, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_child_is_called() -> None:
    model, x = make_model(), make_images()
    expected = model(x)
    model.blocks[1].mlp.act = torch.jit.script(nn.GELU().eval())
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert planned(model) == [True, False, True]


def test_patched_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make_model(), make_images()
    before = model(x)
    monkeypatch.setattr(Mlp, "forward", lambda self, x: torch.zeros_like(x))
    assert_agrees(model, x, 1e-5)
    assert not torch.equal(model(x), before)
    assert planned(model) == [False] * CFG.depth
    monkeypatch.undo()
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
def test_modules_run_under_forward_mode_differentiation() -> None:
    # Packed products have no derivative: the tangent would be lost without a word.
    model, x = make_model(attention="decomposed"), make_images()
    augmented, tangent = make_model(attention="augmented"), x.flip(0)
    for _ in range(3):
        augmented(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        assert forward_ad.unpack_dual(model(dual)).tangent is not None
        with pytest.raises(NotImplementedError, match="forward AD"):  # of PyTorch's attention
            augmented(dual)


def test_functions_that_are_overridden_are_called() -> None:
    model, x = make_model(), make_images()
    model(x)

    class NoGelu(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return args[0] if func is nn.functional.gelu else func(*args, **(kwargs or {}))

    with NoGelu():
        torch.testing.assert_close(model(x), by_modules(model, x), rtol=1e-5, atol=1e-5)


def test_only_the_block_that_is_listened_to_runs_as_modules() -> None:
    model, x = make_model(), make_images()
    model(x)
    seen: list[object] = []
    handle = model.blocks[1].attn.proj.register_forward_hook(lambda *call: seen.append(call))
    expected = model(x)
    assert planned(model) == [True, False, True]
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    assert planned(model) == [True, True, True]
    assert len(seen) == 1


def test_modules_run_where_somebody_wants_to_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make_model(), make_images()
    seen: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    model(x)
    handle.remove()
    assert model.blocks[0].mlp.fc1 in seen
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    with torch.enable_grad():
        assert model(x).requires_grad
    monkeypatch.setenv("AUTOFORMER_ZOO_ATTENTION", "explicit")
    model(x)
    assert plan_of(model) is None
    monkeypatch.delenv("AUTOFORMER_ZOO_ATTENTION")
    model(x)
    assert plan_of(model) is not None


def test_unknown_form_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make_model(), make_images()
    model(x)
    monkeypatch.setenv("AUTOFORMER_ZOO_ATTENTION", "fast")
    with pytest.raises(ValueError, match="AUTOFORMER_ZOO_ATTENTION is 'fast'; expected one of aut"):
        model(x)


def test_counters_see_every_product() -> None:
    model, x = make_model(), make_images()
    counts = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            model(x)
        counts.append(counter.get_total_flops())
        model(x)
        model(x)
    assert counts[0] == counts[1] == counts[2] > 0


def test_copies_and_files_hold_no_plan() -> None:
    model, x = make_model(), make_images()
    size = len(pickle.dumps(model))
    expected = [model(x) for _ in range(3)][-1]
    assert len(pickle.dumps(model)) == size
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert plan_of(other) is None
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-6)
    assert not [name for name in model.state_dict() if "plan" in name]


def test_a_copy_that_changes_leaves_the_original_alone() -> None:
    model, x = make_model(), make_images()
    expected = [model(x) for _ in range(3)][-1]
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.5)
    assert_agrees(other, x, 1e-5)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_intermediates_come_from_the_plan() -> None:
    model, x = make_model(dtype=torch.float64), make_images().double()
    with torch.enable_grad():
        final, maps = model.forward_intermediates(x, [0, 2], norm=True)
    assert plan_of(model) is None
    for _ in range(3):
        got_final, got = model.forward_intermediates(x, [0, 2], norm=True)
        torch.testing.assert_close([got_final, *got], [final, *maps], rtol=0, atol=1e-10)
    early = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(
        early, model.forward_intermediates(x, [0], intermediates_only=True), rtol=0, atol=0
    )
    assert plan_of(model) is not None


def test_blocks_may_go() -> None:
    model, x = make_model(), make_images()
    model(x)
    model.prune_intermediate_layers(2, prune_head=False)
    model.blocks = model.blocks[:2]
    assert_agrees(model, x)
    assert planned(model) == [True, True]


def test_inference_mode_and_no_grad_take_turns() -> None:
    model, x = make_model(), make_images()
    expected = by_modules(model, x)
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_weights_that_cannot_be_watched_run_as_modules() -> None:
    with torch.inference_mode():
        model, x = make_model(), make_images()
        torch.testing.assert_close(model(x), by_modules(model, x), rtol=0, atol=1e-6)
        assert planned(model) == [False] * CFG.depth


def test_weights_lent_for_one_call_are_those_of_the_call() -> None:
    model, x = make_model(), make_images()
    own = model(x)
    for factor in (1.5, 2.0, 1.0):
        lent = {name: factor * tensor for name, tensor in model.named_parameters()}
        answer = functional_call(model, lent, (x,))
        other = copy.deepcopy(model)
        other.load_state_dict(lent)
        torch.testing.assert_close(answer, by_modules(other, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), own, rtol=0, atol=1e-6)


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


def test_a_failed_call_leaves_the_next_one_right() -> None:
    model, x = make_model(), make_images()
    expected = model(x)
    step = model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    step.remove()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
