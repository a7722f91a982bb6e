"""The command of the reproduction: its plan, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoformer_zoo.space import SearchSpace
from tests.helpers.made_reproduction import CONFIG, use_made_images
from tests.helpers.made_training import MINI, QUICK
from training.config import Stage
from training.reproduce import estimate
from training.reproduce.__main__ import main
from training.reproduce.config import STAGES
from training.reproduce.estimate import plan, time_training
from training.reproduce.stages import Reproduction
from training.run.journal import write_json
from training.search import search as search_module
from training.search.config import Bounds, SearchConfig
from training.search.costs import BlockLatency, LatencyTable
from training.search.evolution import EvolutionConfig


@pytest.fixture
def made_data(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return use_made_images(monkeypatch)


def test_command_tells_the_plan_first(
    tmp_path: Path, made_data: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = [
        *["--preset", "smoke", "--plan-only", "--device", "cpu", "--train.space"],
        MINI.to_json(),
    ]
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), *config]
    assert main([*arguments, "--train.batch-size", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(STAGES)]] == list(STAGES)
    assert "Expected in all: " in lines[len(STAGES)]
    assert json.loads(lines[-1])["done"] == []


def test_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--preset"]
    assert main([*arguments, "huge"]) == 2
    assert "preset is 'huge'; expected one of cifar10" in capsys.readouterr().err
    assert main([*arguments, "smoke"]) == 2
    assert "no whole CIFAR-10" in capsys.readouterr().err


FEW = replace(CONFIG, seeds=1, sandwich_seeds=0, separate_seeds=0, search_seeds=1)


@pytest.mark.usefixtures("made_data")
def test_plan_tells_what_is_left_and_leaves_nothing(tmp_path: Path) -> None:
    whole = Reproduction(FEW, tmp_path, tmp_path / "out", QUICK, progress=False)
    assert not (tmp_path / "out").exists()
    lines = plan(FEW, ("search", "extract"), ("extract",), tmp_path, QUICK)
    told = {line.split()[0]: line for line in lines}
    assert told["train"].endswith("not asked for")
    assert told["search"].endswith("done")
    assert "about" in told["extract"]
    with pytest.raises(ValueError, match="has not done train; start from there"):
        whole.run("search", "report")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("made_data")
def test_expected_time_grows_with_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_seconds", lambda call, device: (call() and 0.0) or 1.0)
    short = time_training(FEW.train, tmp_path, QUICK)  # 40 images, batches of 20
    assert (short.steps, short.num_held_out) == (2.0, 8)
    long = time_training(replace(FEW.train, stages=(Stage(3, 8), Stage(2, 16))), tmp_path, QUICK)
    assert long.steps == 10.0
    monkeypatch.setattr(estimate, "MOST_PIXELS", 10 * 8 * 8)  # half a batch is timed
    assert time_training(FEW.train, tmp_path, QUICK).steps == 4.0


@pytest.mark.usefixtures("made_data")
def test_impossible_limits_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    search = SearchConfig(bounds=Bounds(max_params=10), evolution=EvolutionConfig(4, 2, 2, 1, 1))
    whole = Reproduction(replace(FEW, search=search), tmp_path, tmp_path / "out", QUICK, False)
    with pytest.raises(ValueError, match="no subnet of the space has params from 0 to 10"):
        whole.run("train", "report")
    assert not (tmp_path / "out").exists()


def made_table(ns: int = 1000) -> LatencyTable:
    blocks = tuple(
        BlockLatency(dim, heads, ratio, int(ns * dim * heads * ratio))
        for dim in MINI.embed_dim
        for heads in MINI.num_heads
        for ratio in MINI.mlp_ratio
    )
    return LatencyTable("cuda", 1, 1, 8, 4, {}, {"32": 0, "64": 0}, blocks)


@pytest.mark.usefixtures("made_data")
def test_latency_limits_hold_in_a_reproduction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def measure(space: SearchSpace, *rest: object) -> LatencyTable:
        measured.append(space.img_size)
        return made_table()

    monkeypatch.setattr(search_module, "measure_latencies", measure)
    search = replace(CONFIG.search, bounds=Bounds(max_latency_ms=0.2))
    whole = Reproduction(replace(FEW, search=search), tmp_path, tmp_path / "out", QUICK, False)
    whole.run("train", "train")
    again = Reproduction(replace(FEW, search=search), tmp_path, tmp_path / "out", QUICK, False)
    again.run("train", "extract")
    assert measured == [8]  # once, at the size that is scored
    found = json.loads((tmp_path / "out" / "search" / "search.json").read_text())
    assert all(0 < each["latency_ms"] <= 0.2 for each in found["candidates"])


@pytest.mark.usefixtures("made_data")
def test_table_of_latencies_stays_the_one_of_the_beginning(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    bounds = Bounds(max_latency_ms=0.2)
    search = replace(CONFIG.search, bounds=bounds, latency_table=str(table))

    def reproduction() -> Reproduction:
        return Reproduction(replace(FEW, search=search), tmp_path, tmp_path / "out", QUICK, False)

    with pytest.raises(
        FileNotFoundError, match=r"latency_table .*table\.json does not exist; make"
    ):
        reproduction().check("train", "report")
    table.write_text(made_table().to_json())
    reproduction().run("train", "train")
    table.write_text(made_table(900).to_json())
    with pytest.raises(ValueError, match="was begun with another table of latencies than"):
        reproduction().run("train", "search")
    table.write_text(made_table().to_json())
    reproduction().run("train", "search")
    table.unlink()
    reproduction().run("extract", "extract")  # what is found was found within the limits


@pytest.mark.usefixtures("made_data")
def test_plan_is_not_told_for_what_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data-dir", str(tmp_path), "--preset", "smoke", "--plan-only", "--device", "cpu"]
    arguments = [*common, "--train.space", MINI.to_json(), "--train.batch-size", "20", "--out"]
    few = ["--search.bounds.max-params", "10"]
    assert main([*arguments, str(tmp_path / "out"), *few]) == 2
    told = capsys.readouterr()
    assert "no subnet of the space has params from 0 to 10" in told.err
    (tmp_path / "file").write_text("")
    assert main([*arguments, str(tmp_path / "file" / "out")]) == 2
    assert "out is a file, or under one; expected a directory" in capsys.readouterr().err
    assert told.out == ""


@pytest.mark.usefixtures("made_data")
@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("config.json", '{"seeds": ', "Expecting value"), ("stage-train.json", "{}", "seconds is mi")],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    Reproduction(FEW, tmp_path, tmp_path / "out", QUICK, False).run("train", "train")
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(
        ValueError, match=rf"{name} is damaged \({reason}.*delete it to start again"
    ):
        Reproduction(FEW, tmp_path, tmp_path / "out", QUICK, False).result("train")


@pytest.mark.usefixtures("made_data")
def test_files_are_strict_json_and_say_what_was_not_opened(tmp_path: Path) -> None:
    config = replace(FEW, tests=False)
    Reproduction(config, tmp_path, tmp_path / "out", QUICK, False).run("train", "report")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for name in ("config.json", "results.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=refuse)
    assert "the test set was not opened" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("inf")}, tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()


@pytest.mark.usefixtures("made_data")
def test_another_config_is_shown_by_its_flag(tmp_path: Path) -> None:
    Reproduction(FEW, tmp_path, tmp_path / "out", QUICK, False).run("train", "train")
    other = replace(FEW, train=replace(FEW.train, lr=0.5))
    with pytest.raises(ValueError, match=r"begun with train\.lr=0\.001, requested 0\.5: give"):
        Reproduction(other, tmp_path, tmp_path / "out", QUICK)
