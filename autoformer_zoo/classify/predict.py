"""Image classification with any timm model.

Images go through the transform that timm derives from the model's `pretrained_cfg`, so the
probabilities are those of timm's own recipe. `images.py` defines what an image may be,
`predictions.py` selects the best classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_model_data_config,
)
from timm.utils import unwrap_model
from torch import Tensor, nn

from autoformer_zoo.classify.images import ImageLike, iter_images, trim
from autoformer_zoo.classify.predictions import Array, Prediction, iter_top_k, require_positive
from autoformer_zoo.network.vit import AutoFormer

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
        model: a timm classifier for RGB images, with its `pretrained_cfg`; compiled, DataParallel
            and DistributedDataParallel models as well. Predicts in evaluation mode, whatever mode
            the model is in, and leaves it in that mode.
        images: an image (path, PIL image or array), a folder, or an iterable of these; see
            `images.read_image` and `images.iter_inputs`.
        top_k: classes to return of each image, the most probable first; all of them if the model
            has fewer.
        batch_size: images in memory at a time.
        device: where to run; the model is moved there and stays. None leaves it where it is.

    Returns:
        For each image its `top_k` classes; a list of one for a single image.

    Raises:
        ValueError: an image, the model or an argument is refused.
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
    """Classify images one batch at a time, in constant memory; arguments as in `predict`.

    Args:
        model: a timm classifier.
        images: read no further ahead than a batch.
        top_k: classes to return of each image.
        batch_size: images in memory at a time.
        device: where to run.
        skip_unreadable: log a warning for an image that cannot be read, and go on.

    Returns:
        An iterator over the images' classes.

    Raises:
        ValueError: at once if the model or an argument is refused; if an image is, after the
            images before it.
        FileNotFoundError: a path does not exist, when its turn comes.
    """
    require_positive("top_k", top_k)
    require_positive("batch_size", batch_size)
    transform = make_transform(model)
    if device is not None:
        _move(model, device)
    network = _in_eval_mode(model)
    decoded = iter_images(images, skip_unreadable)
    inputs = ((name, np.asarray(transform(image))) for name, image in decoded)
    return iter_top_k(
        inputs, lambda batch: _probabilities(network, batch), class_names(model), top_k, batch_size
    )


def make_transform(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """Return timm's evaluation transform for a model: RGB image to input (3, height, width).

    Two things differ from timm's own derivation. The size is the network's, if it was built for
    a size other than its `pretrained_cfg`'s (`img_size=384`). Extremely long images are trimmed
    before they are resized, see `images.trim`.

    Args:
        model: a timm classifier for RGB images.

    Raises:
        ValueError: the model has no `pretrained_cfg`, no classifier, or is not for RGB.
    """
    model = unwrap_model(model)
    if not getattr(model, "pretrained_cfg", None):
        raise ValueError(
            f"the model, a {type(model).__name__}, has no pretrained_cfg, which records how images "
            "are normalised; make it with create_model, or set model.pretrained_cfg"
        )
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier (num_classes=0); make it with one")
    config = resolve_model_data_config(model)
    channels = getattr(model, "in_chans", None) or config["input_size"][0]
    if channels != 3:
        raise ValueError(f"the model takes {channels} channels; expected 3, images become RGB")
    config["input_size"] = (3, *input_size(model))
    transform: Any = create_transform(**config, is_training=False)
    if config["crop_mode"] == "center":  # other modes squeeze the whole image in, or pad it
        transform.transforms.insert(0, trim)
    return transform


def input_size(model: nn.Module) -> tuple[int, int]:
    """Return the input size (height, width) of a timm model, in pixels.

    The size that the network was built for if it takes only that one, else its config's.
    """
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    if size is None or not getattr(patch_embed, "strict_img_size", True):
        size = resolve_model_data_config(model)["input_size"][1:]
    return int(size[0]), int(size[1])


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's outputs, in their order.

    Args:
        model: a classifier with timm's `num_classes` and `pretrained_cfg`.

    Returns:
        One name an output. Numbered names if the model's head is not the one that the
        `pretrained_cfg` describes, as after `reset_classifier`.
    """
    model = unwrap_model(model)
    num_classes = int(getattr(model, "num_classes", 0) or 0)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("label_names") or ()
    if len(names) == num_classes > 0:
        descriptions = cfg.get("label_descriptions") or {}
        return tuple(str(descriptions.get(name, name)) for name in names)
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is not None and not names and cfg.get("num_classes") == num_classes:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {i}" for i in range(num_classes))


def _in_eval_mode(model: nn.Module) -> nn.Module:
    """Return the model if it is in evaluation mode, else a copy that shares its tensors.

    Not by switching the model itself: another thread may be training it, or predicting.
    """
    if not any(module.training for module in model.modules()):
        return model
    network = unwrap_model(model)
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    view: nn.Module = copy.deepcopy(network, shared)
    return view.eval()


def _probabilities(network: nn.Module, batch: Array) -> Array:
    """Run a batch (B, 3, height, width) on the network's device, in its precision."""
    # A frozen model has no parameters to ask, but its position embedding.
    weight = network.pos_embed if isinstance(network, AutoFormer) else next(network.parameters())
    # Not inference_mode: a tensor that a model caches then could not be trained with later.
    with torch.no_grad():
        logits: Any = network(torch.from_numpy(batch).to(weight.device, weight.dtype))
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returned a {type(logits).__name__}; expected logits")
    return logits.float().softmax(-1).cpu().numpy()


def _move(model: nn.Module, device: torch.device | str) -> None:
    try:
        if torch.device(device).type == "meta":
            raise NotImplementedError("its tensors hold no numbers")
        model.to(device)
    # ImportError: of the devices whose support is a package of its own.
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
