"""Make the network that a config trains: a supernet or one subnet, random or from trained weights.

Official and PreNAS supernets go on under their own rule for the bias of q, k and v. A subnet may
get another head and another input size; a supernet keeps both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoformer_zoo.autoformer import build_static
from autoformer_zoo.checkpoint import load_supernet, load_weights
from autoformer_zoo.factory import create_model
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.upstream_formats import same_sizes
from autoformer_zoo.vit import AutoFormer
from training.config import TrainConfig
from training.sampling import parse_subnet
from training.supernet import FixedSubnet, Supernet

Network = Supernet | FixedSubnet
CHANNELS = 3  # of the pictures of every source


def find_space(name: str) -> SearchSpace:
    """Return the space of that name, or of that JSON.

    Raises:
        ValueError: it is unknown; the text has the known ones.
    """
    if name.lstrip().startswith("{"):
        return SearchSpace.from_json(name)
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}, or JSON")
    return SPACES[name]


def space_of(config: TrainConfig) -> SearchSpace:
    """Return the config's space, with the config's number of classes."""
    space = find_space(config.space)
    return replace(space, num_classes=config.num_classes or space.num_classes)


def make_network(config: TrainConfig) -> Network:
    """Make the network that a config trains, its random part following from the seed.

    Raises:
        ValueError: a subnet does not fit, or the weights are for another network.
        CheckpointError: the weights cannot be had.
    """
    torch.manual_seed(config.seed)
    space = space_of(config)
    network: Network
    if config.sampling == "fixed":
        network = FixedSubnet(_make_subnet(config, space))
        if config.freeze_blocks:
            _freeze(network.weights, config.freeze_blocks)
    else:
        network = _make_supernet(config, space)
    return network.train()


def require_sizes(config: TrainConfig, patch_size: int) -> None:
    """Refuse stages whose pictures cannot be cut into whole patches.

    Raises:
        ValueError: as said; the text has a size that can.
    """
    for stage in config.stages:
        if stage.img_size % patch_size:
            near = max(1, round(stage.img_size / patch_size)) * patch_size
            raise ValueError(
                f"stage {stage.epochs}:{stage.img_size}: the network's patches have {patch_size} "
                f"px; expected a multiple of them, such as {stage.epochs}:{near}"
            )


def _make_supernet(config: TrainConfig, space: SearchSpace) -> Supernet:
    require_sizes(config, space.patch_size)
    if config.freeze_blocks:
        raise ValueError("freeze_blocks is of sampling fixed: subnets share blocks; expected 0")
    path = config.weights.checkpoint
    if not path:
        return Supernet(space, drop_path_rate=config.drop_path_rate)
    weights = load_supernet(path, config.weights.layout or None)
    given = (weights.num_classes, weights.img_size[0], weights.patch_size[0], weights.in_chans)
    own = (space.num_classes, space.img_size, space.patch_size, CHANNELS)
    if not same_sizes(weights.sizes, space.supernet) or given != own:
        raise ValueError(
            f"{path} holds the supernet {weights.sizes.to_json()} for (classes, pixels, patch, "
            f"channels) {given}; the config's space has {space.supernet.to_json()} for "
            f"{own}: name its space"
        )
    supernet = Supernet(space, weights.bias_rule, config.drop_path_rate)
    supernet.weights.load_state_dict({name: t.float() for name, t in weights.tensors.items()})
    return supernet


def _make_subnet(config: TrainConfig, space: SearchSpace) -> AutoFormer:
    arguments: dict[str, Any] = {
        "img_size": config.largest_size,
        "num_classes": space.num_classes,
        "drop_path_rate": config.drop_path_rate,
        "drop_path_depth": space.supernet.depth,
        "dynamic_img_size": True,  # stages change the input size
    }
    subnet = parse_subnet(config.subnet) if config.subnet else None
    if name := config.weights.model:
        bare = _checked_autoformer(create_model(name, subnet=subnet, device="meta"), name)
        require_sizes(config, bare.patch_embed.patch_size[0])
        model = create_model(name, pretrained=True, subnet=subnet, **arguments)
        return _checked_autoformer(model, name)
    if path := config.weights.checkpoint:
        weights = load_weights(Path(path), subnet, config.weights.layout or None)
        require_sizes(config, weights.patch_size[0])
        if weights.in_chans != CHANNELS:
            raise ValueError(
                f"{path} is for {weights.in_chans} channels; expected {CHANNELS}, as pictures have"
            )
        return build_static(weights, **arguments).float()
    require_sizes(config, space.patch_size)
    if subnet is None:
        raise ValueError("sampling is fixed, but no subnet is given: name one in subnet")
    # The space's own size, so that a subnet trained alone has the supernet's position embedding.
    arguments["img_size"] = space.img_size
    return AutoFormer(subnet, patch_size=space.patch_size, **arguments)


def fixed_subnet(config: TrainConfig, network: Network) -> SubnetConfig | None:
    """Return the one subnet of sampling fixed; None for a supernet."""
    return network.weights.cfg if config.sampling == "fixed" else None


def _freeze(model: AutoFormer, blocks: int) -> None:
    """Keep embeddings and the first blocks as they are."""
    if blocks > len(model.blocks):
        raise ValueError(f"freeze_blocks is {blocks}; the network has {len(model.blocks)} blocks")
    model.pos_embed.requires_grad_(False)
    model.cls_token.requires_grad_(False)
    for part in (model.patch_embed, *model.blocks[:blocks]):
        part.requires_grad_(False)


def _checked_autoformer(model: torch.nn.Module, name: str) -> AutoFormer:
    if not isinstance(model, AutoFormer):
        raise ValueError(f"{name!r} is no AutoFormer, but {type(model).__name__}")
    return model
