"""Start from another run's weights, where they fit and never saw what is held out now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoints import load_checkpoint
from training.config import TrainConfig, differences
from training.networks import Network
from training.run_directory import read_config

_DATA = {"data.source", "data.train_split", "data.held_out_split"}
_CUT = {"held_out_per_class", "seed"}  # which pictures are cut from the training set


def load_initial(config: TrainConfig, network: Network, device: torch.device) -> dict[str, Any]:
    """Load the checkpoint of the run that a config starts from.

    Args:
        config: names the run.
        network: what its weights are for.
        device: where tensors shall be.

    Raises:
        ValueError: the run learned from pictures that are held out now, or trained another network.
        FileNotFoundError: there is no such run.
        CheckpointError: no checkpoint of it is whole.
    """
    run = Path(config.initial)
    deciding = _DATA if config.data.held_out_split else _DATA | _CUT
    found = differences(read_config(run), config)
    if other := [each for each in found if each.partition("=")[0] in deciding]:
        raise ValueError(
            f"initial {run} has {'; '.join(other)}: it may have learned from pictures that are "
            "held out now; give the same here"
        )
    values = load_checkpoint(run, device)
    _require_same_shapes(run, values["network"], network.state_dict())
    return values


def _require_same_shapes(run: Path, given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (given, own)]
    wrong = [name for name in own | given if shapes[0].get(name) != shapes[1].get(name)]
    if wrong:
        has, expected = (each.get(wrong[0], "missing") for each in shapes)
        raise ValueError(
            f"initial {run} trained another network: {wrong[0]} is {has}, here {expected}, and "
            f"{len(wrong) - 1} more differ; give the same space, num_classes, sampling and subnet"
        )
