"""Final weights of a run: its averages as a canonical supernet or subnet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoformer_zoo.checkpoint import SubnetWeights, SupernetWeights, save_subnet, save_supernet
from autoformer_zoo.space import SubnetConfig
from training.checkpoints import load_checkpoint
from training.networks import space_of
from training.run_directory import read_config

WEIGHTS = "weights.safetensors"


def averaged_weights(run: Path) -> SupernetWeights | SubnetWeights:
    """Read the averaged weights of a run, in fp32: a supernet, or the one subnet of sampling fixed.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: none is whole.
    """
    config = read_config(run)
    space, values = space_of(config), load_checkpoint(run)
    prefix = "weights."
    tensors = {name.removeprefix(prefix): t.contiguous() for name, t in values["ema"].items()}
    patch = tensors["patch_embed.proj.weight"].shape
    shared: dict[str, Any] = {
        "patch_size": (int(patch[2]), int(patch[3])),
        "in_chans": int(patch[1]),
        "num_classes": space.num_classes,
        "metadata": {"origin": "trained by autoformer_zoo"},
    }
    if config.sampling == "fixed":
        size = tuple(values["img_size"])
        return SubnetWeights(
            tensors, SubnetConfig.from_json(values["subnet"]), img_size=size, **shared
        )
    size = (space.img_size, space.img_size)
    return SupernetWeights(tensors, space.supernet, values["bias_rule"], img_size=size, **shared)


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
