"""timm's posterize with a Pillow that refuses to keep no bit of a picture.

RandAugment and AutoAugment ask for 0 bits at the highest magnitude, which a run of `mstd` reaches
now and then. Pillow up to 12 made a black picture of that; from 13 on it raises an error, which
would end a training of days by chance.

Source: timm.data.auto_augment (`posterize`, `_posterize_increasing_level_to_arg`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image
from timm.data import auto_augment


def allow_no_bits(transform: Any) -> None:
    """Let the policy in one of timm's training transforms make black pictures again.

    Args:
        transform: of `create_transform`; changed in place.
    """
    for op in _operations(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize


def posterize(picture: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Keep the highest bits of each channel, 0 of them being black."""
    if bits < 1:
        return Image.new(picture.mode, picture.size)
    original: Callable[..., Image.Image] = auto_augment.posterize
    return original(picture, bits, **options)


def _operations(transform: Any) -> Iterator[auto_augment.AugmentOp]:
    for step in transform.transforms:
        yield from getattr(step, "ops", ())  # RandAugment, AugMix
        for part in getattr(step, "policy", ()):  # AutoAugment
            yield from part
