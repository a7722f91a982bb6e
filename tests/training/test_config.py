"""What a config refuses, and that it comes back from JSON as it was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from training import finetune
from training.run.directory import read_config
from training.settings import presets
from training.settings.config import AugmentConfig, TrainConfig, differences, require_same
from training.settings.presets import SMOKE

WRONG = [
    ({"batch_size": 0}, "batch_size is 0; expected a value greater than 0"),
    ({"stages": ()}, r"stages is \[\]; .* at least 1 item"),
    (
        {"stages": [{"epochs": 0, "img_size": 8}]},
        r"stages.0.epochs is 0; expected a value",
    ),
    ({"stages": [{"epochs": 1}]}, r"stages.0.img_size is .*; Field required"),
    ({"precision": "fp8"}, "precision is 'fp8'; expected 'auto', 'fp32', 'bf16' or 'fp16'"),
    ({"lr": float("nan")}, "lr is nan; expected a finite number"),
    ({"seed": True}, "seed is True; expected a valid integer"),
    ({"learning_rate": 1}, "learning_rate is 1; Unexpected keyword argument"),
    ({"data": {"crop_pct": 1.5}}, "data.crop_pct is 1.5; expected less than or equal to 1"),
    ({"sampling": "fixed"}, "sampling is fixed, but no subnet is given"),
    ({"subnet": "autoformer_nano"}, "subnet is one network; expected sampling fixed"),
    ({"weights": {"model": "autoformer_nano"}}, "weights.model is one network; expected sampling"),
    ({"weights": {"layout": "packed_prefix"}}, "describes a file: give weights.checkpoint"),
    ({"weights": {"model": "m", "checkpoint": "c"}}, "both name weights: give one"),
    ({"distill": {"checkpoint": "x.pth"}}, "without distill.teacher: name the model"),
    ({"distill": {"answers": "f", "teacher": "resnet18"}}, "both name a teacher"),
    ({"data": {"held_out_split": "validation"}}, "held_out_split is the test split 'validation'"),
    ({"data": {"normalisation": "imagenet"}}, "the source 'cifar10' has its own"),
    ({"augment": {"policy": "rand-m9"}}, "policy needs single images; .* torch/cifar10"),
]


@pytest.mark.parametrize(("values", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_value_is_reported_in_one_line_with_its_file(
    tmp_path: Path, values: dict[str, object], text: str
) -> None:
    parts = {k: asdict(getattr(SMOKE, k)) | v for k, v in values.items() if isinstance(v, dict)}
    (tmp_path / "config.json").write_text(json.dumps(asdict(SMOKE) | values | parts))
    with pytest.raises(ValueError, match=rf"^[^\n]*config\.json: [^\n]*{text}[^\n]*$"):
        read_config(tmp_path)


def test_wrong_value_is_refused_from_python_too() -> None:
    with pytest.raises(ValueError, match=r"^augment\.mixup is -1; expected a value"):
        AugmentConfig(mixup=-1)


@pytest.mark.parametrize("text", ["lr=1", "[]", "[" * 100_000, ""], ids=lambda text: text[:5])
def test_text_that_is_not_a_json_object_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    "config", [*presets.PRESETS.values(), *finetune.PRESETS.values()], ids=lambda config: ""
)
def test_config_comes_back_from_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(config.to_json()) == config


def test_keys_of_earlier_versions_are_read() -> None:
    old = asdict(replace(SMOKE, max_bad_steps=7))
    old["most_bad_steps"] = old.pop("max_bad_steps")
    assert TrainConfig.from_json(json.dumps(old)).max_bad_steps == 7
    assert differences(old, asdict(SMOKE)) == ["max_bad_steps=7, requested 20"]


def test_resuming_under_another_config_is_refused_with_the_differences() -> None:
    other = replace(SMOKE, seed=1, data=replace(SMOKE.data, crop_pct=0.5))
    text = "run was begun with seed=0, requested 1; data.crop_pct=1.0, requested 0.5: give another"
    with pytest.raises(ValueError, match=text):
        require_same(asdict(SMOKE), asdict(other), "run")
    require_same(asdict(SMOKE), asdict(SMOKE), "run")


def test_imagenet_presets_have_the_papers_values() -> None:
    config = presets.PRESETS["imagenet-small"]
    assert (config.space, config.batch_size, config.epochs) == ("small", 1024, 500)
    assert config.lr == pytest.approx(5e-4 * 1024 / 512)
    assert config.lr * config.min_lr_ratio == pytest.approx(1e-5)
    assert (config.augment.mixup, config.augment.cutmix, config.augment.repeats) == (0.8, 1.0, 3)
