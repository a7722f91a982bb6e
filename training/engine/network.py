"""Make the network that a config trains: a supernet or one subnet, random or from trained weights.

Official and PreNAS supernets keep their own rule for the bias of q, k and v. Weights for other
classes get a new head. A subnet may get another input size; a supernet keeps its own.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoformer_zoo.models.autoformer import build_static
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.layouts import same_sizes
from autoformer_zoo.weights.pretrained import load_supernet, open_weights
from autoformer_zoo.weights.slicing import BiasRule
from training.engine.sampling import parse_subnet
from training.run.checkpoints import load_checkpoint, reason_of
from training.run.directory import read_config
from training.settings.config import Stage, TrainConfig, WeightsConfig, differences, space_of

_log = logging.getLogger(__name__)

CHANNELS = 3  # of the images of every source

# Fields that decide which images are held out, so that a run may start from another one's weights.
_DATA = {"data.source", "data.train_split", "data.held_out_split"}
_CUT = {"held_out_per_class", "seed"}  # which images are cut from the training set


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
        """Whether blocks are computed again in the backward pass."""
        return self.weights.grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.weights.set_grad_checkpointing(enable)

    def forward(self, x: Tensor, subnet: SubnetConfig) -> Tensor:
        """Run the network.

        Args:
            x: images (B, in_chans, height, width).
            subnet: the network's own; there is no other.

        Returns:
            Logits (B, num_classes).
        """
        logits: Tensor = self.weights(x)
        return logits


Network = Supernet | FixedSubnet


def make_network(config: TrainConfig) -> Network:
    """Make the network that a config trains, its random part following from the seed.

    Raises:
        ValueError: a subnet does not fit, or the weights are for another network.
        CheckpointError: the weights are missing or damaged.
    """
    torch.manual_seed(config.seed)
    space = space_of(config)
    if config.sampling == "fixed":
        subnet = _make_subnet(config, space)
        if config.weights.new_head:
            subnet.reset_classifier(space.num_classes)
        if config.freeze_blocks:
            _freeze(subnet, config.freeze_blocks)
        return FixedSubnet(subnet).train()
    if config.freeze_blocks:
        raise ValueError("freeze_blocks is of sampling fixed: subnets share blocks; expected 0")
    require_sizes(config.stages, space.patch_size)
    return _make_supernet(space, config.weights, config.drop_path_rate).train()


def require_sizes(stages: tuple[Stage, ...], patch_size: int) -> None:
    """Check that images of every stage can be cut into whole patches.

    Raises:
        ValueError: they cannot; the text has the nearest size that can.
    """
    for stage in stages:
        if stage.img_size % patch_size:
            near = max(1, round(stage.img_size / patch_size)) * patch_size
            raise ValueError(
                f"stage {stage.epochs}:{stage.img_size}: the network's patches have {patch_size} "
                f"px; expected a multiple of them, such as {stage.epochs}:{near}"
            )


def load_initial(config: TrainConfig, network: Network, device: torch.device) -> dict[str, Any]:
    """Load the weights of the run that a config starts from; returns the run's checkpoint.

    Args:
        config: names the run in `initial`.
        network: gets the weights.
        device: where tensors are put.

    Raises:
        ValueError: the run learned from images that are held out now, or trained another network.
        FileNotFoundError: there is no such run.
        CheckpointError: no checkpoint of it is whole.
    """
    run = Path(config.initial)
    deciding = _DATA if config.data.held_out_split else _DATA | _CUT
    found = differences(asdict(read_config(run)), asdict(config))
    if other := [text for text in found if text.partition("=")[0] in deciding]:
        raise ValueError(
            f"initial {run} has {'; '.join(other)}: it may have learned from images that are "
            "held out now; give the same here"
        )
    values = load_checkpoint(run, device)
    try:
        network.load_state_dict(values["network"])
    except RuntimeError as error:
        raise ValueError(
            f"initial {run} trained another network: {reason_of(error)}; give the same space, "
            "num_classes, sampling and subnet"
        ) from None
    return values


def _make_supernet(
    space: SearchSpace, weights_config: WeightsConfig, drop_path_rate: float
) -> Supernet:
    path = weights_config.checkpoint
    if not path:
        return Supernet(space, drop_path_rate=drop_path_rate)
    weights = load_supernet(path, weights_config.layout or None)
    given = (weights.img_size[0], weights.patch_size[0], weights.in_chans)
    own = (space.img_size, space.patch_size, CHANNELS)
    if not same_sizes(weights.sizes, space.supernet) or given != own:
        raise ValueError(
            f"{path} holds the supernet {weights.sizes.to_json()} for (pixels, patch, channels) "
            f"{given}; the config's space has {space.supernet.to_json()} for {own}: name its space"
        )
    supernet = Supernet(space, weights.bias_rule, drop_path_rate)
    state = {name: tensor.float() for name, tensor in weights.tensors.items()}
    _log_head(path, weights.num_classes, space.num_classes)
    if weights_config.new_head or weights.num_classes != space.num_classes:
        head = supernet.weights.head.state_dict()
        state |= {f"head.{name}": tensor for name, tensor in head.items()}
    supernet.weights.load_state_dict(state)
    return supernet


def _make_subnet(config: TrainConfig, space: SearchSpace) -> AutoFormer:
    arguments: dict[str, Any] = {
        "img_size": config.largest_size,
        "num_classes": space.num_classes,
        "drop_path_rate": config.drop_path_rate,
        "dynamic_img_size": True,  # stages change the input size
    }
    subnet = parse_subnet(config.subnet) if config.subnet else None
    if name := config.weights.model:
        bare = create_model(name, subnet=subnet, device="meta")
        if not isinstance(bare, AutoFormer):
            raise ValueError(f"{name!r} is not an AutoFormer, but a {type(bare).__name__}")
        require_sizes(config.stages, bare.patch_embed.patch_size[0])
        _log_head(name, bare.num_classes, space.num_classes)
        return cast(AutoFormer, create_model(name, pretrained=True, subnet=subnet, **arguments))
    if path := config.weights.checkpoint:
        checkpoint = open_weights(path, config.weights.layout or None)
        weights = checkpoint.subnet(subnet)
        # A supernet's depth, as if the subnet were trained in it.
        arguments["drop_path_depth"] = checkpoint.architecture.sizes.depth
        require_sizes(config.stages, weights.patch_size[0])
        _log_head(path, weights.num_classes, space.num_classes)
        return build_static(weights, **arguments).float()
    assert subnet is not None  # a config of sampling fixed has a subnet or weights
    require_sizes(config.stages, space.patch_size)
    arguments["drop_path_depth"] = space.supernet.depth
    # The space's own size, so that a subnet trained alone has the supernet's position embedding.
    arguments["img_size"] = space.img_size
    return AutoFormer(subnet, patch_size=space.patch_size, **arguments)


def _log_head(source: str, before: int, now: int) -> None:
    if before != now:
        _log.info("%s has %d classes, the data %d: its head is a new one", source, before, now)


def _freeze(model: AutoFormer, blocks: int) -> None:
    """Keep embeddings and the first blocks as they are."""
    if blocks > len(model.blocks):
        raise ValueError(f"freeze_blocks is {blocks}; the network has {len(model.blocks)} blocks")
    model.pos_embed.requires_grad_(False)
    model.cls_token.requires_grad_(False)
    for part in (model.patch_embed, *model.blocks[:blocks]):
        part.requires_grad_(False)
