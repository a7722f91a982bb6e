"""Models frozen for inference: weights packed for the processor, and not modifiable.

`freeze(model)` returns a copy, like torch.export or an ONNX file: what happens to `model`
afterwards does not reach it. The copy holds the weights of its blocks once, packed, where no
tensor, NumPy array or optimizer can reach them; so there is no stale result. In particular:

- `parameters()`, `state_dict()`, `load_state_dict()`, `train()` and conversions to another type or
  device raise RuntimeError, a packed layer's `weight` AttributeError.
- The other tensors (norms, biases, tables, embeddings, head) are ordinary parameters of their own
  modules, used where they are: a write to one takes effect in the next call.
- Python has no private attributes: in-place operators on a layer's `packed` tensor take effect in
  the next call too, and a weight put into its `_parameters` dict by hand is not used.
- deepcopy and pickle make an equal frozen model, packed again for the processor where that happens.
- torch.compile, export and the like are for the model that was frozen.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from autoformer_zoo.network.block import PARTS, require_plain
from autoformer_zoo.network.packed_linear import PLAIN, PackedLinear, require_no_conversion
from autoformer_zoo.network.vit import AutoFormer


def freeze(model: AutoFormer) -> AutoFormer:
    """Return a copy of a model that is faster on some processors, and that cannot be changed.

    On AMD's processors with AVX-512 it took 0.94 to 0.98 of the time in fp32, 0.91 to 0.96 in bf16
    (Zen 4); in fp32 on others it computes as `model` does. Needs as much memory as `model`, which
    you may drop.

    Args:
        model: an AutoFormer; left as it is.

    Returns:
        The frozen copy, in eval mode; see the module's documentation for what it refuses.

    Raises:
        TypeError: `model` is not an AutoFormer.
        ValueError: a part of a block was replaced, as adapters do, or a weight, as quantizers do.
    """
    if not isinstance(model, AutoFormer):
        raise TypeError(f"freeze takes an AutoFormer; {type(model).__name__} given")
    _require_plain_weights(model.blocks)
    frozen = copy.deepcopy(model).eval()
    if isinstance(model, FrozenAutoFormer):
        return frozen
    require_plain(frozen.blocks, PARTS | {"mlp.fc1": nn.Linear, "mlp.fc2": nn.Linear})
    frozen.requires_grad_(False)
    for layer in frozen.blocks.modules():
        if type(layer) is nn.Linear:
            PackedLinear.convert(layer)
    frozen.__class__ = FrozenAutoFormer
    return frozen


def _require_plain_weights(blocks: nn.Module) -> None:
    for name, layer in blocks.named_modules():
        if type(layer) is not nn.Linear:
            continue
        weight = layer.weight
        if type(weight) not in PLAIN or weight.layout is not torch.strided:
            raise ValueError(
                f"blocks.{name}.weight is a {type(weight).__qualname__} ({weight.layout}); "
                "expected a plain Parameter: quantized and sparse weights cannot be packed"
            )


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(
        "a frozen model has no parameters to read, change or train; use the model that was frozen"
    )


class FrozenAutoFormer(AutoFormer):
    """What `freeze` returns."""

    named_parameters: Any = _refuse  # parameters(), requires_grad_() and zero_grad() call it

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, in_chans, height, width) to logits (B, num_classes)."""
        if torch.compiler.is_compiling():
            raise RuntimeError("compile or export the model that was frozen")
        if x.requires_grad:
            return super().forward(x)
        with torch.no_grad():
            return super().forward(x)

    def train(self, mode: bool = True) -> FrozenAutoFormer:
        """Return the model, which is always in eval mode; raise RuntimeError if `mode` is True."""
        if mode:
            _refuse()
        super().train(False)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenAutoFormer:
        require_no_conversion(fn, self.pos_embed.dtype)
        return self
