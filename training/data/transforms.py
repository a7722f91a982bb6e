"""What happens to one image, by timm: augmentation in training, resizing and cropping otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import RandomCrop

from autoformer_zoo.classify.images import trim
from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from training.settings.config import AugmentConfig, DataConfig

Transform = Callable[[Image.Image], Tensor]

NORMALISATIONS = {
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


def train_transform(data: DataConfig, augment: AugmentConfig, img_size: int) -> Transform:
    """Make the transform of training images; its result is float32 (3, img_size, img_size).

    Raises:
        ValueError: timm does not know the policy.
    """
    mean, std = NORMALISATIONS[data.normalisation]
    try:
        transform = create_transform(
            img_size,
            is_training=True,
            hflip=0.0 if augment.crop == "none" else 0.5,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.policy or None,
            interpolation=data.interpolation,
            mean=mean,
            std=std,
            re_prob=augment.erasing,
            re_mode="pixel",
            use_prefetcher=False,
        )
    except (AssertionError, KeyError, ValueError) as error:  # may have no text
        if not augment.policy:
            raise
        reason = f" ({error})" if str(error) else ""
        raise ValueError(
            f"augment.policy is {augment.policy!r}{reason}; expected one that timm knows, such as "
            "rand-m9-mstd0.5-inc1, augmix-m3 or original, or none"
        ) from None
    allow_no_bits(transform)
    if augment.crop != "resized":
        resize = eval_transform(data, img_size).transforms[:3]  # type: ignore[attr-defined]
        # As DeiT does for small images: no zoom.
        shift = [RandomCrop(img_size, padding=img_size // 8)] if augment.crop == "shift" else []
        transform.transforms[:1] = [*resize, *shift]
    return transform


def eval_transform(data: DataConfig, img_size: int) -> Transform:
    """Make the transform of held-out and test images, as prediction's: resize, crop, normalise."""
    mean, std = NORMALISATIONS[data.normalisation]
    transform = create_transform(
        img_size,
        interpolation=data.interpolation,
        mean=mean,
        std=std,
        crop_pct=data.crop_pct,
        use_prefetcher=False,
    )
    transform.transforms.insert(0, trim)  # the rest of a very long image takes gigabytes to resize
    return transform


def allow_no_bits(transform: Any) -> None:
    """Replace timm's posterize in a training transform, in place.

    timm's policies keep 0 bits at their highest magnitude, which Pillow refuses from 13 on.
    """
    for op in _operations(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Keep the highest bits of each channel; 0 bits give black, as before Pillow 13."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    original: Callable[..., Image.Image] = auto_augment.posterize
    return original(image, bits, **options)


def _operations(transform: Any) -> Iterator[auto_augment.AugmentOp]:
    for step in transform.transforms:
        yield from getattr(step, "ops", ())  # RandAugment, AugMix
        for part in getattr(step, "policy", ()):  # AutoAugment
            yield from part
