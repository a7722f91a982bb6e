"""What the subcommands share: from the files that a user names to a network. Prints nothing."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from autoformer_zoo.models.factory import create_model
from autoformer_zoo.published import without_slice
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.pretrained import open_weights


def load_model(
    path: Path, name: str | None, layout: str | None, subnet: SubnetConfig | None = None
) -> nn.Module:
    """Make the network that a file holds, or a subnet of a supernet's file.

    Args:
        path: the file.
        name: the model whose normalisation and class names apply, unless the file's header has its
            own; None if the header has them, or the classes are ImageNet's 1000.
        layout: packing of q, k and v in a supernet's file, see `open_weights`.
        subnet: what to cut out of a supernet; by default the named model's subnet.

    Raises:
        ValueError: an argument is missing, or does not fit the file.
        CheckpointError: the file is refused.
    """
    opened = open_weights(path, layout)
    net = opened.architecture
    is_whole = not opened.is_supernet and subnet is None
    if name is not None:
        # A file of one subnet is taken as it is: the name only describes its data.
        keys = ("img_size", "patch_size", "in_chans", "num_classes") if is_whole else ()
        sizes = {key: getattr(net, key) for key in keys}
        if is_whole:
            name, subnet = without_slice(name), net.sizes
        return create_model(name, checkpoint_path=opened, subnet=subnet, **sizes)
    if opened.is_supernet and subnet is None:
        raise ValueError(
            f"{path} holds a supernet: give --model NAME, whose subnet is cut out of it, or a "
            "subnet's file, which `autoformer-zoo extract` writes"
        )
    if net.num_classes != 1000 and "label_names" not in opened.metadata:
        raise ValueError(
            f"{path} has {net.num_classes} classes but no names of them: give --model NAME, "
            "the model whose normalisation and class names apply"
        )
    return create_model("autoformer_subnet", checkpoint_path=opened, subnet=subnet)


def read_config(path: Path) -> SubnetConfig:
    """Read a subnet's JSON, or the first one of `specialize --out`; errors name the file."""
    try:
        text = path.read_text(encoding="utf-8")
        if '"results"' in text:
            return SubnetConfig.from_dict(json.loads(text)["results"][0]["subnet"])
        return SubnetConfig.from_json(text)
    except (ValueError, LookupError, TypeError, RecursionError) as error:  # of the encoding too
        raise ValueError(f"{path}: {error}") from None
