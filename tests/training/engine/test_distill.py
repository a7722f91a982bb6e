"""A stored teacher's soft answers in mixtures and in the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.config import AugmentConfig, DistillConfig
from training.data.batch import Batch
from training.engine.losses import Mixer, distillation_loss


def test_labels_and_answers_are_mixed_like_the_images() -> None:
    labels = torch.arange(8) % 4
    images = torch.eye(8)[:, :, None].expand(8, 8, 3)[..., None].clone()  # each has its own row
    answers = 5 * torch.randn(8, 4)
    mixer = Mixer(AugmentConfig(mixup=0.8), 0.1, 4, seed=0, temperature=3.0)
    x, targets, taught = mixer.mix(Batch(images, labels, 0, answers), 0, 0)
    shares = x[:, :, 0, 0]  # (8, 8): of image j in image i
    assert 0 < shares.max() < 1
    smoothed = F.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(targets, shares @ smoothed)
    assert taught is not None
    torch.testing.assert_close(taught, shares @ (answers / 3).softmax(1))


def test_without_mixing_answers_are_only_softened() -> None:
    answers = torch.randn(8, 4)
    x, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 4
    mixer = Mixer(AugmentConfig(), 0.1, 4, seed=0, temperature=3.0)
    _, targets, taught = mixer.mix(Batch(x, labels, 0, answers), 0, 0)
    assert targets is labels
    torch.testing.assert_close(taught, (answers / 3).softmax(1))


def test_divergence_is_scaled_by_the_squared_temperature() -> None:
    logits, taught = torch.randn(6, 4), torch.randn(6, 4).softmax(1)
    own = (logits / 3).log_softmax(1)
    expected = 9 * (taught * (taught.log() - own)).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, taught, 3.0), expected)
    agreed = distillation_loss(taught.log() * 3, taught, 3.0)
    torch.testing.assert_close(agreed, torch.zeros(()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"answers": "file", "teacher": "resnet18"}, "both name a teacher"),
        ({"answers": "file", "temperature": 0.0}, "temperature is 0.0; expected a value greater"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        DistillConfig(**options)  # type: ignore[arg-type]
