"""What is minimised: smoothed or mixed labels, a largest subnet's answers, a teacher's.

Losses are computed in fp32 whatever the network's precision is.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, resolve_model_data_config
from torch import Tensor, nn

import autoformer_zoo  # noqa: F401 - its models can be teachers too
from autoformer_zoo.weights.checkpoint import CheckpointError
from training.config import TrainConfig
from training.data.batch import Batch, mixed_seed, seed_all
from training.run.checkpoints import reason_of


class Mixer:
    """Mixup and CutMix of a part of a batch: timm's, seeded by (seed, step, part).

    Args:
        config: says how to mix.
        num_classes: classes of the labels.
    """

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        augment = config.augment
        self._seed = config.seed
        self._mixup: Mixup | None = None
        if augment.mixes:
            self._mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_probability,
                mode=augment.mix_mode,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    def mix(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Return images and targets: labels (n,), or mixed probabilities (n, num_classes)."""
        if self._mixup is None:
            return batch.x, batch.labels
        seed_all(mixed_seed(self._seed, step, f"mixup/{part}"))
        x, targets = self._mixup(batch.x, batch.labels)
        return x, targets


class Teacher:
    """A network whose hard answers are learned (DeiT, arXiv 2012.12877, section 4).

    Args:
        model: in eval mode, on the device.
        own: the teacher's mean and deviation of channels.
        given: those that images come with.
    """

    def __init__(
        self,
        model: nn.Module,
        own: tuple[Sequence[float], Sequence[float]],
        given: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        device = next(model.parameters()).device
        tensors = [torch.tensor(values, device=device).view(3, 1, 1) for values in (*own, *given)]
        own_mean, own_std, mean, std = tensors
        self._model = model
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def labels(self, x: Tensor) -> Tensor:
        """Return the class (n,) that the teacher answers for images normalised as the data."""
        answers: Tensor = self._model(x * self._scale + self._shift).argmax(1)
        return answers


def open_teacher(config: TrainConfig, num_classes: int, device: torch.device) -> Teacher | None:
    """Open the config's teacher; None where it has none.

    Raises:
        ValueError: the teacher is unknown, has another number of classes, or cannot read images
            of a stage's size.
        CheckpointError: its weights cannot be had or do not match.
    """
    from training.data.transforms import NORMALISATIONS

    name, path = config.distill.teacher, config.distill.checkpoint
    if not name:
        return None
    if ":" not in name and not timm.is_model(name):  # with a colon: on the Hub, or in a folder
        near = difflib.get_close_matches(name, timm.list_models())
        raise ValueError(
            f"distill.teacher is {name!r}, which timm does not know; "
            f"{'the nearest are ' + ', '.join(near) if near else 'timm.list_models() has all'}"
        )
    model = _load_teacher(name, path, num_classes) if path else _fetch_teacher(name, num_classes)
    own = resolve_model_data_config(model)
    model.requires_grad_(False)
    given = NORMALISATIONS[config.data.normalisation]
    teacher = Teacher(model.eval().to(device), (own["mean"], own["std"]), given)
    for size in {stage.img_size for stage in config.stages}:
        try:
            teacher.labels(torch.zeros(1, 3, size, size, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the teacher {name} cannot read images of {size} px ({reason_of(error)}); give "
                f"one of any size, or stages of {own['input_size'][-1]} px alone"
            ) from None
    return teacher


def _load_teacher(name: str, path: str, num_classes: int) -> nn.Module:
    if not Path(path).is_file():
        raise CheckpointError(f"distill.checkpoint {path} is not there; expected a file of weights")
    try:
        model = timm.create_model(name, num_classes=num_classes)
        timm.models.load_checkpoint(model, path)
    except Exception as error:  # what is no checkpoint makes readers raise errors of any kind
        raise CheckpointError(
            f"distill.checkpoint {path} is no {name} of {num_classes} classes: {reason_of(error)}"
        ) from None
    return model


def _fetch_teacher(name: str, num_classes: int) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=True)  # with its own head, or not at all
    except (RuntimeError, OSError) as error:
        raise CheckpointError(
            f"no weights for the teacher {name}: {reason_of(error)}; give distill.checkpoint"
        ) from None
    if model.num_classes != num_classes:
        raise ValueError(
            f"the teacher {name} has {model.num_classes} classes, the data {num_classes}; "
            "give distill.checkpoint of one trained on this data"
        )
    return model


def label_loss(
    logits: Tensor, targets: Tensor, taught: Tensor | None, config: TrainConfig
) -> Tensor:
    """Return the cross-entropy in fp32.

    Args:
        logits: (n, num_classes).
        targets: labels (n,), which are smoothed; or probabilities (n, num_classes).
        taught: the teacher's labels (n,); None without one.
        config: smoothing, and the teacher's share.
    """
    logits = logits.float()
    smoothing = config.label_smoothing if targets.ndim == 1 else 0.0
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if taught is None:
        return loss
    share = config.distill.share
    return (1 - share) * loss + share * F.cross_entropy(logits, taught)


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the cross-entropy to another network's logits, in fp32 (in-place distillation)."""
    return F.cross_entropy(logits.float(), answers.float().softmax(1))
