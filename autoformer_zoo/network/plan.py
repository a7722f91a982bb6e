"""The blocks of a network prepared for plain inference on the CPU: same sums, run straight through.

Between two products of a small network, whatever else is touched (modules, hooks, checks) has been
pushed out of the cache by the weights and costs ten times what it costs alone: for one image,
`autoformer_tiny` spent a fifth of its time on it. So everything is checked once before the first
block, and what can be derived from the weights is kept until these change:

- weights in the order that products want them in, `packed_linear.py`, as torch.compile keeps them
  when it freezes a model (as much memory as the weights, while a model is used so);
- the tables of relative position as `attention_inference` wants them;
- GELU and the residual sums are written in place, for nobody else sees what they overwrite.

A block that is not what `block.py` made (hooks, adapters, replaced layers, training mode) runs as
the module it is. State dict, copies and files know nothing of a plan. A change that `staleness.py`
does not see (single values, through `tensor.data`) needs `train()` once.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from autoformer_zoo.network.attention import choose_form, is_plain_inference, prepare_constants
from autoformer_zoo.network.block import Block, Mlp, RelPosAttention
from autoformer_zoo.network.packed_linear import Library, LinearStep, packing_library
from autoformer_zoo.network.staleness import ModuleWatch, is_watchable
from autoformer_zoo.network.workspace import Constants, Workspace, give_back, take_workspace
from autoformer_zoo.space import HEAD_DIM

MOST_ROWS = 4096  # B * N; measured: above this packing for MKL has nothing left to gain

# What `block.py` makes. All else is called, not planned.
_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "": (Block,),
    "norm1": (nn.LayerNorm,),
    "attn": (RelPosAttention,),
    "attn.qkv": (nn.Linear,),
    "attn.proj": (nn.Linear,),
    "attn.proj_drop": (nn.Dropout,),
    "norm2": (nn.LayerNorm,),
    "mlp": (Mlp,),
    "mlp.fc1": (nn.Linear,),
    "mlp.act": (nn.GELU,),
    "mlp.drop": (nn.Dropout,),
    "mlp.fc2": (nn.Linear,),
    "drop_path": (nn.Identity, DropPath),
}

_FORWARDS = {each: each.forward for classes in _CLASSES.values() for each in classes}

Norm = tuple[tuple[int, ...], Tensor | None, Tensor | None, float]


@dataclass(frozen=True, slots=True)
class BlockStep:
    """What one block does: `block.Block` without modules.

    Args:
        norms: what layer_norm takes, for the attention's input and for the MLP's.
        linears: q, k and v at once, the projection, and the two of the MLP.
        num_heads: of the attention.
        tables: its relative position.
        constants: what was derived from the tables.
    """

    norms: tuple[Norm, Norm]
    linears: tuple[LinearStep, ...]
    num_heads: int
    tables: Tensor
    constants: Constants

    def pack(self, library: Library, rows: int) -> BlockStep:
        """Pack all weights."""
        return replace(self, linears=tuple(each.pack(library, rows) for each in self.linears))

    def derived_from(self) -> list[Tensor]:
        """Return the parameters whose values it keeps in another form."""
        return [self.tables, *(linear.weight for linear in self.linears)]

    def run(self, x: Tensor, workspace: Workspace) -> Tensor:
        """Transform x (B, N, C)."""
        B, N, _ = x.shape
        (norm1, norm2), (qkv, proj, fc1, fc2) = self.norms, self.linears
        heads = qkv.run(torch.layer_norm(x, *norm1)).view(B, N, 3, self.num_heads, HEAD_DIM)
        attended = workspace.run(heads.permute(2, 0, 3, 1, 4), self.constants)  # (B, H, N, D)
        # What is new and nobody else's is written to and let go of early: 3 to 7 % of tiny's time
        # for GELU and 3 % for the rest, for memory that need not be fetched again.
        del heads
        # A view: in memory it is (B, N, H, D) already.
        hidden = proj.run(attended.transpose(1, 2).view(B, N, -1))
        del attended
        x = hidden.add_(x)
        hidden = fc1.run_gelu(torch.layer_norm(x, *norm2))
        return fc2.run(hidden).add_(x)


class InferencePlan:
    """The blocks of a network for one grid and data type.

    oneDNN packs weights once and for all. MKL packs for a batch size: when it comes twice running,
    so that batches of ever new sizes do not pay for it.

    Args:
        blocks: the network's blocks; one that is not plain stays a module.
        grid: rows and columns of patches.
        dtype: of the input.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], grid: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.grid = grid
        self._library = packing_library() if dtype == torch.float32 else None
        self._steps = [make_step(block, grid, dtype) or block for block in blocks]
        self._packed: tuple[int, list[BlockStep | nn.Module]] = (0, [])
        self._last_rows = 0

    def derived_from(self) -> list[Tensor]:
        """Return the parameters whose values it keeps in another form."""
        steps = (step for step in self._steps if isinstance(step, BlockStep))
        return [tensor for step in steps for tensor in step.derived_from()]

    @property
    def packed_rows(self) -> int:
        """For how many rows weights are packed; 0 for none."""
        return self._packed[0]

    def run(
        self, x: Tensor, count: int, wanted: Collection[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the first `count` blocks; arguments and result as `AutoFormer._run_blocks`."""
        rows = x.shape[0] * x.shape[1]
        taken = []
        workspaces: dict[tuple[int, int, int], Workspace] = {}
        try:
            for i, step in enumerate(self._steps_for(rows)[:count]):
                if isinstance(step, BlockStep):
                    shape = (x.shape[0], x.shape[1], step.num_heads)  # a hook may have changed it
                    workspace = workspaces.get(shape)
                    if workspace is None:
                        workspace = take_workspace(shape, self.grid, step.constants)
                        workspaces[shape] = workspace
                    x = step.run(x, workspace)
                else:
                    x = step(x, self.grid)
                if i in wanted:
                    taken.append(x)
        finally:
            for workspace in workspaces.values():
                give_back(workspace)
        return x, taken

    def _steps_for(self, rows: int) -> list[BlockStep | nn.Module]:
        packed_rows, packed = self._packed
        again, self._last_rows = rows == self._last_rows, rows
        is_mkl = self._library == "mkl"
        if packed and (packed_rows == rows or not is_mkl):
            return packed
        if self._library is None or (is_mkl and not (again and rows <= MOST_ROWS)):
            return self._steps
        self._packed = 0, []  # let go of the old ones first
        packed = [
            step.pack(self._library, rows) if isinstance(step, BlockStep) else step
            for step in self._steps
        ]
        self._packed = rows, packed
        return packed


class PlanKeeper:
    """Keeps the last plan of a network, and makes a new one when it is stale."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, list[nn.Module], ModuleWatch, InferencePlan] | None = None

    def find(self, blocks: nn.ModuleList, x: Tensor, grid: tuple[int, int]) -> InferencePlan | None:
        """Return a plan for blocks that are about to see x (B, N, C), or None where none applies.

        Raises:
            ValueError: the environment asks for an unknown form of attention.
        """
        if not (
            is_plain_inference(x)
            and not torch.is_autocast_enabled("cpu")
            # Counters, and what overrides functions, want to see products, not plans.
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._len_torch_function_stack()
            and not hooks_of_all._global_forward_hooks
            and not hooks_of_all._global_forward_pre_hooks
        ):
            return None
        key = grid, x.dtype, choose_form(x.shape[1], "cpu", False, x.dtype)
        if key[2] != "augmented" or not x.numel():
            return None
        modules = list(blocks._modules.values())
        if (kept := self._kept) is not None:
            kept_key, kept_modules, watch, plan = kept
            if kept_key == key and kept_modules == modules and watch.is_unchanged():
                return plan
        self._kept = None  # let go of the old plan first
        plan = InferencePlan(modules, grid, x.dtype)
        self._kept = key, modules, ModuleWatch(modules, plan.derived_from()), plan
        return plan

    def clear(self) -> None:
        """Forget the plan."""
        self._kept = None

    def __reduce__(self) -> tuple[type[PlanKeeper], tuple[()]]:
        return PlanKeeper, ()  # copies and files hold parameters only


def make_step(block: nn.Module, grid: tuple[int, int], dtype: torch.dtype) -> BlockStep | None:
    """Return what a block does, or None where only the block itself can tell."""
    modules = dict(block.named_modules())
    if modules.keys() != _CLASSES.keys():
        return None
    if not all(_is_plain(modules[name], _CLASSES[name]) for name in _CLASSES):
        return None
    assert isinstance(block, Block)
    attention, mlp = block.attn, block.mlp
    linears = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
    norms = (block.norm1, block.norm2)
    if not all(each._parameters.keys() == {"weight", "bias"} for each in (*linears, *norms)):
        return None  # set as plain attributes, where changes are not seen
    if "rel_pos" not in attention._parameters or attention.form not in ("auto", "augmented"):
        return None
    if not all(is_watchable(each) and each.dtype == dtype for each in block.parameters()):
        return None
    return BlockStep(
        (_norm(block.norm1), _norm(block.norm2)),
        tuple(LinearStep(linear.weight, linear.bias) for linear in linears),
        attention.num_heads,
        attention.rel_pos,
        prepare_constants(attention.rel_pos, grid),
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _is_plain(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Tell whether a module is exactly of one of the classes, at rest, and nobody listens."""
    own = module.__dict__
    return (
        type(module) in classes
        and type(module).forward is _FORWARDS[type(module)]
        and not module.training
        and not own["_forward_hooks"]
        and not own["_forward_pre_hooks"]
        and "forward" not in own
        and own.get("_compiled_call_impl") is None  # by module.compile()
        and getattr(module, "approximate", "none") == "none"  # GELU's
    )
