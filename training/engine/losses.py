"""What is minimised: smoothed or mixed labels, a largest subnet's logits, a teacher's classes.

Losses are computed in fp32 whatever the network's precision is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, resolve_model_data_config
from torch import Tensor, nn

import autoformer_zoo  # noqa: F401 - its models can be teachers too
from autoformer_zoo.weights.checkpoint import CheckpointError
from training.data.batch import Batch, mixed_seed, seed_all
from training.run.checkpoints import reason_of
from training.settings.config import AugmentConfig, DistillConfig

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and std of channels


class Mixer:
    """Mixup and CutMix of a part of a batch: timm's, seeded by (seed, step, part).

    Args:
        augment: how to mix.
        label_smoothing: of mixed labels.
        num_classes: classes of the labels.
        seed: of the run.
        temperature: that softens a teacher's stored answers; None without them.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        label_smoothing: float,
        num_classes: int,
        seed: int,
        temperature: float | None = None,
    ) -> None:
        self._seed, self._temperature = seed, temperature
        self._smoothing, self._num_classes = label_smoothing, num_classes
        self._mixup: Mixup | None = None
        if augment.mixes:
            self._mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_probability,
                mode=augment.mix_mode,
                # Beside a teacher's probabilities the labels come as smoothed probabilities.
                label_smoothing=0.0 if temperature else label_smoothing,
                num_classes=2 * num_classes if temperature else num_classes,
                multi_label=bool(temperature),
            )

    def mix(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, targets, and a stored teacher's probabilities; None without a teacher.

        Targets are labels (n,), or mixed probabilities (n, num_classes).
        """
        taught = None
        if batch.answers is not None and self._temperature:
            taught = (batch.answers / self._temperature).softmax(1)  # (n, num_classes)
        if self._mixup is None:
            return batch.x, batch.labels, taught
        seed_all(mixed_seed(self._seed, step, f"mixup/{part}"))
        if taught is None:
            x, targets = self._mixup(batch.x, batch.labels)
            return x, targets, None
        hot = F.one_hot(batch.labels, self._num_classes)
        smoothed = hot * (1 - self._smoothing) + self._smoothing / self._num_classes
        x, both = self._mixup(batch.x, torch.cat([smoothed, taught], 1))
        targets, taught = both.chunk(2, 1)
        return x, targets, taught


class Teacher:
    """A network whose predicted classes are learned (DeiT, arXiv 2012.12877), or stored logits.

    Args:
        model: in eval mode, on the device.
        own: the teacher's normalisation.
        given: that of the images.
    """

    def __init__(self, model: nn.Module, own: Normalisation, given: Normalisation) -> None:
        device = next(model.parameters()).device
        tensors = [torch.tensor(values, device=device).view(3, 1, 1) for values in (*own, *given)]
        own_mean, own_std, mean, std = tensors
        self._model = model
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def labels(self, x: Tensor) -> Tensor:
        """Return the class (n,) that the teacher predicts for images normalised as the data."""
        return self.logits(x).argmax(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the teacher's logits (n, num_classes), to be stored."""
        logits: Tensor = self._model(x * self._scale + self._shift)
        return logits


def open_teacher(
    distill: DistillConfig,
    given: Normalisation,
    num_classes: int,
    sizes: Iterable[int],
    device: torch.device,
) -> Teacher | None:
    """Open the teacher; None without one.

    Args:
        distill: names it, and its weights.
        given: normalisation of the images.
        num_classes: classes of the data.
        sizes: input sides in pixels. Each is tried here: a teacher that cannot read images of a
            later stage would fail after hours.
        device: where it runs.

    Raises:
        ValueError: the teacher has another number of classes.
        CheckpointError: it cannot be opened, or cannot read images of these sizes; timm's reason.
    """
    name, path = distill.teacher, distill.checkpoint
    if not name:
        return None
    # Without a file the teacher keeps its own head: timm would give another one random weights.
    arguments: dict[str, Any] = (
        {"checkpoint_path": path, "num_classes": num_classes} if path else {"pretrained": True}
    )
    try:
        model = timm.create_model(name, **arguments).requires_grad_(False).eval().to(device)
        own = resolve_model_data_config(model)
        teacher = Teacher(model, (own["mean"], own["std"]), given)
        for size in sizes:
            teacher.labels(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # timm has no error of its own for what it cannot open
        raise CheckpointError(
            f"the teacher {name} cannot be opened from {path or 'timm'}: {reason_of(error)}"
        ) from error
    if model.num_classes != num_classes:
        raise ValueError(
            f"the teacher {name} has {model.num_classes} classes, the data {num_classes}; "
            "give distill.checkpoint of one trained on this data"
        )
    return teacher


def label_loss(
    logits: Tensor,
    targets: Tensor,
    smoothing: float,
    teacher_labels: Tensor | None = None,
    teacher_share: float = 0.0,
) -> Tensor:
    """Return the cross-entropy in fp32.

    Args:
        logits: (n, num_classes).
        targets: labels (n,), which are smoothed; or probabilities (n, num_classes).
        smoothing: label smoothing.
        teacher_labels: classes (n,) that a teacher predicts; None without one.
        teacher_share: weight of the teacher in the loss.
    """
    logits = logits.float()
    smoothing = smoothing if targets.ndim == 1 else 0.0  # mixed ones are smoothed already
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if teacher_labels is None:
        return loss
    taught = F.cross_entropy(logits, teacher_labels)
    return (1 - teacher_share) * loss + teacher_share * taught


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the divergence from a teacher's softened probabilities, in fp32.

    Args:
        logits: (n, num_classes).
        taught: the teacher's probabilities (n, num_classes), softened by the same temperature.
        temperature: logits are divided by it. The gradient falls with its square, so the loss is
            multiplied by that (arXiv 1503.02531, section 2).
    """
    softened = (logits.float() / temperature).log_softmax(1)
    return F.kl_div(softened, taught, reduction="batchmean") * temperature**2


def soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the cross-entropy to another network's logits, in fp32 (in-place distillation)."""
    return F.cross_entropy(logits.float(), target_logits.float().softmax(1))
