"""timm's transforms as a config names them; policies that keep no bit of an image."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from tests.helpers.made_training import FOLDER, open_quickly, write_folder
from training.data.transforms import allow_no_bits, eval_transform, posterize, train_transform
from training.settings.config import AugmentConfig

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_bits_are_kept_as_timm_does_and_none_is_black() -> None:
    kept = np.asarray(posterize(IMAGE, 2, fillcolor=0))
    np.testing.assert_array_equal(kept, np.asarray(IMAGE) & 0b11000000)
    assert posterize(IMAGE, 0).getextrema() == ((0, 0),) * 3
    assert posterize(IMAGE, 8) is IMAGE


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1", "augmix-m10", "v0"])
def test_every_policy_runs_at_the_highest_magnitude(policy: str) -> None:
    transform = create_transform(32, is_training=True, auto_augment=policy, use_prefetcher=False)
    allow_no_bits(transform)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(400):
        assert transform(IMAGE).shape == (3, 32, 32)


@pytest.mark.parametrize("policy", ["nonsense", "rand-x9", "rand-m9.5", "augmix-q3"])
def test_policy_that_timm_does_not_know_is_refused_before_training(
    tmp_path: Path, policy: str
) -> None:
    config = replace(FOLDER, augment=AugmentConfig(policy=policy))
    text = rf"augment\.policy is '{policy}'.*; expected one that timm knows, such as rand-m9"
    with pytest.raises(ValueError, match=text):
        open_quickly(config, write_folder(tmp_path))


def test_without_a_crop_images_are_still_changed_as_the_config_says() -> None:
    plain = train_transform(FOLDER.data, AugmentConfig(crop="none"), 32)
    expected = eval_transform(FOLDER.data, 32)(IMAGE)
    for _ in range(10):  # and never flipped
        torch.testing.assert_close(plain(IMAGE), expected)
    for augment in ({"policy": "rand-m9"}, {"color_jitter": 0.9}, {"erasing": 1.0}):
        changed = train_transform(FOLDER.data, AugmentConfig(crop="none", **augment), 32)
        assert not all(torch.equal(changed(IMAGE), expected) for _ in range(20))


def test_shift_crop_keeps_the_scale() -> None:
    transform = train_transform(FOLDER.data, AugmentConfig(crop="shift"), 16)
    names = [type(step).__name__ for step in transform.transforms]  # type: ignore[attr-defined]
    assert names[1:4] == ["Resize", "CenterCrop", "RandomCrop"]
    assert "RandomResizedCropAndInterpolation" not in names
    assert transform(Image.new("RGB", (16, 16), (255, 0, 0))).shape == (3, 16, 16)


def test_very_long_image_is_trimmed_before_it_is_resized() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 2000, 3), np.uint8))
    transform = eval_transform(FOLDER.data, 32)
    sizes: list[tuple[int, int]] = []
    transform.transforms.insert(1, lambda trimmed: sizes.append(trimmed.size) or trimmed)  # type: ignore[attr-defined]
    torch.testing.assert_close(transform(image), transform(image.crop((968, 0, 1032, 1))))
    assert sizes[0] == (64, 1)
