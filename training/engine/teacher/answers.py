"""A teacher's stored answers: made once for fixed views of the images, used in every training.

A teacher that answers in every step costs a third to a half of a small student's step. Stored are
the logits of K augmented views of each training image; in epoch e the student sees view e mod K,
the same image that the teacher has answered. `python -m training.engine.teacher` stores the
answers of a convolutional teacher that it trains, or of a timm model, as for ImageNet.

Source: arXiv 2106.05237 (teacher and student see the same view), 2207.10666 (stored answers).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.batch import DataSource, ViewSource
from training.data.views import MAX_VIEWS
from training.run.directory import write_atomic
from training.settings.config import MEMORY, TrainConfig

FORMAT = "autoformer_zoo.answers"


class StoredAnswers:
    """A teacher's answers, read one view at a time.

    Args:
        path: of `store_answers`.
        config: of the student, whose images and views must be those that were answered.
        num_train: training images.
        num_classes: of the student.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no answers, or those to other images or other views.
    """

    def __init__(self, path: Path, config: TrainConfig, num_train: int, num_classes: int) -> None:
        try:
            with safe_open(path, "pt") as file:
                notes, names = file.metadata() or {}, set(file.keys())
                shape = tuple(file.get_slice("answers").get_shape()) if "answers" in names else ()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"distill.answers {path} is not there; python -m training.engine.teacher makes it"
            ) from None
        except SafetensorError as error:
            raise ValueError(f"distill.answers {path} is not a safetensors file: {error}") from None
        try:
            made = dict(json.loads(notes.get("views", "")))
        except Exception:  # whatever a damaged header breaks
            made = {}
        if notes.get("format") != FORMAT or len(shape) != 3 or not made:
            raise ValueError(f"distill.answers {path} does not contain a teacher's answers")
        if shape[1:] != (num_train, num_classes):
            raise ValueError(
                f"distill.answers {path} is of {shape[1]} images and {shape[2]} classes, the "
                f"training data of {num_train} and {num_classes}; expected answers to the same"
            )
        wanted = what_decides_views(config)
        if wrong := [name for name in wanted if made.get(name) != wanted[name]]:
            raise ValueError(
                f"distill.answers {path} is of views with {wrong[0]} {made.get(wrong[0])!r}, this "
                f"run has {wanted[wrong[0]]!r}; expected the config that the teacher was given"
            )
        self.views = shape[0]
        self._path, self._loaded, self._answers = path, -1, torch.empty(0)

    def of(self, positions: Tensor, view: int) -> Tensor:
        """Return the float32 logits (n, num_classes) for a view of the images at positions."""
        if view != self._loaded:  # of ImageNet a view has 2.6 GB, so only one is kept
            with safe_open(self._path, "pt") as file:
                self._answers = file.get_slice("answers")[view]
            self._loaded = view
        return self._answers[positions].float()


def use_answers(config: TrainConfig, source: DataSource) -> None:
    """Let a source show the views that the config's stored answers are of; without any, do nothing.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not of this source's images, these have no positions, or the student would
            not see the views that were answered.
    """
    if path := config.distill.answers:
        _require_same_views(config)
        answers = StoredAnswers(Path(path), config, source.num_train, source.num_classes)
        require_views(config, source).use_answers(answers)


def _require_same_views(config: TrainConfig) -> None:
    if config.augment.repeats > 1:
        raise ValueError(
            f"augment.repeats is {config.augment.repeats}, but of an image one view an epoch has a "
            "stored answer; expected --augment.repeats 1 with distill.answers"
        )
    if config.augment.erasing and config.data.source == MEMORY:
        raise ValueError(
            f"augment.erasing is {config.augment.erasing}, but images in memory are erased anew in "
            "each step, after the teacher answered; expected --augment.erasing 0 with "
            "distill.answers"
        )
    sizes = {stage.img_size for stage in config.stages}
    if config.augment.crop == "shift" and config.data.source != MEMORY and len(sizes) > 1:
        raise ValueError(
            f"stages have the sizes {sorted(sizes)} px, and crop shift draws other shifts at each; "
            "expected one size with distill.answers, or --augment.crop resized"
        )


def require_views(config: TrainConfig, source: DataSource) -> ViewSource:
    """Return a source whose images have positions.

    Raises:
        ValueError: it is a stream.
    """
    if not isinstance(source, ViewSource):
        raise ValueError(
            f"{config.data.source} is a stream, and answers are stored by an image's position; "
            "expected a source that is read by position"
        )
    return source


def store_answers(
    answer: Callable[[Tensor], Tensor],
    source: ViewSource,
    config: TrainConfig,
    views: int,
    path: Path,
    img_size: int,
    progress: Callable[[int], None] = lambda view: None,
) -> None:
    """Write a teacher's answers to fixed views of all training images.

    Args:
        answer: from normalised images (n, 3, img_size, img_size) to logits (n, num_classes).
        source: of the config, without answers.
        config: of the student.
        views: how many for each image.
        path: file to write. Finished views are kept beside it until all are done, so that a stopped
            command resumes.
        img_size: side that the teacher reads, in pixels.
        progress: called with the number of each finished view.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise ValueError(f"views is {views}; expected 1 to {MAX_VIEWS}")
    parts = []
    for view in range(views):
        part = path.with_name(f"{path.stem}-{view}.part")
        if not part.exists():
            logits = [answer(batch.x) for batch in source.view(view, img_size)]
            with write_atomic(part) as temporary:
                save_file({"answers": torch.cat(logits).half().cpu()}, temporary)
        parts.append(part)
        progress(view)
    answers = torch.stack([load_file(part)["answers"] for part in parts])
    notes = {"format": FORMAT, "views": json.dumps(what_decides_views(config, img_size))}
    with write_atomic(path) as temporary:
        save_file({"answers": answers}, temporary, notes)
    for part in parts:
        part.unlink()


def what_decides_views(config: TrainConfig, img_size: int = 0) -> dict[str, object]:
    """Return what decides which images there are and what a view of one is.

    Args:
        config: of the student.
        img_size: side of the views in pixels; the student's last one by default.
    """
    data, augment = config.data, config.augment
    decodes = data.source != MEMORY  # images in memory are augmented before they are resized
    return {
        "source": data.source,
        "train_split": data.train_split,
        "held_out_split": data.held_out_split,
        "held_out_per_class": config.held_out_per_class,
        "seed": config.seed,
        "normalisation": data.normalisation,
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct if decodes else None,
        # Shifts are drawn in pixels.
        "img_size": (img_size or config.largest_size)
        if decodes and augment.crop == "shift"
        else None,
        "crop": augment.crop,
        "policy": augment.policy,
        "color_jitter": augment.color_jitter,
        "erasing": augment.erasing,
    }
