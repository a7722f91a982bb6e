"""Final weights of a run: its averages as a canonical supernet or subnet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm import get_pretrained_cfg

from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.published import MODELS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.pretrained import open_weights
from training.data.identity import read_classes
from training.data.transforms import NORMALISATIONS
from training.run.checkpoints import load_checkpoint
from training.run.directory import read_config
from training.settings.config import MEMORY, TrainConfig, space_of

WEIGHTS = "weights.safetensors"


def averaged_weights(run: Path) -> SupernetWeights | SubnetWeights:
    """Read the averaged weights of a run, in fp32: a supernet, or the one subnet of sampling fixed.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: none is whole.
        ValueError: the weights are of separate choices, which make no supernet.
    """
    config = read_config(run)
    space, values = space_of(config), load_checkpoint(run)
    tensors = {
        name.removeprefix("weights."): tensor.contiguous() for name, tensor in values["ema"].items()
    }
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(
            f"{run} trained weights of their own for each choice (classic weight sharing), which "
            "make no supernet; expected a run of training.train"
        )
    _, in_chans, *patch_size = map(int, tensors["patch_embed.proj.weight"].shape)
    net = replace(
        Architecture.of_space(space), patch_size=(patch_size[0], patch_size[1]), in_chans=in_chans
    )
    metadata = _notes(config, read_classes(run))
    if config.sampling == "fixed":
        subnet, size = SubnetConfig.from_json(values["subnet"]), tuple(values["img_size"])
        weights = SubnetWeights(tensors, replace(net, sizes=subnet, img_size=size), metadata)
        return resized(weights, config.largest_size)  # from scratch it has the space's size
    return SupernetWeights(tensors, net, values["bias_rule"], metadata)


def resized(weights: SubnetWeights, img_size: int) -> SubnetWeights:
    """Return a subnet's weights for images of this side in pixels.

    The position embedding is resampled in fp32, as in training and scoring.
    """
    size = (img_size, img_size)
    if size == weights.img_size:
        return weights
    tensors = {**weights.tensors, "pos_embed": build_subnet(weights, size).pos_embed.detach()}
    return replace(weights, tensors=tensors, net=replace(weights.net, img_size=size))


def write_weights(run: Path) -> Path:
    """Write the averaged weights of a run into its directory; returns the file.

    Raises:
        OSError: it cannot be written.
    """
    weights = averaged_weights(run)
    if isinstance(weights, SupernetWeights):
        save_supernet(weights, run / WEIGHTS)
    else:
        save_subnet(weights, run / WEIGHTS)
    return run / WEIGHTS


def _notes(config: TrainConfig, class_names: Sequence[str]) -> dict[str, str]:
    """Return what the file's header must hold for the network to be used as it was trained."""
    data, start = config.data, _first(config).weights
    mean, std = NORMALISATIONS[data.normalisation]
    cfg: dict[str, Any] = {
        "label_names": class_names or None,
        "mean": mean,
        "std": std,
        "interpolation": "bilinear" if data.source == MEMORY else data.interpolation,
        "crop_pct": data.crop_pct,
        "crop_mode": "center",
        "origin": f"trained by autoformer_zoo on {data.source}",
    }
    if start.model:
        cfg["origin"] += f", from the weights of {start.model}"
        cfg["license"] = get_pretrained_cfg(start.model).license
    elif start.checkpoint:
        before = _header_of(start.checkpoint)
        origin = f" ({before['origin']})" if "origin" in before else ""
        cfg["origin"] += f", from {Path(start.checkpoint).name}{origin}"
        cfg["license"] = before.get("license")
    return cfg_to_notes(cfg)


def _first(config: TrainConfig) -> TrainConfig:
    """Return the config of the run that a chain of `initial` began with, if it is still there."""
    while config.initial and (Path(config.initial) / "config.json").exists():
        config = read_config(Path(config.initial))
    return config


def _header_of(source: str) -> Mapping[str, str]:
    """Return the notes of the file or model that a run started from; empty if it has none."""
    path = Path(source)
    if not path.exists() and source.partition(".")[0] in MODELS:
        return open_weights(source).metadata
    if path.suffix != ".safetensors" or not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
