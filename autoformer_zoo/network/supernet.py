"""The supernet: weights that all subnets of a space share, and the subnets run on slices of them.

Weights are an ordinary `AutoFormer` of the supernet's size, so that its state dict is a canonical
supernet. `forward(x, subnet)` slices them and runs the subnet's own static network on the slices:
the network and the slicing rule are the ones that extraction uses, and no active subnet is stored.

Source: arXiv 2107.00651, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from autoformer_zoo.network.attention import AttentionForm
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.slicing import BiasRule, slice_supernet


class Supernet(nn.Module):
    """Shared weights of all subnets of a space.

    Args:
        space: sizes of the supernet, image and patch.
        bias_rule: how a subnet's q, k and v biases are sliced; "packed_prefix" continues official
            checkpoints.
        drop_path_rate: stochastic depth of the supernet's last block, rising linearly from 0.
        attention: form of the attention in every subnet.
        in_chans: channels of the input.
    """

    grad_checkpointing = False
    """True if blocks are recomputed in the backward pass: half the memory, a third more time."""

    def __init__(
        self,
        space: SearchSpace,
        bias_rule: BiasRule = "prefix",
        drop_path_rate: float = 0.0,
        attention: AttentionForm = "auto",
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.uses_all = False  # most subnets leave blocks out
        self.space = space
        self.bias_rule: BiasRule = bias_rule
        self._arguments: dict[str, Any] = {
            "img_size": space.img_size,
            "patch_size": space.patch_size,
            "num_classes": space.num_classes,
            "in_chans": in_chans,
            "drop_path_rate": drop_path_rate,
            "drop_path_depth": space.supernet.depth,
            "attention": attention,
            "dynamic_img_size": True,  # progressive training changes the input size
        }
        self.weights = AutoFormer(space.supernet, **self._arguments)

    def forward(self, x: Tensor, subnet: SubnetConfig) -> Tensor:
        """Run one subnet.

        Args:
            x: images (B, in_chans, height, width).
            subnet: any subnet that fits the supernet.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: the subnet does not fit.
        """
        tensors = dict(self.weights.named_parameters())
        sliced = slice_supernet(tensors, self.space.supernet, subnet, self.bias_rule)
        return self._run(subnet, sliced.__getitem__, x)

    def _run(self, subnet: SubnetConfig, find: Callable[[str], Tensor], x: Tensor) -> Tensor:
        """Run the subnet's network on the tensors that `find` returns for its parameters."""
        network = AutoFormer(subnet, device="meta", **self._arguments).train(self.training)
        network.set_grad_checkpointing(self.grad_checkpointing and self.training)
        put_tensors(network, find)
        logits: Tensor = network(x)
        return logits


def put_tensors(network: nn.Module, find: Callable[[str], Tensor]) -> None:
    """Replace all parameters by tensors, as plain attributes through which gradients flow.

    `functional_call` would undo this after the forward pass: too early for gradient checkpointing,
    which runs blocks again in the backward pass.

    Args:
        network: changed in place; it has no parameters afterwards.
        find: returns the tensor of a parameter by its name.
    """
    for name in [name for name, _ in network.named_parameters()]:
        module, _, leaf = name.rpartition(".")
        owner = network.get_submodule(module)
        delattr(owner, leaf)
        setattr(owner, leaf, find(name))
