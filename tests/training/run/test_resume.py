"""Stopping and resuming: killed, interrupted, damaged, out of room, out of range."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.made_training import (
    MINI_CONFIG,
    QUICK,
    assert_same_run,
    log_lines,
    split_in_memory,
)
from training.config import Stage, TrainConfig
from training.data import open as data_open
from training.engine import loop, step
from training.engine.loop import DivergedError
from training.engine.weights import WEIGHTS
from training.run import checkpoints
from training.run.checkpoints import NEWEST, PREVIOUS, load_checkpoint, save_checkpoint
from training.run.plots import plot_curve
from training.train import train


class KilledError(Exception):
    """Ends a run as suddenly as a signal would."""


@pytest.fixture(autouse=True)
def made_up_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of MINI_CONFIG."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_open, "load_train", split_in_memory)
        run(out)
    return out


def run(out: Path, config: TrainConfig = MINI_CONFIG, stop_at: int | None = None) -> step.RunState:
    return train(config, out, out, progress=False, stop_at=stop_at, resources=QUICK)


def test_run_killed_at_random_steps_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(MINI_CONFIG, log_every=2)  # so that lines reach over checkpoints
    run(tmp_path / "whole", config)
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
            run(tmp_path / "cut", config)
            break
        except KilledError:
            kills += 1
    assert kills >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


CHILD = """
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
from tests.helpers.made_training import MINI_CONFIG, QUICK, split_in_memory
from training.data import open as data_open
from training.config import Stage
from training.train import train
from dataclasses import replace

torch.set_num_threads(1)
data_open.load_train = split_in_memory
config = replace(MINI_CONFIG, stages=(Stage(60, 16),), log_every=7, evaluate_every=20)
print("ready", flush=True)
train(config, Path("."), Path(sys.argv[1]), progress=False, resources=QUICK)
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
            run(tmp_path / "cut")
    assert stopped.value.code == code
    assert signal.getsignal(number) is handler
    assert load_checkpoint(tmp_path / "cut")["step"] == 5
    run(tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.parametrize("damage", ["cut short", "a changed byte", "emptied"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, whole: Path, damage: str
) -> None:
    run(tmp_path / "cut", stop_at=8)
    newest = tmp_path / "cut" / NEWEST
    content = bytearray(newest.read_bytes())
    if damage == "a changed byte":
        content[len(content) // 2] ^= 0xFF
    newest.write_bytes({"cut short": content[:-500], "emptied": b""}.get(damage, content))
    run(tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-damaged.pt").exists()


@pytest.mark.parametrize("seed", range(8))
def test_checkpoint_with_a_damaged_pickle_falls_back_to_the_one_before(
    tmp_path: Path, seed: int
) -> None:
    for number in (1, 2):
        values = {"ema": {"weight": torch.ones(3)}, "step": number, "subnet": "x" * 50}
        save_checkpoint(values, tmp_path)
    with zipfile.ZipFile(tmp_path / NEWEST) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    rng, content = random.Random(seed), bytearray(records[pickled])
    for _ in range(10):
        content[rng.randrange(len(content) // 2)] = rng.randrange(256)
    with zipfile.ZipFile(tmp_path / NEWEST, "w") as archive:  # its sums are right
        for name, record in records.items():
            archive.writestr(name, bytes(content) if name == pickled else record)
    assert load_checkpoint(tmp_path)["step"] == 1


def test_run_without_a_whole_checkpoint_is_reported(tmp_path: Path) -> None:
    run(tmp_path, stop_at=4)
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole \(checkpoint\.pt"):
        run(tmp_path)


def test_missing_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt does not exist; train first"):
        load_checkpoint(tmp_path)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, stop_at=8)
    kept = sorted(path.name for path in tmp_path.glob("*.pt*"))
    assert kept == [PREVIOUS, NEWEST]
    steps = [torch.load(tmp_path / name, weights_only=True)["step"] for name in kept]
    assert steps == [6, 8]


def test_full_disk_stops_with_the_last_checkpoint_whole(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fill(values: object, file: object) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        save = torch.save
        patch.setattr(
            checkpoints.torch, "save", lambda v, f: (save if v["step"] < 6 else fill)(v, f)
        )
        with pytest.raises(OSError, match=r"No space left on device.*the last one is whole"):
            run(tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut")["step"] == 3
    assert not list((tmp_path / "cut").glob("*.tmp*"))
    run(tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")


def test_full_disk_at_the_first_checkpoint_reports_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", fill)
    with pytest.raises(OSError, match=r"No space left on device.*there is none yet: make room"):
        save_checkpoint({"step": 0}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoint_between_its_renames_is_found(tmp_path: Path) -> None:
    save_checkpoint({"ema": {}, "step": 1}, tmp_path)
    os.replace(tmp_path / NEWEST, tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["step"] == 1


def break_losses(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> list[int]:
    """Make the loss of some calls NaN; returns the list of calls that were made."""
    label_loss, calls = step.label_loss, list[int]()

    def loss(*arguments: object) -> torch.Tensor:
        calls.append(len(calls))
        result = label_loss(*arguments)
        return result * float("nan") if calls[-1] in bad else result

    monkeypatch.setattr(step, "label_loss", loss)
    return calls


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, set(range(4)))
    config = replace(MINI_CONFIG, stages=(Stage(1, 16),), log_every=2)
    state = run(tmp_path, config, stop_at=4)
    assert state.skipped == state.step == 4
    start = loop.make_state(MINI_CONFIG, torch.device("cpu")).network.state_dict()
    for part in (state.network, state.ema.module):
        assert all(torch.equal(start[name], t) for name, t in part.state_dict().items())
    assert [(line["skipped"], "loss" in line) for line in log_lines(tmp_path)] == [
        (2, False),
        (4, False),
    ]
    assert run(tmp_path, config).skipped == 4  # the fifth step is a good one
    assert (tmp_path / WEIGHTS).exists()


def test_run_without_a_finite_step_publishes_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, set(range(5)))
    config = replace(MINI_CONFIG, stages=(Stage(1, 16),))
    for _ in range(2):  # the same command again reports the same
        with pytest.raises(DivergedError, match=r"of all 5 steps was finite, .* lower lr"):
            run(tmp_path, config)
    assert not (tmp_path / WEIGHTS).exists()
    assert plot_curve(tmp_path).exists()


def test_bad_steps_in_a_row_go_back_to_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(MINI_CONFIG, max_bad_steps=2, checkpoint_every=4)
    break_losses(monkeypatch, {4, 5})
    steps = list[tuple[int, bool]]()
    load_weights = step.RunState.load_weights

    def note(state: step.RunState, values: dict[str, torch.Tensor]) -> None:
        steps.append((state.step, values["step"]))
        load_weights(state, values)

    monkeypatch.setattr(step.RunState, "load_weights", note)
    state = run(tmp_path, config)
    assert steps == [(6, 4)]
    assert (state.step, state.skipped, state.rollbacks) == (10, 2, 1)
    assert log_lines(tmp_path)[-2]["rollbacks"] == 1


def test_run_that_stays_infinite_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, set(range(2, 100)))
    config = replace(MINI_CONFIG, max_bad_steps=2, max_rollbacks=2)
    with pytest.raises(DivergedError, match="after 2 returns to a checkpoint; give up at step 8"):
        run(tmp_path, config)


def test_run_directory_records_what_it_was_made_with(whole: Path) -> None:
    assert TrainConfig.from_json((whole / "config.json").read_text()) == MINI_CONFIG
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert {"timm", "commit", "cores", "device"} <= environment.keys()
    assert not list(whole.glob("*.tmp*"))


def test_times_are_kept_apart_from_the_log(whole: Path) -> None:
    assert "seconds" not in (whole / "log.jsonl").read_text()
    timing = (whole / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in timing] == list(range(1, 11))
