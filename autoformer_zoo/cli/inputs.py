"""What the verbs of `cli.py` share: from files that a user names to a network.

Chooses by what the files hold; what a file may be is said in `checkpoint.py`. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from autoformer_zoo.factory import create_model
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import CheckpointError, load_subnet, load_weights
from autoformer_zoo.weights.layouts import Layout

LayoutOption = Annotated[
    Layout | None,
    tyro.conf.arg(
        metavar="{packed_prefix,packed_interleaved}",
        help_behavior_hint="(default: the file's header, else packed_prefix)",
    ),
]


def load_checkpoint(
    path: Path, name: str | None, layout: str | None, subnet: SubnetConfig | None = None
) -> nn.Module:
    """Make the network that a file holds, or a subnet of a supernet's file.

    Args:
        path: the file.
        name: the model whose normalisation and class names hold; where it is None, the file has
            to have ImageNet's 1000 classes.
        layout: how q, k and v lie in a supernet's file, see `load_supernet`.
        subnet: what to cut out of a supernet; the named model's subnet where it is None.

    Raises:
        ValueError: an argument is missing, or does not fit the file.
        CheckpointError: the file is refused.
    """
    if name is None:
        weights = load_subnet(path) if subnet is None else load_weights(path, subnet, layout)
        if weights.num_classes != 1000:
            raise ValueError(
                f"{path} is for {weights.num_classes} classes, and does not say which: name with "
                "--model the model whose normalisation and class names hold"
            )
        return create_model("autoformer_subnet", checkpoint_path=path, subnet=subnet, layout=layout)
    if subnet is not None:
        return create_model(name, checkpoint_path=path, subnet=subnet, layout=layout)
    try:
        weights = load_subnet(path)
    except CheckpointError:  # a supernet; what else may be wrong is said by the next attempt
        return create_model(name, checkpoint_path=path, layout=layout)
    return create_model(
        name,
        checkpoint_path=path,
        subnet=weights.subnet,
        layout=layout,
        img_size=weights.img_size,
    )


def check_output(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place where no safetensors file can or should be written."""
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} is no name for the result; expected one that ends in .safetensors")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise ValueError(f"{out} is an input as well; give the result another name")


def read_config(path: Path) -> SubnetConfig:
    """Read a subnet's JSON; errors name the file."""
    try:
        return SubnetConfig.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
