"""Store a teacher's answers to fixed views of the training images, for `--distill.answers`.

    python -m training.engine.teacher --data-dir DATA --out teacher --preset nano-distilled
    python -m training.train --data-dir DATA --out runs/nano --preset nano-distilled \\
        --distill.answers teacher/answers.safetensors

    python -m training.engine.teacher --data-dir IMAGENET --out teacher --preset imagenet-tiny \\
        --model regnety_160.deit_in1k --views 8

The preset decides which images are held out and what a view is, so both commands need the same one.
Without --model a small convolutional network is trained, on the student's training images alone:
one that had seen the held-out images would make their accuracy useless for a choice. The directory
holds teacher.pt, its state after the last epoch, and answers.safetensors; the same command goes on
where a stopped one was.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from training.config import MEMORY, DistillConfig, Resources, TrainConfig, space_of
from training.data.cifar10 import load_train
from training.data.open import open_source
from training.data.transforms import NORMALISATIONS
from training.engine.losses import open_teacher
from training.engine.step import HALF
from training.engine.teacher.answers import require_views, store_answers
from training.engine.teacher.train import DEFAULT_TEACHER, TeacherConfig, answer, train_teacher
from training.presets import PRESETS, Preset
from training.run.command import run_command
from training.run.distributed import Ranks, device_of
from training.train import resolve_precision

ANSWERS = "answers.safetensors"


def train_and_store(
    config: TrainConfig,
    teacher: TeacherConfig,
    data_dir: Path,
    out: Path,
    views: int,
    device: torch.device,
) -> dict[str, object]:
    """Train a convolutional teacher on images in memory and store its answers.

    Args:
        config: of the student.
        teacher: how to train the teacher.
        data_dir: root of the data.
        out: directory to write.
        views: augmented views of each image.
        device: where.

    Returns:
        The teacher's held-out top-1 in percent, and the file of answers.

    Raises:
        ValueError: the source is not in memory.
        FileNotFoundError: the data is not there.
    """
    if config.data.source != MEMORY:
        raise ValueError(
            f"data.source is {config.data.source!r}; the convolutional teacher is for small "
            f"images in memory, source {MEMORY!r}: expected --model with a teacher of timm"
        )
    images = load_train(data_dir, config.held_out_per_class, config.seed)
    train, held_out = (part.to(device) for part in images)
    half = HALF.get(resolve_precision(config.precision, device))
    num_classes = space_of(config).num_classes
    out.mkdir(parents=True, exist_ok=True)
    model, accuracy = train_teacher(teacher, train, held_out, num_classes, out / "teacher.pt", half)
    source = require_views(config, open_source(config, data_dir, Ranks(device), Resources()))
    side = train.images.shape[-1]
    store_answers(lambda x: answer(model, x, half), source, config, views, out / ANSWERS, side)
    return {"held_out_acc1_percent": round(accuracy, 2), "answers": str(out / ANSWERS)}


def store_of_model(
    config: TrainConfig, data_dir: Path, out: Path, views: int, device: torch.device
) -> dict[str, object]:
    """Store the answers of the timm model that `config.distill` names.

    Arguments and result as of `train_and_store`; the teacher is not evaluated.

    Raises:
        ValueError: the model is unknown or of other classes, or the source is a stream.
        CheckpointError: its weights cannot be had.
        FileNotFoundError: the data is not there.
    """
    size = config.largest_size
    source = require_views(config, open_source(config, data_dir, Ranks(device), Resources()))
    given = NORMALISATIONS[config.data.normalisation]
    teacher = open_teacher(config.distill, given, source.num_classes, [size], device)
    assert teacher is not None
    out.mkdir(parents=True, exist_ok=True)
    store_answers(teacher.logits, source, config, views, out / ANSWERS, size)
    return {"answers": str(out / ANSWERS)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        data_dir: Path,
        out: Path,
        preset: Preset = "nano-distilled",
        views: int = 16,
        model: str = "",
        checkpoint: str = "",
        device: str = "auto",
        teacher: Annotated[TeacherConfig, tyro.conf.arg(name="")] = DEFAULT_TEACHER,
    ) -> None:
        """Store a teacher's answers: of a small network trained here, or of a timm model.

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/IMAGE.
            out: directory to write; an unfinished run in it goes on.
            preset: of the student: images, held-out split and augmentation.
            views: augmented views of each training image that are answered.
            model: a timm model to store the answers of; empty: train a network.
            checkpoint: the model's weights; empty: timm's pretrained ones.
            device: as PyTorch names it; auto: CUDA if there is any.
        """
        place = device_of(device)
        config = replace(
            PRESETS[preset], distill=DistillConfig(teacher=model, checkpoint=checkpoint)
        )
        if model:
            print(json.dumps(store_of_model(config, data_dir, out, views, place)))
        else:
            print(json.dumps(train_and_store(config, teacher, data_dir, out, views, place)))

    return run_command("python -m training.engine.teacher", command, argv)


if __name__ == "__main__":
    sys.exit(main())
