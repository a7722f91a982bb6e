"""The search: its files, stopping and resuming, constraints, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autoformer_zoo as az
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import Bounds, params_cost
from autoformer_zoo.specialization.evolution import EvolutionConfig
from autoformer_zoo.weights.checkpoint import save_supernet
from tests.helpers.made_search import make_profile, make_task, make_weights
from tests.helpers.made_training import MINI, MINI_CONFIG, QUICK, split_in_memory
from training.data import open as data_open
from training.run import plots
from training.search import evaluation
from training.search import search as search_module
from training.search.__main__ import main
from training.search.config import SearchConfig
from training.search.evaluation import SearchTask, accuracy_on, inherited_accuracy
from training.search.search import search, winner_of
from training.settings.config import Stage
from training.train import train

CONFIG = SearchConfig(evolution=EvolutionConfig(6, 3, 3, 2, 2))


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that matplotlib needs."""
    monkeypatch.setattr(plots, "plot_search", lambda *rest: None)


@pytest.fixture
def task() -> SearchTask:
    return make_task()


def test_search_writes_every_candidate_and_a_winner_that_opens(
    tmp_path: Path, task: SearchTask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = search(task, CONFIG, tmp_path, progress=False)
    assert "18 candidates in" in caplog.text
    assert json.loads((tmp_path / "search.json").read_text()) == result
    scores = [candidate["score"] for candidate in result["candidates"]]
    assert len(scores) == 18
    assert max(scores) > min(scores)
    winner, best = winner_of(result), result["candidates"][result["best"]]
    assert SubnetConfig.from_json((tmp_path / "subnet.json").read_text()) == winner
    assert best["score"] == max(scores)
    assert best["params"] == params_cost(MINI).value(winner)
    file = tmp_path / "subnet.safetensors"
    model = az.create_model("autoformer_subnet", checkpoint_path=file).eval()
    assert accuracy_on(model, task.batches) == best["score"]
    assert "<svg" in (tmp_path / "front.svg").read_text()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.usefixtures("no_plot")
@pytest.mark.parametrize("stop_after", [0, 13])
def test_stopped_search_resumes_and_scores_nothing_twice(
    tmp_path: Path, task: SearchTask, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    search(task, CONFIG, tmp_path / "whole", progress=False)
    scored: list[SubnetConfig] = []

    def stop(supernet: object, subnet: SubnetConfig, *rest: Any) -> float:
        if len(scored) == stop_after:
            raise KeyboardInterrupt
        scored.append(subnet)
        return inherited_accuracy(task.supernet, subnet, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "inherited_accuracy", stop)
        with pytest.raises(KeyboardInterrupt):
            search(task, CONFIG, tmp_path / "cut", progress=False)
    journal = tmp_path / "cut" / "journal-0.jsonl"
    assert journal.exists() == bool(stop_after)
    if stop_after:
        with journal.open("a") as file:
            file.write('{"subnet": {"dep')  # a kill while writing

    def count(supernet: object, subnet: SubnetConfig, *rest: Any) -> float:
        assert subnet not in scored
        return inherited_accuracy(task.supernet, subnet, *rest)

    monkeypatch.setattr(evaluation, "inherited_accuracy", count)
    search(task, CONFIG, tmp_path / "cut", progress=False)
    for name in ("search.json", "subnet.json", "subnet.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert len(journal.read_text().splitlines()) == 1 + 18


@pytest.mark.usefixtures("no_plot")
def test_another_search_is_not_resumed(tmp_path: Path, task: SearchTask) -> None:
    search(task, CONFIG, tmp_path, progress=False)
    other = replace(task, identity={"supernet": "another"})
    with pytest.raises(ValueError, match=r"begun with supernet='made up', .* 'another'"):
        search(other, CONFIG, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"begun with config\.method='evolution', .* 'random'"):
        search(task, replace(CONFIG, method="random"), tmp_path, progress=False)


def test_supernet_of_another_space_is_refused(tmp_path: Path, task: SearchTask) -> None:
    with pytest.raises(ValueError, match="the supernet is not of this space: depth 7 needs"):
        search(replace(task, space=az.SPACES["nano"]), CONFIG, tmp_path)


# Constraints


@pytest.mark.usefixtures("no_plot")
def test_constraints_hold_and_impossible_ones_write_nothing(
    tmp_path: Path, task: SearchTask
) -> None:
    params = sorted(params_cost(MINI).value(end) for end in (MINI.smallest, MINI.largest))
    middle = sum(params) / 2
    config = replace(CONFIG, bounds=Bounds(max_params=middle, min_macs=1))
    result = search(task, config, tmp_path / "some", progress=False)
    assert all(candidate["params"] <= middle for candidate in result["candidates"])
    for bounds in (Bounds(max_params=10), Bounds(max_latency_ms=1e-6)):
        with pytest.raises(ValueError, match=r"no subnet of the space has .*; the space reaches"):
            search(task, replace(CONFIG, bounds=bounds), tmp_path / "none", progress=False)
        assert not (tmp_path / "none").exists()


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace measuring by made-up latencies; returns the sizes that were measured at."""
    sizes: list[int] = []

    def measure(space: az.SearchSpace, **rest: object) -> Any:
        sizes.append(space.img_size)
        return make_profile(img_size=space.img_size)

    monkeypatch.setattr(search_module, "profile_device", measure)
    return sizes


@pytest.mark.usefixtures("no_plot")
def test_latency_is_measured_once_and_constrained(
    tmp_path: Path, task: SearchTask, measured: list[int]
) -> None:
    config = replace(CONFIG, bounds=Bounds(max_latency_ms=0.2))
    result = search(task, config, tmp_path / "out", progress=False)
    assert search(task, config, tmp_path / "out", progress=False) == result
    assert measured == [16]
    assert all(candidate["latency_ms"] <= 0.2 for candidate in result["candidates"])
    with pytest.raises(ValueError, match=r"was begun with config\.half=True, .* False"):
        search(task, replace(config, half=False), tmp_path / "out", progress=False)

    (tmp_path / "table.json").write_text(make_profile().to_json())
    named = replace(config, latency_table=str(tmp_path / "table.json"))
    again = search(task, named, tmp_path / "named", progress=False)
    assert measured == [16]
    assert again["candidates"] == result["candidates"]
    with pytest.raises(ValueError, match=r"was begun with config\.latency_table=''"):
        search(task, replace(named, half=False), tmp_path / "out", progress=False)
    assert search(task, config, tmp_path / "out", progress=False) == result


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"max_params": float("nan")}, "max_params is nan"),
        ({"min_macs": -1}, "min_macs is -1"),
        (
            {"min_latency_ms": 5, "max_latency_ms": 4},
            "min_latency_ms is 5 and max_latency_ms is 4; expected the lower end fi",
        ),
    ],
    ids=["nan", "negative", "empty"],
)
def test_meaningless_bounds_are_refused(bounds: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Bounds(**bounds)


# The command


@pytest.mark.usefixtures("no_plot")
def test_command_searches_a_run_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    config = replace(MINI_CONFIG, stages=(Stage(1, 16),), batch_size=20)
    train(config, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    few = "--evolution.population 4 --evolution.generations 2 --evolution.keep 2"
    few += " --evolution.crossover 1 --evolution.mutation 1"
    common = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), *few.split()]
    run = ["--run-dir", str(tmp_path / "run")]
    assert main([*common, *run]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert MINI.contains(SubnetConfig.from_dict(printed["subnet"]))

    named = ["--supernet", "autoformer_nano", "--preset", "smoke", "--evolution.generations", "1"]
    assert main([*common, *named, "--out", str(tmp_path / "nano")]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert az.SPACES["nano"].contains(SubnetConfig.from_dict(printed["subnet"]))

    file = tmp_path / "supernet.safetensors"
    save_supernet(make_weights(), file)
    for flags, text in (
        ([], "give either --run-dir, a training run, or --supernet"),
        (["--supernet", str(file), "--preset", "smoke"], "the supernet is not of this space"),
        (["--supernet", str(file), "--preset", "none"], "preset is 'none'; expected one of"),
        ([*run, "--bounds.max-params", "nan"], "max_params is nan"),
    ):
        assert main([*common, *flags]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
