"""Images to the names of what is on them, with any timm classifier.

Reads images one batch at a time through the transform that timm derives from the model's
`pretrained_cfg`, so the numbers are those of timm's own recipe. `images.py` says what a image
may be, `predict.py` what the outputs are called. Trains nothing, measures no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from PIL import Image
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_model_data_config,
)
from torch import Tensor, nn

from autoformer_zoo.classify.images import ImageLike, iter_images
from autoformer_zoo.classify.predictions import Prediction, require_positive

__all__ = ["Prediction", "input_size", "iter_predictions", "make_transform", "predict"]


def predict(
    model: nn.Module,
    images: ImageLike | Iterable[ImageLike],
    top_k: int = 5,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> list[list[Prediction]]:
    """Classify images.

    Args:
        model: a timm classifier for RGB images, with its `pretrained_cfg`. It is left in the mode
            (training or evaluation) it was in.
        images: a image (path, PIL image or array), a folder, or an iterable of these; see
            `images.read_image` and `images.iter_inputs`.
        top_k: answers a image, best first; all of them where the model has fewer classes.
        batch_size: images in memory at a time.
        device: where to run; the model is moved there and stays. None leaves it where it is.

    Returns:
        For each image its `top_k` answers; a list of one for a single image.

    Raises:
        ValueError: a image, the model or an argument is refused.
        FileNotFoundError: a path does not exist.
    """
    return list(iter_predictions(model, images, top_k, batch_size, device))


def iter_predictions(
    model: nn.Module,
    images: ImageLike | Iterable[ImageLike],
    top_k: int = 5,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    skip_unreadable: bool = False,
) -> Iterator[list[Prediction]]:
    """Classify images one batch at a time, in constant memory.

    Args:
        model: as in `predict`.
        images: as in `predict`; read no further ahead than a batch.
        top_k: as in `predict`.
        batch_size: as in `predict`.
        device: as in `predict`.
        skip_unreadable: log a warning for a image that cannot be read, and go on.

    Returns:
        An iterator over the images' answers.

    Raises:
        ValueError: the model or an argument is refused, at once; a image, when its turn comes.
        FileNotFoundError: a path does not exist, when its turn comes.
    """
    require_positive("top_k", top_k)
    require_positive("batch_size", batch_size)
    transform = make_transform(model)
    names = class_names(model)
    if device is not None:
        _move(model, device)
    decoded = iter_images(images, skip_unreadable)
    inputs = ((name, transform(image)) for name, image in decoded)
    return _predict_batches(model, inputs, names, min(top_k, len(names)), batch_size)


def make_transform(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """Return timm's evaluation transform for a model: RGB image to input (3, height, width).

    timm's own derivation, but for the size: where the network was built for another one than its
    `pretrained_cfg` says (`img_size=384`), the network's holds.

    Args:
        model: a timm classifier for RGB images.

    Raises:
        ValueError: the model has no `pretrained_cfg`, no classifier, or is not for RGB.
    """
    if not getattr(model, "pretrained_cfg", None):
        raise ValueError(
            f"the model, a {type(model).__name__}, has no pretrained_cfg, which says how images "
            "are normalised; make it with create_model, or set model.pretrained_cfg"
        )
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier (num_classes=0); make it with one")
    config = resolve_model_data_config(model)
    channels = getattr(model, "in_chans", None) or config["input_size"][0]
    if channels != 3:
        raise ValueError(f"the model takes {channels} channels; expected 3, images become RGB")
    config["input_size"] = (3, *input_size(model))
    transform: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=False)
    return transform


def input_size(model: nn.Module) -> tuple[int, int]:
    """Return the height and width of the images that a timm model is to be given, in pixels.

    The size that the network was built for, where it takes one only, else its config's.
    """
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    if size is None or not getattr(patch_embed, "strict_img_size", True):
        size = resolve_model_data_config(model)["input_size"][1:]
    return int(size[0]), int(size[1])


def _predict_batches(
    model: nn.Module,
    inputs: Iterator[tuple[str, Tensor]],
    labels: tuple[str, ...],
    top_k: int,
    batch_size: int,
) -> Iterator[list[Prediction]]:
    while batch := list(islice(inputs, batch_size)):
        logits = _run(model, torch.stack([tensor for _, tensor in batch]))  # (B, classes)
        if logits.shape != (len(batch), len(labels)):
            raise ValueError(
                f"the model returned {tuple(logits.shape)} for {len(batch)} images; expected "
                f"{(len(batch), len(labels))}, one logit a class"
            )
        probabilities = logits.float().softmax(dim=1)
        if not probabilities.isfinite().all():
            raise ValueError(f"the model returned NaN or infinity, {batch[0][0]} to {batch[-1][0]}")
        best = probabilities.topk(top_k, dim=1)  # (B, top_k) twice
        for (name, _), values, indices in zip(
            batch, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            pairs = zip(indices, values, strict=True)
            yield [Prediction(name, labels[i], i, probability) for i, probability in pairs]


def _run(model: nn.Module, x: Tensor) -> Tensor:
    """Run a batch in evaluation mode on the model's device, in its precision; restore the mode."""
    weight = next(model.parameters())
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: a tensor that a model caches then could not be trained with later.
        with torch.no_grad():
            logits: Any = model(x.to(weight.device, weight.dtype))
    finally:
        for module in in_training:
            module.training = True
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returned a {type(logits).__name__}; expected logits")
    return logits


def _move(model: nn.Module, device: torch.device | str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's outputs, in their order.

    Args:
        model: a classifier with timm's `num_classes` and `pretrained_cfg`.

    Returns:
        One name an output. Numbered names where the model's head is not the one that the
        `pretrained_cfg` describes, as after `reset_classifier`.
    """
    num_classes = int(getattr(model, "num_classes", 0) or 0)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}  # timm's own mapping
    names = cfg.get("label_names") or ()
    if len(names) == num_classes > 0:
        descriptions = cfg.get("label_descriptions") or {}
        return tuple(str(descriptions.get(name, name)) for name in names)
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is not None and not names and cfg.get("num_classes") == num_classes:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {i}" for i in range(num_classes))
