"""The phases of a reproduction on made-up images: results, resuming, constraints, the command."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytest
import torch
from filelock import FileLock

from autoformer_zoo.space import SearchSpace
from autoformer_zoo.specialization.constraints import Bounds
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from tests.helpers.made_reproduction import CONFIG, use_made_images
from tests.helpers.made_search import make_profile
from tests.helpers.made_training import MINI, MINI_CONFIG, QUICK, open_quickly
from training.engine.teacher.answers import require_views, store_answers
from training.reproduce import phases, workspace
from training.reproduce.__main__ import main
from training.reproduce.config import PHASE_NAMES, PRESETS, Preset, ReproduceConfig
from training.reproduce.phases import Reproduction
from training.search import evaluation
from training.search import search as search_module
from training.search.config import SearchConfig
from training.settings.config import DistillConfig, TrainConfig

FEW = replace(CONFIG, seeds=1, sandwich_seeds=0, separate_seeds=0, search_seeds=1)


@pytest.fixture(autouse=True)
def opened_tests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return use_made_images(monkeypatch)


def reproduction(tmp_path: Path, config: ReproduceConfig = FEW) -> Reproduction:
    return Reproduction(config, tmp_path, tmp_path / "out", QUICK, progress=False)


def bounded(**bounds: float) -> ReproduceConfig:
    return replace(FEW, search=replace(FEW.search, bounds=Bounds(**bounds)))


def store_made_answers(tmp_path: Path, config: TrainConfig) -> str:
    """Store the answers of a teacher that knows nothing; returns the file."""
    path = tmp_path / f"answers-{config.seed}.safetensors"
    source = require_views(config, open_quickly(config))
    store_answers(lambda x: torch.zeros(len(x), 4), source, config, 1, path, 8)
    return str(path).replace(f"-{config.seed}.", "-{seed}.")


def test_reproduction_answers_every_question(tmp_path: Path, opened_tests: list[int]) -> None:
    answers_file = store_made_answers(tmp_path, CONFIG.train)
    config = replace(
        CONFIG,
        sandwich_images_seeds=1,
        sandwich_no_smallest_seeds=1,
        taught_seeds=1,
        distill=DistillConfig(answers=answers_file),
        lengths=(2,),
        length_seeds=1,
        alone_subnets=2,
        finetuned_seeds=1,
    )
    whole, out = reproduction(tmp_path, config), tmp_path / "out"
    whole.run("train", "retrain")
    assert not opened_tests
    whole.run("evaluate", "report")
    assert opened_tests == [1]
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    answers = results["answers"]
    letters = ["a", "a2", "b", "c", "d", "e", "e2", "e3", "e4", "f", "g", "h", "i"]
    assert list(answers) == letters
    assert {answer["verdict"] for answer in answers.values()} <= {"yes", "no", "undecided"}
    assert answers["b"]["held_out_percent"]["count"] == 6
    assert answers["d"]["separate_params"] > 2 * answers["d"]["params"]
    text = (out / "report.md").read_text()
    for part in (
        *(f"## ({letter}) " for letter in letters),
        "| random-1 | ",
        "| alone_2-0 | ",
        "| gap points by epochs, 2 | ",
        "(one value, no error bar)",
        "| separate training state MiB | ",
        "| winner, alone, 2 epochs: test | ",
        "| uniform steps to match separate | ",
    ):
        assert part in text
    figures = ("subnets", "search", "search/front", "differences", "gap", "ranking")
    for name in (f"{figure}.svg" for figure in figures):
        assert f"({name})" in text
        assert "<svg" in (out / name).read_text()


def test_done_phases_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "stage-search.json"
    reproduction(tmp_path).run("train", "search")
    first = json.loads(path.read_text())

    def refuse(*rest: object, **more: object) -> NoReturn:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(phases, "train", refuse)
    monkeypatch.setattr(evaluation, "inherited_accuracy", refuse)
    reproduction(tmp_path).run("train", "search")
    path.unlink()
    reproduction(tmp_path).run("train", "search")  # from the journal
    assert {**json.loads(path.read_text()), "seconds": 0} == {**first, "seconds": 0}

    path.write_text(json.dumps({**first, "held_out_percent": -1.0}))
    with pytest.raises(ValueError, match=r"scores \d.* %, the search found -1.0 %: the file or"):
        reproduction(tmp_path).run("extract", "extract")
    with pytest.raises(ValueError, match=r"was begun with train\.lr=0\.001, .* 0\.5"):
        reproduction(tmp_path, replace(FEW, train=replace(FEW.train, lr=0.5)))


def test_processes_take_different_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def train(config: TrainConfig, data_dir: Path, folder: Path, *rest: Any, **more: Any) -> Any:
        order.append(folder.name)
        if len(order) == 2:  # the other process is lost, and its training left
            other.release()
        return real(config, data_dir, folder, *rest, **more)

    real = phases.train
    monkeypatch.setattr(phases, "train", train)
    monkeypatch.setattr(workspace, "POLL_SECONDS", 0.01)
    whole = reproduction(tmp_path, replace(FEW, seeds=3))
    (whole.out / "locks").mkdir(parents=True)
    other = FileLock(whole.out / "locks" / "uniform-0.lock")
    other.acquire()
    whole.run("train", "train")
    assert order == ["uniform-1", "uniform-2", "uniform-0"]
    assert list(whole.result("train")["runs"]) == ["uniform-0", "uniform-1", "uniform-2"]


def test_phase_of_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduction(tmp_path)
    whole.run("train", "train")
    other = FileLock(whole.out / "locks" / "search.lock")
    other.acquire()

    def finish(seconds: float) -> None:
        (whole.out / "stage-search.json").write_text('{"seconds": 1}')
        other.release()

    monkeypatch.setattr(time, "sleep", finish)
    monkeypatch.setattr(phases, "evolve", None)  # it cannot search
    whole.run("search", "search")
    assert whole.result("search") == {"seconds": 1}


def test_what_an_earlier_version_began_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduction(tmp_path).run("train", "train")
    recorded = json.loads((out / "config.json").read_text())
    del recorded["alone_subnets"]
    del recorded["train"]["sandwich_smallest"]
    (out / "config.json").write_text(json.dumps(recorded))
    assert reproduction(tmp_path).is_done("train")
    with pytest.raises(ValueError, match="was begun with alone_subnets=0, requested 1"):
        reproduction(tmp_path, replace(FEW, alone_subnets=1))


def test_missing_answers_are_reported_before_training(tmp_path: Path) -> None:
    config = replace(FEW, taught_seeds=1, distill=DistillConfig(answers="a-{seed}.safetensors"))
    with pytest.raises(
        FileNotFoundError, match=r"a-0\.safetensors is not there; .* --student-seed"
    ):
        reproduction(tmp_path, config).select("train", "report")


def test_answers_to_other_views_are_reported_before_training(tmp_path: Path) -> None:
    file = store_made_answers(tmp_path, replace(FEW.train, seed=7))
    Path(file.format(seed=7)).rename(file.format(seed=0))
    config = replace(FEW, taught_seeds=1, distill=DistillConfig(answers=file))
    with pytest.raises(ValueError, match="is of views with seed 7, this run has 0"):
        reproduction(tmp_path, config).select("train", "report")


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        ("extract", "report", "has not done train, search; start from there"),
        ("search", "train", "search comes after train; expected the earlier phase first"),
    ],
)
def test_wrong_order_writes_nothing(tmp_path: Path, first: str, last: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        reproduction(tmp_path).run(first, last)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", '{"seeds": ', "Expecting value"),
        ("config.json", "[" * 100_000, "recursion"),
        ("stage-train.json", "[]", "not an object"),
        ("stage-train.json", "{}", "seconds is missing"),
    ],
    ids=["cut", "deep", "list", "key"],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*{reason}.*delete it to start"):
        reproduction(tmp_path).result("train")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"seeds": 0}, "seeds is 0; expected"),
        ({"sandwich_seeds": 5}, "sandwich_seeds is 5; expected at most seeds = 2"),
        ({"finetuned_seeds": 5}, "finetuned_seeds is 5; expected at most seeds = 2"),
        ({"alone_subnets": 3}, "alone_subnets is 3; expected at most compared_subnets = 2"),
        ({"lengths": (1,), "length_seeds": 1}, r"lengths is \(1,\); expected different ones"),
        ({"lengths": (2,)}, r"lengths is \(2,\) and length_seeds 0; expected both, or"),
        ({"tests": False, "finetuned_seeds": 1}, "tests is False, but lengths and fine-tuned"),
        ({"taught_seeds": 1}, "distill.answers is empty; python -m training.engine.teacher"),
        (
            {"taught_seeds": 2, "distill": DistillConfig(answers="one")},
            "distill.answers is one for 2 seeds, .* expected {seed} in it",
        ),
        ({"random_subnets": 1}, "random_subnets is 1; expected 2 or more, and at least"),
        ({"train": replace(MINI_CONFIG, sampling="sandwich")}, "train.sampling is 'sandwich'"),
        (
            {"train": replace(MINI_CONFIG, held_out_per_class=0)},
            "train.held_out_per_class is 0 and train.data.held_out_split empty; candidates are",
        ),
        ({"search": SearchConfig(method="random")}, "search.method is 'random'; expected evo"),
        ({"train": replace(MINI_CONFIG, initial="run")}, "names weights to start from; expected n"),
    ],
    ids=[
        *("seeds", "sandwich", "finetuned", "alone", "same length", "no length seeds", "tests"),
        *("no answers", "one file", "random", "sampling", "nothing held out", "method", "initial"),
    ],
)
def test_meaningless_configs_are_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **values)


# Constraints


def test_latency_is_measured_once_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def measure(space: SearchSpace, **rest: object) -> LatencyProfile:
        with whole.claim("begin") as is_free:  # another process would wait
            assert not is_free
        measured.append(space.img_size)
        return make_profile(img_size=8)

    monkeypatch.setattr(search_module, "profile_device", measure)
    whole = reproduction(tmp_path, bounded(max_latency_ms=0.2))
    whole.run("train", "train")
    reproduction(tmp_path, bounded(max_latency_ms=0.2)).run("train", "extract")
    assert measured == [8]  # at the size that is scored
    found = json.loads((tmp_path / "out" / "search" / "search.json").read_text())
    assert all(0 < candidate["latency_ms"] <= 0.2 for candidate in found["candidates"])


def test_latency_table_stays_that_of_the_beginning(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    config = bounded(max_latency_ms=0.2)
    config = replace(config, search=replace(config.search, latency_table=str(table)))
    with pytest.raises(FileNotFoundError, match=r"latency_table .*table\.json does not exist"):
        reproduction(tmp_path, config).select("train", "report")
    table.write_text(make_profile(img_size=8).to_json())
    reproduction(tmp_path, config).run("train", "train")
    table.write_text(make_profile(900, img_size=8).to_json())
    with pytest.raises(ValueError, match="was begun with another latency profile than"):
        reproduction(tmp_path, config).run("train", "search")
    table.write_text(make_profile(img_size=8).to_json())
    reproduction(tmp_path, config).run("train", "search")
    table.unlink()
    reproduction(tmp_path, config).run("extract", "extract")  # needs no latencies any more


# The command


def test_command_prints_the_plan_or_what_is_impossible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data-dir", str(tmp_path), "--preset", "smoke", "--plan-only", "--device", "cpu"]
    common += ["--train.space", MINI.to_json(), "--train.batch-size", "20"]
    assert main([*common, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[: len(PHASE_NAMES)]] == list(PHASE_NAMES)
    assert "Expected in all: " in lines[len(PHASE_NAMES)]
    assert json.loads(lines[-1])["done"] == []
    assert "timing a few training steps" in printed.err  # so that nobody waits without a word
    assert set(get_args(Preset)) == set(PRESETS)

    for flags, text in (
        (["--search.bounds.max-params", "10"], "no subnet of the space has params from 0 to 10"),
        (["--preset", "huge"], "invalid choice 'huge' for argument '--preset'. Expected one of"),
    ):
        assert main([*common, "--out", str(tmp_path / "out"), *flags]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert text in printed.err
        assert not (tmp_path / "out").exists()


def test_untouched_test_set_is_reported(tmp_path: Path, opened_tests: list[int]) -> None:
    reproduction(tmp_path, replace(FEW, tests=False)).run("train", "report")
    assert "the test set was not opened" in (tmp_path / "out" / "report.md").read_text()
    assert not opened_tests
