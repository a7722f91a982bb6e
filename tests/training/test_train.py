"""The schedule of a run, and what the training commands accept and refuse."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

import training
from tests.helpers.made_training import MINI_CONFIG
from training import finetune
from training import train as train_command
from training.engine.loop import DivergedError
from training.run.schedule import Schedule
from training.settings import presets
from training.settings.config import Stage, TrainConfig
from training.settings.presets import SMOKE

PATHS = ["--data-dir", "data", "--out", "run"]


def test_plan_follows_stages_warm_up_and_cosine() -> None:
    config = replace(MINI_CONFIG, warmup_fraction=0.2, min_lr_ratio=0.1)
    schedule = Schedule(config, num_images=83)  # ten batches, and three images left over
    plans = [schedule.plan(step) for step in range(schedule.total)]
    assert [plan.img_size for plan in plans] == [8] * 10 + [16] * 10
    assert [plan.batch_in_epoch for plan in plans] == list(range(10)) * 2
    assert [plan.lr_scale for plan in plans[:4]] == [0.25, 0.5, 0.75, 1.0]
    falling = [plan.lr_scale for plan in plans[4:]]
    assert falling == sorted(falling, reverse=True)
    assert 0.1 < falling[-1] < 0.12
    with pytest.raises(ValueError, match="7 images to train on, batch_size is 8"):
        Schedule(config, num_images=7)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configs that commands train, without training them."""
    configs: list[TrainConfig] = []

    def note(config: TrainConfig, *_: object, **__: object) -> object:
        configs.append(config)
        return SimpleNamespace(step=1, skipped=0, broken=0, seconds=0.0)

    monkeypatch.setattr(train_command, "train", note)
    monkeypatch.setattr(finetune, "train", note)
    return configs


def test_every_field_is_a_flag_on_top_of_the_preset(
    seen: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "nano", "--stages", "2:16", "1:32", "--augment.mixup", "0.8"]
    assert train_command.main([*PATHS, *flags, "--sampling", "sandwich", "--clip-grad=0.5"]) == 0
    nano = presets.NANO
    expected = replace(
        nano,
        stages=(Stage(2, 16), Stage(1, 32)),
        augment=replace(nano.augment, mixup=0.8),
        sampling="sandwich",
        clip_grad=0.5,
    )
    assert seen == [expected]
    assert train_command.main(PATHS) == 0
    assert seen.pop() == SMOKE  # without a preset
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == "run"


@pytest.mark.parametrize(
    ("command", "module"), [(train_command, presets), (finetune, finetune)], ids=["train", "tune"]
)
def test_command_has_its_own_presets(
    command: object, module: object, seen: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {*get_args(module.Preset)} - {"photos"} == {*module.PRESETS}
    for name, config in module.PRESETS.items():
        assert command.main([*PATHS, f"--preset={name}"]) == 0
        assert seen.pop() == config
    assert command.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "run directory; an unfinished run in it is resumed" in text
    # tyro takes the comment on the line of a field: none is lost.
    assert not re.findall(r"--[a-z.-]+ \S+ (?:│ )*\(default", text)


def test_package_without_the_extra_reports_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else 1)
    with pytest.raises(ModuleNotFoundError, match=r"needs scipy: run pip install -e '\.\[train\]'"):
        importlib.reload(training)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--stages", "ten"], "stage 'ten': expected EPOCHS:PIXELS"),
        (["--preset", "nope"], "invalid choice 'nope' for argument '--preset'. Expected one of"),
        (["--augment.mixupp", "1"], "Unrecognized options: --augment.mixupp, 1 (perhaps --augmen"),
        (["--seed", "one"], "Error parsing --seed: invalid literal for int()"),
        (["--lr", "-1"], "lr is -1.0; expected a value greater than 0"),
        (["--stages", "1:8", "1:17"], "stage 1:17: the network's patches have 4 px; expected a"),
        (["--device", "meta"], "device is 'meta', which cannot be used here; expected cpu, cuda"),
        (["--distill.teacher", "resnet1"], "teacher resnet1 cannot be opened from timm: Unknown"),
        (["--initial", "nowhere"], "nowhere/config.json does not exist; expected the directory"),
        (["--weights.checkpoint", "no.pth"], "no.pth: No such file or directory"),
        (["--space", "huge"], "space 'huge' is unknown; expected one of"),
        (["--space", '{"depth": 3}'], "missing keys"),
        (["--batch-size", "64"], "40 images to train on, batch_size is 64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("made_up_images")
def test_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    paths = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert train_command.main([*paths, "--batch-size", "8", *flags]) == 2
    out, err = capsys.readouterr()
    assert text in err
    assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "run").exists()


def test_failure_of_a_run_is_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DivergedError("run: give up at step 8")

    monkeypatch.setattr(train_command, "train", fail)
    assert train_command.main(PATHS) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("run: give up at step 8")
