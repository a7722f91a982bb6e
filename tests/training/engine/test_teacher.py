"""A convolutional teacher, and trainings that learn from its stored answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.helpers.made_training import (
    FOLDER,
    MINI_CONFIG,
    QUICK,
    assert_same_run,
    log_lines,
    make_images,
    split_in_memory,
    train_quickly,
    write_folder,
)
from training.data.batch import Batch
from training.data.cifar10 import MemorySource
from training.data.indexed import IndexedSource
from training.data.open import open_source
from training.data.transforms import NORMALISATIONS
from training.engine.losses import open_teacher
from training.engine.teacher import __main__ as command
from training.engine.teacher import train as train_module
from training.engine.teacher.answers import FORMAT, StoredAnswers, store_answers, use_answers
from training.engine.teacher.network import ConvTeacher
from training.engine.teacher.train import TeacherConfig, train_teacher
from training.run.distributed import Ranks
from training.run.schedule import Schedule
from training.settings.config import DistillConfig, Stage, TrainConfig

ALONE = Ranks(torch.device("cpu"))
TINY = TeacherConfig(epochs=2, widths=(8, 8, 8), batch_size=10)
pytestmark = pytest.mark.usefixtures("made_up_images")
CONFIG = replace(MINI_CONFIG, augment=replace(MINI_CONFIG.augment, policy="batch-m7-n2"))


def memory_source(config: TrainConfig) -> MemorySource:
    source = open_source(config, Path(), ALONE, QUICK)
    assert isinstance(source, MemorySource)
    return source


def means(x: torch.Tensor) -> torch.Tensor:
    """Stand in for a teacher: four logits that show which image it was given."""
    return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3)), x[:, 0, 3, 5], x[:, 1, 9, 2]], 1)


def taught(config: TrainConfig, file: Path) -> TrainConfig:
    return replace(config, distill=DistillConfig(answers=str(file), share=0.7))


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    file = tmp_path / "answers.safetensors"
    source = memory_source(CONFIG)
    store_answers(means, source, CONFIG, 3, file, img_size=32)
    return file


# ConvTeacher


def test_first_layer_whitens() -> None:
    x = torch.randn(200, 3, 8, 8).cumsum(3)  # neighbours are alike
    model = ConvTeacher(4, (8, 8, 8))
    model.whiten_like(x)
    out = model.whiten(x)[:, :12].transpose(0, 1).flatten(1)  # (12, pixels)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=0.05, rtol=0)


def test_teacher_learns(tmp_path: Path) -> None:
    images = make_images(200)
    images.images[:, 0] //= 4
    images.images[:, 0] += (images.labels * 48).to(torch.uint8)[:, None, None]  # easy to classify
    config = replace(TINY, epochs=8)
    _, accuracy = train_teacher(config, images, images, 4, tmp_path / "teacher.pt", None)
    assert accuracy > 60  # of four classes


def test_stopped_teacher_resumes_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, accuracy_of, epochs = make_images(40), train_module.accuracy_of, iter(range(2))

    def measure(*arguments: Any) -> float:
        if next(epochs) == 1:
            raise KeyboardInterrupt
        return accuracy_of(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "accuracy_of", measure)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(TINY, images, images, 4, tmp_path / "stopped.pt", None)
    resumed, whole = (
        train_teacher(TINY, images, images, 4, tmp_path / name, None)[0].state_dict()
        for name in ("stopped.pt", "whole.pt")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


# Answers


def assert_answered(config: TrainConfig, root: Path, accumulate: int) -> list[Batch]:
    """Check that each batch has the stand-in's answers to its own images; return the batches."""
    source = open_source(config, root, replace(ALONE, accumulate=accumulate), QUICK)
    use_answers(config, source)
    schedule = Schedule(config, source.num_train)
    batches = list(source.train(schedule, 0, schedule.total))
    for batch in batches:
        assert batch.answers is not None
        torch.testing.assert_close(batch.answers, means(batch.x), atol=2e-3, rtol=2e-3)
    return batches


@pytest.mark.parametrize("accumulate", [1, 2])
def test_student_gets_the_answers_to_the_images_that_it_sees(
    answers: Path, accumulate: int
) -> None:
    config = replace(taught(CONFIG, answers), stages=(Stage(epochs=4, img_size=32),))
    batches = assert_answered(config, answers.parent, accumulate)
    views = {tuple(answer.tolist()) for batch in batches for answer in batch.answers}
    assert len(views) == 3 * 40  # of three views and 40 images; the fourth epoch has the first view


@pytest.mark.parametrize("accumulate", [1, 2])
def test_views_of_a_folder_are_those_that_were_answered(tmp_path: Path, accumulate: int) -> None:
    root, file = write_folder(tmp_path / "images"), tmp_path / "answers.safetensors"
    config = replace(FOLDER, stages=(Stage(epochs=3, img_size=16),))
    source = open_source(config, root, ALONE, QUICK)
    assert isinstance(source, IndexedSource)
    store_answers(means, source, config, 2, file, img_size=16)
    assert_answered(taught(config, file), root, accumulate)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"stages": (Stage(epochs=3, img_size=24),)}, "img_size 16, this run has 24"),
        ({"data": replace(FOLDER.data, crop_pct=0.5)}, "crop_pct 1.0, this run has 0.5"),
    ],
)
def test_answers_to_images_of_another_size_or_crop_are_refused(
    tmp_path: Path, change: dict[str, object], name: str
) -> None:
    root, file = write_folder(tmp_path / "images"), tmp_path / "answers.safetensors"
    shifted = replace(FOLDER, augment=replace(FOLDER.augment, crop="shift"))
    config = replace(shifted, stages=(Stage(epochs=3, img_size=16),))
    source = open_source(config, root, ALONE, QUICK)
    assert isinstance(source, IndexedSource)
    store_answers(means, source, config, 1, file, img_size=16)
    use_answers(taught(config, file), source)
    with pytest.raises(ValueError, match=f"is of views with {name}"):
        use_answers(replace(taught(config, file), **change), source)


def test_without_answers_a_policy_makes_new_views_in_each_epoch() -> None:
    source = memory_source(CONFIG)
    schedule = Schedule(CONFIG, source.num_train)
    batches = list(source.train(schedule, 0, schedule.total))
    assert all(batch.answers is None for batch in batches)
    images = torch.cat([F.interpolate(batch.x, 8) for batch in batches])
    assert len(images.flatten(1).unique(dim=0)) == 2 * 40


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": 1}, "views with seed 0, this run has 1"),
        ({"augment": MINI_CONFIG.augment}, "views with policy 'batch-m7-n2', this run has ''"),
        ({"augment": replace(CONFIG.augment, repeats=3)}, "repeats is 3, .* expected .*repeats 1"),
        (
            {"augment": replace(CONFIG.augment, erasing=0.5)},
            "erasing is 0.5, .* expected .*erasing 0",
        ),
        ({"num_classes": 5}, "of 40 images and 4 classes, the training data of 40 and 5"),
    ],
)
def test_answers_to_other_images_are_refused(
    answers: Path, change: dict[str, object], error: str
) -> None:
    config = replace(taught(CONFIG, answers), **change)
    with pytest.raises(ValueError, match=error):
        use_answers(config, memory_source(config))


def test_what_is_no_file_of_answers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.safetensors"
    with pytest.raises(FileNotFoundError, match="is not there; python -m training"):
        StoredAnswers(file, CONFIG, 40, 4)
    file.write_bytes(b"nothing of that kind")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        StoredAnswers(file, CONFIG, 40, 4)
    for views in ({}, {"views": "["}, {"views": "[" * 100_000}):
        notes = {"format": FORMAT, **views}
        save_file({"answers": torch.zeros(1, 40, 4, dtype=torch.half)}, file, notes)
        with pytest.raises(ValueError, match="does not contain a teacher's answers"):
            StoredAnswers(file, CONFIG, 40, 4)


def test_stopped_storing_goes_on(tmp_path: Path, answers: Path) -> None:
    class StopError(Exception):
        pass

    def stop(view: int) -> None:
        if view == 1:
            raise StopError

    source = memory_source(CONFIG)
    file = tmp_path / "again.safetensors"
    with pytest.raises(StopError):
        store_answers(means, source, CONFIG, 3, file, 32, progress=stop)
    assert not file.exists()
    store_answers(means, source, CONFIG, 3, file, 32)
    assert torch.equal(load_file(file)["answers"], load_file(answers)["answers"])
    assert not list(tmp_path.glob("*.part"))


# Training


def test_distilled_training_resumes_bit_by_bit(tmp_path: Path, answers: Path) -> None:
    augment = replace(CONFIG.augment, mixup=0.8, cutmix=1.0, mix_probability=0.5)
    config = replace(taught(CONFIG, answers), augment=augment)
    for out, stop in (("whole", None), ("parts", 4), ("parts", None)):
        train_quickly(tmp_path / out, config, stop_at=stop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train_quickly(tmp_path / "plain", replace(config, distill=DistillConfig()))
    assert log_lines(tmp_path / "plain")[0] != log_lines(tmp_path / "whole")[0]


def test_command_makes_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.PRESETS, "nano-distilled", CONFIG)
    monkeypatch.setattr(command, "load_train", split_in_memory)
    words = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "teacher"), "--views", "2"]
    words += ["--epochs", "1", "--widths", "8", "8", "8", "--batch-size", "10"]
    words += ["--student-seed", "1"]
    assert command.main(words) == 0
    assert "held_out_acc1_percent" in capsys.readouterr().out
    student = replace(CONFIG, seed=1)
    stored = StoredAnswers(tmp_path / "teacher" / command.ANSWERS, student, 40, 4)
    assert stored.views == 2
    assert stored.of(torch.tensor([3, 1]), view=1).shape == (2, 4)
    assert command.main(words) == 0
    for other in (["--student-seed", "2"], ["--epochs", "2"]):  # that one saw held-out images
        assert command.main([*words, *other]) == 2
        assert "teacher was begun with" in capsys.readouterr().err
    assert command.main([*words, "--preset", "smokes"]) == 2


def test_command_stores_a_timm_models_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FOLDER, stages=FOLDER.stages[1:])
    monkeypatch.setitem(command.PRESETS, "smoke", config)
    root = write_folder(tmp_path / "images")
    model = timm.create_model("test_efficientnet", num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    words = ["--data-dir", str(root), "--out", str(tmp_path), "--views", "1", "--preset", "smoke"]
    words += ["--device", "cpu", "--model", "test_efficientnet"]
    assert command.main([*words, "--checkpoint", str(tmp_path / "weights.pth")]) == 0
    student = taught(config, tmp_path / command.ANSWERS)
    source = open_source(student, root, ALONE, QUICK)
    use_answers(student, source)
    batch = next(source.train(Schedule(student, source.num_train), 0, 1))
    distill = DistillConfig(teacher="test_efficientnet", checkpoint=str(tmp_path / "weights.pth"))
    given = NORMALISATIONS[config.data.normalisation]
    teacher = open_teacher(distill, given, 4, [16], torch.device("cpu"))
    assert teacher is not None
    assert batch.answers is not None
    torch.testing.assert_close(batch.answers, teacher.logits(batch.x), atol=2e-3, rtol=2e-3)
    assert command.main(words[:-2]) == 2  # the convolutional teacher is for images in memory
