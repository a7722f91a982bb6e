"""Train the convolutional teacher on the images that a supernet trains on.

SGD with Nesterov momentum, a triangular learning rate, label smoothing, flips that alternate from
epoch to epoch, and shifts. The state after each epoch is kept, so that a stopped training resumes
with the next one.

Source: arXiv 2404.00498.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batch import mixed_seed
from training.data.cifar10 import Images, eval_batch
from training.engine.teacher.network import ConvTeacher
from training.run.directory import write_atomic

_log = logging.getLogger(__name__)

SHIFT = 2  # pixels, at most, in each direction
SMOOTHING = 0.2
MOMENTUM = 0.85
RATE = 1.5  # highest learning rate, for the mean loss of a batch of 1024
DECAY = 0.002  # of the weights, in a step of 1024 images
BIAS_FACTOR = 64  # of the learning rate, for the biases of batch norms
WHITENING_EPOCHS = 3  # after these the bias of the first layer is frozen
PEAK, LOW_START, LOW_END = 0.23, 0.2, 0.07  # of the triangle


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """How the teacher is trained."""

    epochs: int = 10  # epochs of the teacher
    widths: tuple[int, int, int] = (64, 256, 256)  # channels of the three stages
    batch_size: int = 500  # images per step of the teacher
    seed: int = 0  # seed of the teacher


DEFAULT_TEACHER = TeacherConfig()


def train_teacher(
    config: TeacherConfig,
    train: Images,
    held_out: Images,
    num_classes: int,
    state_file: Path,
    half: torch.dtype | None,
) -> tuple[ConvTeacher, float]:
    """Train a teacher, or resume from `state_file` if it exists.

    Args:
        config: how.
        train: images to train on.
        held_out: images to report the accuracy on.
        num_classes: of the labels.
        state_file: where to keep the state after each epoch.
        half: type of autocast; None for fp32.

    Returns:
        The teacher in eval mode, and its top-1 on the held-out images in percent.
    """
    torch.manual_seed(config.seed)
    device = train.images.device
    model = ConvTeacher(num_classes, config.widths).to(device).to(memory_format=torch.channels_last)
    x = eval_batch(train, train.images.shape[-1])
    model.whiten_like(x[:5000])
    optimizer = _make_optimizer(model, config)
    first, accuracy, seconds = 0, 0.0, 0.0
    if state_file.exists():
        values = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        first, accuracy, seconds = values["epoch"], values["accuracy"], values["seconds"]
    flipped = (torch.rand(len(x), generator=_generator(config, 0, "flip")) < 0.5).to(device)
    for epoch in range(first, config.epochs):
        started = time.perf_counter()
        model.train()
        # Every image is flipped in every other epoch, so that two epochs show both of its sides.
        is_flipped = flipped ^ (epoch % 2 == 1)
        loss = _train_epoch(model, optimizer, x, train.labels, is_flipped, config, epoch, half)
        seconds += time.perf_counter() - started
        accuracy = accuracy_of(model, held_out, half)
        _log.info(
            "teacher: epoch %d of %d, loss %.3f, held-out %.2f %%, %.0f s",
            *(epoch + 1, config.epochs, loss, accuracy, seconds),
        )
        values = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            **{"epoch": epoch + 1, "accuracy": accuracy, "seconds": seconds},
        }
        with write_atomic(state_file) as temporary:
            torch.save(values, temporary)
    return model.eval(), accuracy


def _train_epoch(
    model: ConvTeacher,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    is_flipped: Tensor,
    config: TeacherConfig,
    epoch: int,
    half: torch.dtype | None,
) -> float:
    """Train on all images once; returns the mean loss."""
    generator = _generator(config, epoch, "shift")
    offsets = torch.randint(0, 2 * SHIFT + 1, (2, len(x), 1), generator=generator).to(x.device)
    model.whitening_bias.requires_grad_(epoch < WHITENING_EPOCHS)
    order = torch.randperm(len(x), generator=_generator(config, epoch, "order")).to(x.device)
    steps = len(x) // config.batch_size
    total = 0.0
    for number in range(steps):
        batch = order[number * config.batch_size :][: config.batch_size]
        scale = _triangle((epoch * steps + number) / (config.epochs * steps))
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * scale
        shown = torch.where(is_flipped[batch].view(-1, 1, 1, 1), x[batch].flip(3), x[batch])
        with torch.autocast(x.device.type, half, enabled=half is not None):
            logits = model(_shift(shown, offsets[:, batch]))
        loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / steps


@torch.no_grad()
def answer(model: ConvTeacher, x: Tensor, half: torch.dtype | None) -> Tensor:
    """Return the logits (n, num_classes) in fp32."""
    with torch.autocast(x.device.type, half, enabled=half is not None):
        logits: Tensor = model(x)
    return logits.float()


def accuracy_of(model: ConvTeacher, images: Images, half: torch.dtype | None) -> float:
    """Return the top-1 in percent."""
    model.eval()
    correct = 0
    for indices in torch.arange(len(images)).split(500):
        part = images.select(indices)
        x = eval_batch(part, images.images.shape[-1])
        correct += int((answer(model, x, half).argmax(1) == part.labels).sum())
    return 100 * correct / len(images)


def _make_optimizer(model: ConvTeacher, config: TeacherConfig) -> torch.optim.Optimizer:
    rate = RATE * config.batch_size / 1024
    norms: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_norm = name.startswith("stages") and name.endswith("bias")
            (norms if is_norm else others).append(parameter)
    decay = DECAY * config.batch_size / 1024
    groups = [
        {
            "params": norms,
            "highest": rate * BIAS_FACTOR,
            "weight_decay": decay / rate / BIAS_FACTOR,
        },
        {"params": others, "highest": rate, "weight_decay": decay / rate},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)


def _triangle(done: float) -> float:
    if done < PEAK:
        return LOW_START + (1 - LOW_START) * done / PEAK
    return 1 + (LOW_END - 1) * (done - PEAK) / (1 - PEAK)


def _shift(x: Tensor, offsets: Tensor) -> Tensor:
    """Shift images by offsets (2, n, 1) minus SHIFT pixels; what comes in is a reflection."""
    span = torch.arange(x.shape[-1], device=x.device)
    rows, columns = offsets[0] + span, offsets[1] + span  # (n, side)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (SHIFT,) * 4, "reflect")
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _generator(config: TeacherConfig, epoch: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(mixed_seed(config.seed, epoch, f"teacher/{purpose}"))
