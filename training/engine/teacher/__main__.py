"""Store a teacher's answers to fixed views of the training images, for `--distill.answers`.

    python -m training.engine.teacher --data-dir DATA --out teacher --preset nano-distilled
    python -m training.train --data-dir DATA --out runs/nano --preset nano-distilled \\
        --distill.answers teacher/answers.safetensors

    python -m training.engine.teacher --data-dir IMAGENET --out teacher --preset imagenet-tiny \\
        --model regnety_160.deit_in1k --views 8

The preset decides which images are held out and what a view is, so both commands need the same one.
Without --model a small convolutional network is trained, on the student's training images alone:
if it had seen the held-out images, their accuracy could no longer be used for a choice. The
directory holds teacher.json, what it was made by; teacher.pt, its state after the last epoch; and
answers.safetensors. The same command resumes a stopped one, another one is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from training.data.cifar10 import load_train
from training.data.open import open_source
from training.data.transforms import NORMALISATIONS
from training.engine.losses import open_teacher
from training.engine.step import HALF
from training.engine.teacher.answers import require_views, store_answers, what_decides_views
from training.engine.teacher.train import DEFAULT_TEACHER, TeacherConfig, answer, train_teacher
from training.run.command import run_command
from training.run.distributed import Ranks, device_of
from training.run.journal import read_json, require_same, write_json
from training.settings.config import MEMORY, DistillConfig, Resources, TrainConfig
from training.settings.presets import PRESETS, Preset
from training.train import resolve_precision

ANSWERS = "answers.safetensors"


def make_answers(
    config: TrainConfig,
    teacher: TeacherConfig,
    data_dir: Path,
    out: Path,
    views: int,
    device: torch.device,
) -> dict[str, object]:
    """Store the answers of the timm model that `config.distill` names, or of one trained here.

    Args:
        config: of the student.
        teacher: how to train the network.
        data_dir: root of the data.
        out: directory to write.
        views: augmented views of each image.
        device: where.

    Returns:
        The file of answers, and the held-out top-1 in percent of a network trained here.

    Raises:
        ValueError: the source is a stream, or not in memory if a network is to be trained; the
            model has other classes; or `out` was begun with another teacher or for other views.
        CheckpointError: the model's weights are unavailable.
        FileNotFoundError: the data is missing.
    """
    source = require_views(config, open_source(config, data_dir, Ranks(device), Resources()))
    given, size = NORMALISATIONS[config.data.normalisation], config.largest_size
    found = open_teacher(config.distill, given, source.num_classes, [size], device)
    if found is None and config.data.source != MEMORY:
        raise ValueError(
            f"data.source is {config.data.source!r}; the convolutional teacher is for small "
            f"images in memory, source {MEMORY!r}: expected --model with a teacher of timm"
        )
    # A teacher that saw other images, such as the held-out ones of this seed, must not answer.
    made_by = asdict(teacher) if found is None else {**asdict(config.distill), "img_size": size}
    _require_own(out, {"views": what_decides_views(config), "teacher": made_by})
    done: dict[str, object] = {"answers": str(out / ANSWERS)}
    if found is not None:
        store_answers(found.logits, source, config, views, out / ANSWERS, size)
        return done
    images = load_train(data_dir, config.held_out_per_class, config.seed)
    train, held_out = (part.to(device) for part in images)
    half = HALF.get(resolve_precision(config.precision, device))
    state_file, side = out / "teacher.pt", train.images.shape[-1]
    model, accuracy = train_teacher(teacher, train, held_out, source.num_classes, state_file, half)
    store_answers(lambda x: answer(model, x, half), source, config, views, out / ANSWERS, side)
    return {"held_out_acc1_percent": round(accuracy, 2), **done}


def _require_own(out: Path, header: Mapping[str, Any]) -> None:
    path, header = out / "teacher.json", json.loads(json.dumps(header))
    if path.exists():
        require_same(read_json(path), header, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(header, path)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        data_dir: Path,
        out: Path,
        preset: Preset = "nano-distilled",
        student_seed: int = 0,
        views: int = 16,
        model: str = "",
        checkpoint: str = "",
        device: str = "auto",
        teacher: Annotated[TeacherConfig, tyro.conf.arg(name="")] = DEFAULT_TEACHER,
    ) -> None:
        """Store a teacher's answers: of a small network trained here, or of a timm model.

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/IMAGE.
            out: directory to write; an unfinished run in it is resumed.
            preset: of the student: images, held-out split and augmentation.
            student_seed: of the student; it decides which images are held out.
            views: augmented views of each training image that are answered.
            model: a timm model to store the answers of; empty: train a network.
            checkpoint: the model's weights; empty: timm's pretrained ones.
            device: device by PyTorch's name; auto: CUDA if there is a GPU.
        """
        distill = DistillConfig(teacher=model, checkpoint=checkpoint)
        config = replace(PRESETS[preset], seed=student_seed, distill=distill)
        print(json.dumps(make_answers(config, teacher, data_dir, out, views, device_of(device))))

    return run_command("python -m training.engine.teacher", command, argv)


if __name__ == "__main__":
    sys.exit(main())
