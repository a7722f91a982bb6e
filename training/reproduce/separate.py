"""Classic weight sharing, to compare weight entanglement with: weights of their own per choice.

Each width has its own embeddings, norms and head; each width and number of heads its own attention
in every block, each width and MLP ratio its own MLP. Subnets share what they chose alike, and
nothing else: what arXiv 2107.00651, section 3.2, calls classical weight sharing. Not a product of
this project: no file format holds such weights, and nothing but the comparison uses them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.engine.network import require_sizes
from training.run.checkpoints import load_checkpoint
from training.run.directory import read_config
from training.settings.config import TrainConfig, space_of

MLP_PARTS = ("mlp.", "norm2.")


class SeparateWeights(nn.Module):
    """The parameters of all choices of a space, each initialised as in a network of its own.

    Args:
        space: whose choices.
        arguments: of `AutoFormer`.
    """

    def __init__(self, space: SearchSpace, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.cfg = space.supernet  # recorded in checkpoints
        self.patch_embed = SimpleNamespace(img_size=(space.img_size, space.img_size))
        self.tensors = nn.ParameterDict()
        for dim in space.embed_dim:
            for i in range(max(len(space.num_heads), len(space.mlp_ratio))):
                heads = space.num_heads[min(i, len(space.num_heads) - 1)]
                ratio = space.mlp_ratio[min(i, len(space.mlp_ratio) - 1)]
                uniform = SubnetConfig.uniform(space.depth[-1], dim, heads, ratio)
                for name, parameter in AutoFormer(uniform, **arguments).named_parameters():
                    key = key_of(name, uniform)
                    if key not in self.tensors:
                        self.tensors[key] = parameter

    def no_weight_decay(self) -> set[str]:
        """Name what `AutoFormer.no_weight_decay` names, for every choice."""
        kept = ("pos_embed", "cls_token", "rel_pos")
        return {f"tensors.{key}" for key in self.tensors if key.endswith(kept)}


class SeparateSupernet(Supernet):
    """A supernet whose subnets share only what they chose alike; arguments as `Supernet`'s."""

    def __init__(self, space: SearchSpace, drop_path_rate: float = 0.0) -> None:
        super().__init__(space, drop_path_rate=drop_path_rate)
        self.weights = SeparateWeights(space, self._arguments)  # type: ignore[assignment]

    def forward(self, x: Tensor, subnet: SubnetConfig) -> Tensor:
        """Run one subnet of the space; arguments and result as `Supernet.forward`'s."""
        tensors: Any = self.weights.tensors
        return self._run(subnet, lambda name: tensors[key_of(name, subnet)], x)


def key_of(name: str, subnet: SubnetConfig) -> str:
    """Return the name of a subnet's parameter among all: each choice has its own."""
    parts = name.split(".")
    choice = f"{subnet.embed_dim}"
    if parts[0] == "blocks":
        i, inside = int(parts[1]), ".".join(parts[2:])
        is_mlp = inside.startswith(MLP_PARTS)
        choice += f"-r{subnet.mlp_ratio[i]:g}" if is_mlp else f"-h{subnet.num_heads[i]}"
    return f"{choice}/{name}".replace(".", ":")  # no module's parameter may have a dot


def make_separate(config: TrainConfig) -> SeparateSupernet:
    """Make the untrained network, from the config's seed."""
    torch.manual_seed(config.seed)
    space = space_of(config)
    require_sizes(config.stages, space.patch_size)
    return SeparateSupernet(space, config.drop_path_rate).train()


def load_separate(run: Path) -> SeparateSupernet:
    """Load the averaged weights of a run that trained `make_separate`'s network, in eval mode.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    config = read_config(run)
    network = SeparateSupernet(space_of(config), config.drop_path_rate)
    network.load_state_dict(load_checkpoint(run)["ema"])
    return network.eval()
