"""Several processes, and a batch done in parts: the weights are those of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.made_training import (
    ALONE,
    MINI_CONFIG,
    QUICK,
    log_lines,
    read_run,
    train_quickly,
)
from training.run.distributed import LostProcessError, Ranks, device_of, join
from training.settings.config import AugmentConfig, Stage

pytestmark = pytest.mark.usefixtures("made_up_images")
# Plain SGD: a key's bias has no gradient but rounding noise, which Adam would blow up to its full
# step in either run, each in its own direction.
PLAIN = replace(
    MINI_CONFIG,
    opt="sgd",
    lr=0.05,
    drop_path_rate=0.0,
    augment=AugmentConfig(crop="none"),
    stages=(Stage(1, 16),),
)
CASES = {
    "uniform": PLAIN,
    "sandwich": replace(PLAIN, sampling="sandwich"),
    "fixed": replace(
        PLAIN,
        sampling="fixed",
        subnet=ALONE.subnet,
        augment=AugmentConfig(mixup=0.8, cutmix=1.0, erasing=0.25),
    ),
}

CHILD = """
import os
import socket
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
from tests.helpers.made_training import split_in_memory, train_quickly
from tests.training.run.test_distributed import CASES
from training.data import open as data_open

torch.set_num_threads(1)
data_open.load_train = split_in_memory
for name, config in CASES.items():
    train_quickly(Path(sys.argv[1]) / name, config)
"""


def assert_close(one: Path, other: Path) -> None:
    (_, tensors), (_, others) = read_run(one), read_run(other)
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-6, msg=name)
    for line, expected in zip(log_lines(other), log_lines(one), strict=True):
        assert line.get("loss", 0) == pytest.approx(expected.get("loss", 0), abs=2e-5)
        assert line.get("held_out_acc1_percent") == expected.get("held_out_acc1_percent")


@pytest.mark.parametrize("name", ["uniform", "sandwich"])
def test_accumulated_parts_give_the_weights_of_the_whole_batch(tmp_path: Path, name: str) -> None:
    train_quickly(tmp_path / "whole", CASES[name])
    train_quickly(tmp_path / "parts", CASES[name], accumulate=2)
    assert_close(tmp_path / "whole", tmp_path / "parts")


def start_two(script: str, *arguments: Path) -> None:
    """Run a script in two processes that talk over gloo, until both have ended well."""
    root = Path(__file__).resolve().parents[3]
    children = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for rank in range(2):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        }
        command = [sys.executable, "-c", script, *map(str, arguments)]
        children.append(subprocess.Popen(command, cwd=root, env=environment))
    assert [child.wait(500) for child in children] == [0, 0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all cases in two processes."""
    out = tmp_path_factory.mktemp("two")
    start_two(CHILD, out)
    return out


@pytest.mark.slow  # fresh processes import torch and timm
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_weights_of_one(
    tmp_path: Path, two_processes: Path, name: str
) -> None:
    # Mixtures are drawn for each part: one process has to have the same parts.
    accumulate = 2 if CASES[name].augment.mixes else 1
    train_quickly(tmp_path, CASES[name], accumulate=accumulate)
    assert_close(tmp_path, two_processes / name)
    assert sorted(p.name for p in (two_processes / name).glob("checkpoint*")) == [
        "checkpoint-previous.pt",
        "checkpoint.pt",
    ]


REFUSING_CHILD = """
import os
import sys
from pathlib import Path

from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.made_training import QUICK
from training.run.command import run_command
from training.run.distributed import join

ranks = join(QUICK, 8, False)
out = Path(sys.argv[1])
sys.stderr = (out / f"stderr-{ranks.rank}.txt").open("w")

def fail(error):
    raise error

def refuse(error):
    ranks.by_first(lambda: fail(error) if ranks.is_first else 1 / 0)

def meet_file():
    ranks.together(lambda: None if ranks.is_first else (out / "gone").read_text())

def uneven():
    join(QUICK, 9, False)

def lose():
    if ranks.is_first:
        os._exit(0)
    ranks.wait()

assert ranks.by_first(lambda: ranks.rank + 5) == 5
errors = (ValueError("a value"), FileNotFoundError("a file"), CheckpointError("a checkpoint"))
for error in errors:
    kind = next(k for k in (ValueError, OSError, CheckpointError) if isinstance(error, k))
    try:
        refuse(error)
    except kind as raised:
        assert str(raised) == str(error)
    assert run_command("it", lambda: refuse(error), []) == 2
assert run_command("it", meet_file, []) == 2
assert run_command("it", uneven, []) == 2
sys.stderr.flush()
code = run_command("it", lose, [])
sys.stderr.flush()
(out / "code.txt").write_text(str(code))
os._exit(0)  # the group has lost its first process
"""


@pytest.mark.slow  # fresh processes import torch and timm
def test_refusal_is_raised_on_all_ranks_and_reported_once(tmp_path: Path) -> None:
    start_two(REFUSING_CHILD, tmp_path)
    reported = (tmp_path / "stderr-0.txt").read_text().splitlines()
    assert reported[:3] == ["it: a value", "it: a file", "it: a checkpoint"]
    assert "gone" in reported[3]
    assert "batch_size 9 cannot be divided into 2 processes x 1 accumulated" in reported[4]
    assert len(reported) == 5
    lost = (tmp_path / "stderr-1.txt").read_text().splitlines()
    assert len(lost) == 1
    assert lost[0].startswith("it: a process was lost (")
    assert (tmp_path / "code.txt").read_text() == "1"


def test_lost_process_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch.distributed, "barrier", fail)
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    ranks = Ranks(torch.device("cpu"), world=2)
    text = "[/a/gloo/pair.cc:545] Read error [1.2.3.4]:17: Connection reset by peer. This is\nlong"
    for wait in (ranks.wait, lambda: ranks.sums([1.0])):
        with pytest.raises(LostProcessError, match=r"lost \(.*by peer\. This is\); give the same"):
            wait()
    text = "a fault of ours"
    with pytest.raises(RuntimeError, match=r"^a fault of ours$"):
        ranks.wait()


@pytest.mark.parametrize(
    ("batch_size", "makes_pairs", "multiple"), [(8, False, 3), (9, True, 6)], ids=["uneven", "odd"]
)
def test_batch_without_equal_parts_is_refused(
    batch_size: int, makes_pairs: bool, multiple: int
) -> None:
    text = f"batch_size {batch_size} cannot be divided .* expected a multiple of {multiple}"
    with pytest.raises(ValueError, match=text):
        join(replace(QUICK, accumulate=3), batch_size, makes_pairs)


@pytest.mark.parametrize("name", ["meta", "nonsense", "", "cuda:99", "xpu:99", "tpu9"])
def test_device_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{name}', which cannot be used here; expect"):
        device_of(name)
