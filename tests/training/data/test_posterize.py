"""Policies that ask for no bit at all: a black image, whatever Pillow says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from training.data.transforms import allow_no_bits, posterize

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


def test_a_policys_own_operation_is_replaced() -> None:
    transform = create_transform(32, is_training=True, auto_augment="rand-m10-inc1")
    operation = next(op for op in transform.transforms[2].ops if op.name == "PosterizeIncreasing")
    operation.prob = 1.0
    allow_no_bits(transform)
    assert operation(IMAGE).getextrema() == ((0, 0),) * 3
