"""Commands under torchrun itself: two processes share the work and write one result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.made_training import MINI, write_folder

ROOT = Path(__file__).resolve().parents[2]
EVOLUTION = {"population": 6, "generations": 2, "keep": 3, "crossover": 2, "mutation": 2}
DATA = ["--data.source", "folder", "--data.normalisation", "imagenet", "--augment.crop", "resized"]

pytestmark = pytest.mark.slow  # fresh processes import torch and timm


def flags(prefix: str, values: dict[str, int]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{prefix}.{name}", str(value))]


def start(module: str, *arguments: str | Path, processes: int = 2) -> str:
    """Run a module under torchrun, to a good end; returns what it printed."""
    done = launch(module, *arguments, processes=processes)
    assert done.returncode == 0, done.stderr[:3000]
    return done.stdout


def launch(
    module: str, *arguments: str | Path, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run a module under torchrun."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *launcher, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_search_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    train = ["--space", MINI.to_json(), "--stages", "1:16", "--batch-size", "8", *DATA]
    alone = ["--held-out-per-class", "2", "--workers", "0", "--device", "cpu", "--no-plot"]
    start("training.train", "--data-dir", data, "--out", tmp_path / "run", *train, *alone)

    refused = launch("training.train", "--data-dir", data, "--out", tmp_path / "run", *train,
                     *alone, "--lr", "0.5")  # fmt: skip
    reported, _, launchers = refused.stderr.partition(" torch/distributed/elastic/")
    assert refused.returncode == 1  # torchrun's own
    assert reported.count("run was begun with lr=0.001, requested 0.5: give another --out") == 1
    assert "Traceback" not in reported
    assert "exitcode  : 1 " not in launchers

    common = ["--run-dir", tmp_path / "run", "--data-dir", data, *flags("evolution", EVOLUTION)]
    printed = start("training.search", *common, "--out", tmp_path / "two")
    assert len(printed.splitlines()) == 1  # one process speaks
    start("training.search", *common, "--out", tmp_path / "one", processes=1)
    for name in ("search.json", "subnet.safetensors"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    journals = list((tmp_path / "two").glob("journal-*"))
    assert [len(path.read_text().splitlines()) for path in journals] == [1 + 12]


@pytest.mark.parametrize("processes", [1, 2])
def test_imagenet_preset_is_reproduced_on_a_folder_of_its_layout(
    tmp_path: Path, processes: int
) -> None:
    data = write_folder(tmp_path / "data", count=75)  # 300 images
    write_folder(tmp_path / "more", count=5)
    (tmp_path / "more" / "train").rename(data / "val")
    small = {"random-subnets": 4, "compared-subnets": 2, "images": 9}
    arguments = [
        *["--preset", "imagenet-tiny", "--train.space", MINI.to_json(), "--train.stages", "1:16"],
        *["--train.batch-size", "128", "--train.held-out-per-class", "5", "--workers", "0"],
        *["--device", "cpu", *flags("search.evolution", EVOLUTION)],
        *(word for name, value in small.items() for word in (f"--{name}", str(value))),
    ]
    printed = start(
        "training.reproduce", "--data-dir", data, "--out", tmp_path / "out", *arguments,
        processes=processes,
    )  # fmt: skip
    stages = ["train", "search", "extract", "retrain", "evaluate", "compare", "report"]
    assert json.loads(printed.splitlines()[-1])["done"] == stages
    assert printed.count("Expected in all") == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["environment"]["processes"] == processes
    assert results["stages"]["train"]["runs"]["uniform-0"]["steps"] == 2
    assert list(results["answers"]) == ["a", "b", "c"]
    assert len(results["stages"]["evaluate"]["test_percent"]["alone"]) == 1
