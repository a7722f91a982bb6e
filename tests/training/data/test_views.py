"""Fixed augmented views of images, made a batch at a time."""

from __future__ import annotations

import pytest
import torch

from training.data.views import make_views, parse_policy, view_numbers


@pytest.mark.parametrize("policy", ["", "batch-m7-n2"])
def test_view_follows_from_its_number_alone(policy: str) -> None:
    x, numbers = torch.randn(40, 3, 32, 32), view_numbers(torch.arange(40), 5)
    views = make_views(x, numbers, policy)
    order = torch.randperm(40)[:7]
    torch.testing.assert_close(make_views(x[order], numbers[order], policy), views[order])
    others = make_views(x, view_numbers(torch.arange(40), 6), policy)
    is_same = (others == views).flatten(1).all(1)
    assert is_same.float().mean() < 0.1
    assert views.isfinite().all()


def test_without_policy_images_are_flipped_and_shifted_by_whole_pixels() -> None:
    ramp = torch.arange(100.0, 132.0).expand(500, 3, 32, 32)
    rows = make_views(ramp, torch.arange(500), "")[:, 0, 16]
    middle = rows[:, 8:24]
    torch.testing.assert_close(middle.diff(dim=1).abs(), torch.ones(500, 15), atol=1e-3, rtol=0)
    starts = middle[:, 0].round()
    forward = middle[:, 1] > middle[:, 0]
    assert 0.4 < forward.float().mean() < 0.6
    assert sorted(set((starts[forward] - 108).tolist())) == list(range(-4, 5))
    fixed = make_views(ramp, torch.arange(500), "", shift=False)
    torch.testing.assert_close(fixed, ramp, atol=1e-3, rtol=0)


@pytest.mark.parametrize("number", range(12))
def test_policy_makes_every_change(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0.0, 0.0, 0.0, (number + 0.5) / 12, 0.5, 0.9]).expand(1, 6)
    monkeypatch.setattr("training.data.views._uniform", lambda *_: draws)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 32, 32).cumsum(2).clamp(-1.5, 1.5)
    view = make_views(image, torch.arange(1), "batch-m9-n1", shift=False)
    assert (view - image).abs().mean() > 0.01
    unchanged = make_views(image, torch.arange(1), "", shift=False)
    torch.testing.assert_close(unchanged, image, atol=1e-5, rtol=0)


def test_policy_is_checked() -> None:
    assert parse_policy("") == (0.0, 0)
    assert parse_policy("batch-m7-n2") == (0.7, 2)
    for wrong in ("batch-m11-n2", "rand-m9", "batch"):
        with pytest.raises(ValueError, match="expected batch-mM-nN"):
            parse_policy(wrong)
