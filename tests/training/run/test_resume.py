"""Stopping and resuming: killed, interrupted, damaged, out of room, out of range."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.made_training import (
    MINI_CONFIG,
    assert_same_run,
    log_lines,
    multiply_losses,
    split_in_memory,
    train_quickly,
)
from training.data import open as data_open
from training.engine import loop, step
from training.engine.loop import DivergedError
from training.engine.weights import WEIGHTS
from training.run import checkpoints
from training.run.checkpoints import NEWEST, PREVIOUS, load_checkpoint
from training.run.plots import plot_curve
from training.settings.config import Stage, TrainConfig

pytestmark = pytest.mark.usefixtures("made_up_images")
NAN = float("nan")


class KilledError(Exception):
    """Ends a run as suddenly as a signal would."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of MINI_CONFIG."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_open, "load_train", split_in_memory)
        train_quickly(out)
    return out


@pytest.mark.parametrize("opt", ["adamw", "nmuon"])
def test_run_killed_at_random_steps_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opt: str
) -> None:
    config = replace(MINI_CONFIG, opt=opt, log_every=2)  # so that lines reach over checkpoints
    train_quickly(tmp_path / "whole", config)
    take_step, rng = loop.take_step, random.Random(0)
    left = rng.randrange(1, 5)

    def kill(*arguments: object) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            left = rng.randrange(1, 7)
            raise KilledError
        return take_step(*arguments)

    monkeypatch.setattr(loop, "take_step", kill)
    kills = 0
    while True:
        torch.manual_seed(rng.randrange(100))
        try:
            train_quickly(tmp_path / "cut", config)
            break
        except KilledError:
            kills += 1
    assert kills >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


CHILD = """
import sys
import warnings
from dataclasses import replace
from pathlib import Path

warnings.simplefilter("ignore")
import torch
from tests.helpers.made_training import MINI_CONFIG, split_in_memory, train_quickly
from training.settings.config import Stage
from training.data import open as data_open

torch.set_num_threads(1)
data_open.load_train = split_in_memory
print("ready", flush=True)
config = replace(MINI_CONFIG, stages=(Stage(60, 16),), log_every=7, evaluate_every=20)
train_quickly(Path(sys.argv[1]), config)
"""


def start(out: Path) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", CHILD, str(out)]
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    return child


@pytest.mark.slow  # fresh processes import torch and timm
def test_run_killed_by_sigkill_equals_an_undisturbed_one(tmp_path: Path) -> None:
    with start(tmp_path / "whole") as child:
        assert child.wait(300) == 0
    rng = random.Random(1)
    for _ in range(4):
        with start(tmp_path / "cut") as child:
            time.sleep(rng.uniform(0.1, 2.0))
            child.kill()
            assert child.wait(60) == -signal.SIGKILL  # it had not ended by itself
    with start(tmp_path / "cut") as child:
        assert child.wait(300) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_writes_a_checkpoint_and_exits(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    take_step = loop.take_step

    def interrupted(state: step.RunState, *rest: object) -> int:
        if state.step == 4:
            os.kill(os.getpid(), number)
        return take_step(state, *rest)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train_quickly(tmp_path / "cut")
    assert stopped.value.code == code
    assert signal.getsignal(number) is handler
    assert load_checkpoint(tmp_path / "cut")["step"] == 5
    train_quickly(tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")


# Checkpoints


def change_pickle(seed: int) -> Callable[[Path], None]:
    """Change bytes of a checkpoint's pickle, whose sums are then right."""

    def change(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in records if name.endswith("data.pkl"))
        rng, content = random.Random(seed), bytearray(records[pickled])
        for _ in range(10):
            content[rng.randrange(len(content) // 2)] = rng.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, record in records.items():
                archive.writestr(name, bytes(content) if name == pickled else record)

    return change


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "a changed byte": change_byte,
    "emptied": lambda path: path.write_bytes(b""),
    **{f"pickle {seed}": change_pickle(seed) for seed in range(8)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, whole: Path, damage: Callable[[Path], object]
) -> None:
    for name in (NEWEST, PREVIOUS):
        shutil.copy(whole / name, tmp_path)
    damage(tmp_path / NEWEST)
    assert load_checkpoint(tmp_path)["step"] == 9


def test_run_with_a_damaged_checkpoint_equals_an_undisturbed_one(
    tmp_path: Path, whole: Path
) -> None:
    train_quickly(tmp_path, stop_at=8)
    change_byte(tmp_path / NEWEST)
    train_quickly(tmp_path)
    assert_same_run(whole, tmp_path)
    assert (tmp_path / "checkpoint-damaged.pt").exists()


def test_run_without_a_whole_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt does not exist; train first"):
        load_checkpoint(tmp_path)
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole \(checkpoint\.pt"):
        train_quickly(tmp_path)


def test_two_checkpoints_are_kept_and_found_between_their_renames(tmp_path: Path) -> None:
    train_quickly(tmp_path, stop_at=8)
    kept = sorted(path.name for path in tmp_path.glob("*.pt*"))
    assert kept == [PREVIOUS, NEWEST]
    steps = [torch.load(tmp_path / name, weights_only=True)["step"] for name in kept]
    assert steps == [6, 8]
    os.replace(tmp_path / NEWEST, tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["step"] == 8


@pytest.mark.parametrize(
    ("written", "text"), [(6, "the last one is whole"), (0, "there is none yet: make room")]
)
def test_full_disk_stops_with_the_last_checkpoint_whole(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, written: int, text: str
) -> None:
    save = torch.save

    def fill(values: dict[str, int], file: object) -> None:
        if values["step"] < written:
            return save(values, file)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", fill)
        with pytest.raises(OSError, match=rf"No space left on device.*{text}"):
            train_quickly(tmp_path)
    assert not list(tmp_path.glob("*.tmp*"))
    assert [path.name for path in tmp_path.glob("*.pt")] == [NEWEST, PREVIOUS] * (written > 0)
    train_quickly(tmp_path)
    assert_same_run(whole, tmp_path)


# Losses that are not finite


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, dict.fromkeys(range(4), NAN))
    config = replace(MINI_CONFIG, stages=(Stage(1, 16),), log_every=2)
    state = train_quickly(tmp_path, config, stop_at=4)
    assert state.skipped == state.step == 4
    start = loop.make_state(MINI_CONFIG, torch.device("cpu")).network.state_dict()
    for part in (state.network, state.ema.module):
        assert all(torch.equal(start[name], t) for name, t in part.state_dict().items())
    skipped = [(line["skipped"], "loss" in line) for line in log_lines(tmp_path)]
    assert skipped == [(2, False), (4, False)]
    assert train_quickly(tmp_path, config).skipped == 4  # the fifth step is a good one
    assert (tmp_path / WEIGHTS).exists()


def test_run_without_a_finite_step_publishes_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, dict.fromkeys(range(5), NAN))
    config = replace(MINI_CONFIG, stages=(Stage(1, 16),))
    for _ in range(2):  # the same command again reports the same
        with pytest.raises(DivergedError, match=r"of all 5 steps was finite, .* lower lr"):
            train_quickly(tmp_path, config)
    assert not (tmp_path / WEIGHTS).exists()
    assert plot_curve(tmp_path).exists()


def test_bad_steps_in_a_row_go_back_to_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: TrainConfig = replace(MINI_CONFIG, max_bad_steps=2, checkpoint_every=4)
    multiply_losses(monkeypatch, {4: NAN, 5: NAN})
    steps = list[tuple[int, int]]()
    load_weights = step.RunState.load_weights

    def note(state: step.RunState, values: dict[str, int]) -> None:
        steps.append((state.step, values["step"]))
        load_weights(state, values)

    monkeypatch.setattr(step.RunState, "load_weights", note)
    state = train_quickly(tmp_path, config)
    assert steps == [(6, 4)]
    assert (state.step, state.skipped, state.rollbacks) == (10, 2, 1)
    assert log_lines(tmp_path)[-2]["rollbacks"] == 1


def test_run_that_stays_infinite_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, dict.fromkeys(range(2, 100), NAN))
    config = replace(MINI_CONFIG, max_bad_steps=2, max_rollbacks=2)
    with pytest.raises(DivergedError, match="after 2 returns to a checkpoint; give up at step 8"):
        train_quickly(tmp_path, config)


def test_run_directory_records_what_it_was_made_with_and_times_apart(whole: Path) -> None:
    assert TrainConfig.from_json((whole / "config.json").read_text()) == MINI_CONFIG
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert {"timm", "commit", "cores", "device"} <= environment.keys()
    assert not list(whole.glob("*.tmp*"))
    assert "seconds" not in (whole / "log.jsonl").read_text()
    timing = (whole / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in timing] == list(range(1, 11))
