"""The order of training images, and which of them are held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data.batch import cut_held_out, epoch_order


def test_held_out_images_are_even_fixed_and_apart() -> None:
    labels = torch.arange(1000) % 10
    train, held_out = cut_held_out(labels, 7, seed=0)
    assert torch.equal(held_out, cut_held_out(labels, 7, seed=0)[1])
    assert not torch.equal(held_out, cut_held_out(labels, 7, seed=1)[1])
    assert np.bincount(labels[held_out]).tolist() == [7] * 10
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(1000))


def test_held_out_images_are_never_a_whole_class() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    assert len(cut_held_out(labels, 1, seed=0)[1]) == 2  # class 1 has no image at all
    with pytest.raises(ValueError, match="class 2 has 2 images; with held_out_per_class=2 none"):
        cut_held_out(labels, 2, seed=0)
    with pytest.raises(ValueError, match="class eel has 2 images"):
        cut_held_out(labels, 2, seed=0, names=("cat", "dog", "eel"))
    assert len(cut_held_out(labels, 0, seed=0)[1]) == 0


def test_share_of_each_class_may_be_held_out() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2])
    train, held_out = cut_held_out(labels, 0.2, seed=0)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [4, 1, 0]
    assert len(train) + len(held_out) == 24


def test_epoch_order_is_a_permutation_that_differs_by_epoch() -> None:
    one, two = epoch_order(100, 0, 0), epoch_order(100, 0, 1)
    assert sorted(one.tolist()) == list(range(100))
    assert not torch.equal(one, two)


def test_repeats_show_a_third_of_the_images_three_times() -> None:
    order = epoch_order(90, seed=0, epoch=2, repeats=3)
    assert len(order) == 90
    assert torch.equal(order[0::3], order[1::3])
    assert len(set(order.tolist())) == 30
    assert not torch.equal(order, epoch_order(90, seed=0, epoch=3, repeats=3))
