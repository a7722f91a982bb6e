"""Final weights of a run: its averages as a canonical supernet or subnet file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.layouts import Architecture
from training.config import space_of
from training.run.checkpoints import load_checkpoint
from training.run.directory import read_config

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
    metadata = {"origin": "trained by autoformer_zoo"}
    if config.sampling == "fixed":
        subnet, size = SubnetConfig.from_json(values["subnet"]), tuple(values["img_size"])
        return SubnetWeights(tensors, replace(net, sizes=subnet, img_size=size), metadata)
    return SupernetWeights(tensors, net, values["bias_rule"], metadata)


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
