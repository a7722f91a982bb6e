"""What is minimised: labels, mixtures, a largest subnet's logits, a teacher's classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config

from autoformer_zoo.published import CIFAR10_MEAN, CIFAR10_STD
from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.made_training import make_images
from training.data.batch import Batch
from training.data.cifar10 import eval_batch
from training.engine import losses
from training.engine.losses import (
    Mixer,
    Teacher,
    distillation_loss,
    label_loss,
    open_teacher,
    soft_cross_entropy,
)
from training.settings.config import AugmentConfig, DistillConfig

CIFAR10 = (CIFAR10_MEAN, CIFAR10_STD)


def test_soft_cross_entropy_is_least_for_equal_logits() -> None:
    logits = torch.randn(5, 4)
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, logits), entropy)
    assert soft_cross_entropy(torch.randn(5, 4), logits) > entropy


def test_label_loss_halves_between_labels_and_teacher() -> None:
    logits, labels, taught = torch.randn(6, 4), torch.arange(6) % 4, torch.zeros(6).long()
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(label_loss(logits, labels, 0.1), smoothed)
    expected = (smoothed + F.cross_entropy(logits, taught)) / 2
    torch.testing.assert_close(label_loss(logits, labels, 0.1, taught, 0.5), expected)
    assert label_loss(logits.bfloat16(), labels, 0.1).dtype == torch.float32


def test_mixtures_follow_from_seed_step_and_part() -> None:
    mixer = Mixer(AugmentConfig(mixup=0.8, cutmix=1.0), 0.1, 4, seed=0)

    def mixed(number: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = make_images(8)
        return mixer.mix(Batch(eval_batch(images, 8), images.labels), number, part)[:2]

    x, targets = mixed(1, 0)
    again, same = mixed(1, 0)
    assert torch.equal(x, again)
    assert torch.equal(targets, same)
    assert not torch.equal(x, mixed(2, 0)[0])
    assert not torch.equal(x, mixed(1, 1)[0])
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert Mixer(AugmentConfig(), 0.1, 4, seed=0).mix(Batch(x, targets), 0, 0)[0] is x


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


def open_made(
    name: str, checkpoint: Path | str = "", sizes: tuple[int, ...] = (8,)
) -> Teacher | None:
    """Open a teacher of four classes for images normalised as CIFAR-10's."""
    return open_teacher(
        DistillConfig(name, str(checkpoint)), CIFAR10, 4, sizes, torch.device("cpu")
    )


def test_teacher_is_opened_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_efficientnet", num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    opened = open_made("test_efficientnet", tmp_path / "teacher.pth")
    assert opened is not None
    x, own = torch.randn(3, 3, 32, 32), resolve_model_data_config(model)
    mean, std, own_mean, own_std = (
        torch.tensor(values).view(3, 1, 1) for values in (*CIFAR10, own["mean"], own["std"])
    )
    with torch.no_grad():
        expected = model((x * std + mean - own_mean) / own_std)
    torch.testing.assert_close(opened.logits(x), expected, rtol=0, atol=1e-4)
    assert torch.equal(opened.labels(x), expected.argmax(1))
    assert open_made("") is None


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("resnet1", "", "Unknown model"),
        ("test_efficientnet", "missing.pth", "FileNotFoundError"),
        ("test_efficientnet", "junk.safetensors", "."),
        ("test_efficientnet", "junk.pth", "."),
        ("test_efficientnet", "list.pth", "."),
        ("test_efficientnet", "vit.pth", "Error.* in loading state_dict"),
        ("deit_tiny_patch16_224", "own.pth", "Input height .* doesn't match"),
    ],
    ids=lambda value: value,
)
def test_teacher_that_cannot_be_opened_or_used_is_reported_in_one_line(
    tmp_path: Path, name: str, file: str, reason: str
) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    if file == "own.pth":
        torch.save(timm.create_model(name, num_classes=4).state_dict(), tmp_path / file)
    with pytest.raises(CheckpointError, match=rf"the teacher {name} .*: [^\n]*{reason}[^\n]*$"):
        open_made(name, tmp_path / file if file else "", sizes=(224, 16))


def test_pretrained_teacher_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model("test_efficientnet", num_classes=10)
    monkeypatch.setattr(losses.timm, "create_model", lambda *_, **__: made)
    with pytest.raises(ValueError, match="test_efficientnet has 10 classes, the data 4; give"):
        open_made("test_efficientnet", sizes=(32,))
