"""What is trained: a supernet, any subnet of it runnable at any time; or one static network.

Weights are an ordinary `AutoFormer` of the supernet's size, so that its state dict is a canonical
supernet. `forward(x, subnet)` slices them and runs the subnet's own static network on the slices:
the network and the slicing rule are the ones that extraction uses, and no active subnet is stored.

Source: arXiv 2107.00651, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from autoformer_zoo.attention import AttentionForm
from autoformer_zoo.extract import BiasRule, put_tensors, slice_supernet
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.vit import AutoFormer


class Supernet(nn.Module):
    """Shared weights of all subnets of a space.

    Args:
        space: sizes of the supernet, picture and patch.
        bias_rule: how a subnet's q, k and v biases are cut; "packed_prefix" continues official
            checkpoints.
        drop_path_rate: stochastic depth of the supernet's last block, rising linearly from 0.
        attention: form of the attention in every subnet.
        in_chans: channels of the input.
    """

    grad_checkpointing = False
    """Whether blocks are run again in the backward pass: a third of the memory, more time."""

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
            x: pictures (B, in_chans, height, width).
            subnet: which one; anything that fits the supernet.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: the subnet does not fit.
        """
        tensors = dict(self.weights.named_parameters())
        sliced = slice_supernet(tensors, self.space.supernet, subnet, self.bias_rule)
        return self._run(subnet, sliced.__getitem__, x)

    def _run(self, subnet: SubnetConfig, find: Callable[[str], Tensor], x: Tensor) -> Tensor:
        """Run the subnet's network on the tensors that `find` has for its parameters."""
        network = AutoFormer(subnet, device="meta", **self._arguments).train(self.training)
        if self.grad_checkpointing and self.training:
            network.set_grad_checkpointing()
            put_tensors(network, find)
            logits: Tensor = network(x)
            return logits
        # Without gradients it is planned like any network, which plain attributes are not.
        tensors = {name: find(name) for name, _ in network.named_parameters()}
        return functional_call(network, tensors, x, strict=True)


class FixedSubnet(nn.Module):
    """One static network in the supernet's place: retraining and fine-tuning.

    Args:
        weights: the network.
    """

    def __init__(self, weights: AutoFormer) -> None:
        super().__init__()
        self.uses_all = True
        self.bias_rule: BiasRule = "prefix"
        self.weights = weights

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks are run again in the backward pass."""
        return self.weights.grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.weights.set_grad_checkpointing(enable)

    def forward(self, x: Tensor, subnet: SubnetConfig) -> Tensor:
        """Run the network.

        Args:
            x: pictures (B, in_chans, height, width).
            subnet: the network's own; nothing else can be asked for.

        Returns:
            Logits (B, num_classes).
        """
        logits: Tensor = self.weights(x)
        return logits
