"""The reproduction: its stages on made-up images, statistics, separate weights, its report."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.network.supernet import Supernet
from tests.helpers.made_reproduction import CONFIG, use_made_images
from tests.helpers.made_training import MINI, MINI_CONFIG, QUICK
from training.config import Stage
from training.reproduce import stages as reproduce_module
from training.reproduce.answers import (
    answer,
    difference,
    exceeds,
    mean_of,
    spread_of,
    student_t,
)
from training.reproduce.config import PRESETS
from training.reproduce.separate import SeparateSupernet, load_separate, train_separate
from training.reproduce.stages import Reproduction
from training.search import evaluation as subject_module
from training.search.config import SearchConfig
from training.search.evaluation import load_averaged


@pytest.fixture
def made_data(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return use_made_images(monkeypatch)


def test_reproduction_answers_every_question(tmp_path: Path, made_data: list[int]) -> None:
    whole = Reproduction(CONFIG, tmp_path, tmp_path / "out", QUICK, progress=False)
    whole.run("train", "retrain")
    assert not made_data  # nothing so far has seen the test set
    whole.run("evaluate", "report")
    assert made_data == [1]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["answers"]) == ["a", "b", "c", "d", "e"]
    for each in results["answers"].values():
        assert each["verdict"] in ("yes", "no", "undecided")
    assert results["answers"]["b"]["held_out_percent"]["count"] == 6
    assert results["answers"]["b"]["verdict"] == "undecided"  # of so few
    assert results["answers"]["d"]["separate_params"] > 2 * results["answers"]["d"]["params"]
    text = (tmp_path / "out" / "report.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    for letter in "abcde":
        assert f"## ({letter}) " in text
        assert f"<h2>({letter}) " in page
    assert "(one value, no error bar)" in text
    assert "| separate training state MiB | " in text
    assert "| uniform steps to match separate | " in text
    for name in ("subnets.svg", "search.svg"):
        assert f"({name})" in text
        assert "<svg" in (tmp_path / "out" / name).read_text()
    assert page.count("data:image/svg+xml;base64,") == 3


def test_stages_that_are_done_are_left_out_and_missing_ones_named(
    tmp_path: Path, made_data: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(CONFIG, seeds=1, sandwich_seeds=0, separate_seeds=0, search_seeds=1)
    whole = Reproduction(few, tmp_path, tmp_path / "out", QUICK, progress=False)
    with pytest.raises(ValueError, match=r"has not done train, search; start from there"):
        whole.run("extract", "report")
    with pytest.raises(ValueError, match="stage search comes after train"):
        whole.run("search", "train")
    whole.run("train", "search")
    first = (tmp_path / "out" / "stage-search.json").read_bytes()

    def refuse(*rest: object, **more: object) -> None:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(reproduce_module, "train", refuse)
    again = Reproduction(few, tmp_path, tmp_path / "out", QUICK, progress=False)
    again.run("train", "search")
    (tmp_path / "out" / "stage-search.json").unlink()
    monkeypatch.setattr(subject_module, "inherited_accuracy", refuse)
    again.run("train", "search")  # from the journal
    old, new = json.loads(first), json.loads((tmp_path / "out" / "stage-search.json").read_text())
    assert {**old, "seconds": 0, "scored": 0} == {**new, "seconds": 0, "scored": 0}
    other = {**new, "held_out_percent": -1.0}
    (tmp_path / "out" / "stage-search.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"scores \d.* %, the search found -1.0 %: the file or"):
        again.run("extract", "extract")
    with pytest.raises(ValueError, match="was begun with seeds=1, requested 2"):
        Reproduction(replace(few, seeds=2), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"seeds": 0}, "seeds is 0; expected 1 or more"),
        ({"sandwich_seeds": 5}, "sandwich_seeds is 5; expected 0 to seeds = 2"),
        ({"random_subnets": 1}, "random_subnets is 1; expected 2 or more, and at least"),
        ({"train": replace(MINI_CONFIG, sampling="sandwich")}, "train.sampling is 'sandwich'"),
        ({"images": -1}, "images is -1; expected 0 for all, or how many"),
        (
            {"train": replace(MINI_CONFIG, held_out_per_class=0)},
            "train.held_out_per_class is 0 and train.data.held_out_split empty; candidates are",
        ),
        ({"search": SearchConfig(method="random")}, "search.method is 'random'; expected evo"),
    ],
    ids=["seeds", "sandwich", "random", "sampling", "images", "nothing held out", "method"],
)
def test_config_refuses_what_cannot_be_meant(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **values)


def test_presets_can_be_made_from_flags() -> None:
    assert set(PRESETS) >= {"cifar10", "smoke", "imagenet-tiny", "imagenet-small", "imagenet-base"}


# Separate weights


def test_separate_weights_share_only_what_was_chosen_alike() -> None:
    network = SeparateSupernet(MINI)
    one = replace(MINI.largest, num_heads=(1, 2, 2))
    other = replace(MINI.largest, mlp_ratio=(2.0, 1.0, 2.0))
    network(torch.randn(2, 3, 16, 16), one).sum().backward()
    used = {key for key, p in network.weights.tensors.items() if p.grad is not None}
    network.zero_grad()
    network(torch.randn(2, 3, 16, 16), other).sum().backward()
    also = {key for key, p in network.weights.tensors.items() if p.grad is not None}
    shared = {key.partition("/")[2] for key in used & also}
    assert {key for key in shared if "attn:qkv:weight" in key} == {
        "blocks:1:attn:qkv:weight",
        "blocks:2:attn:qkv:weight",
    }
    assert {key for key in shared if "fc1:weight" in key} == {
        "blocks:0:mlp:fc1:weight",
        "blocks:2:mlp:fc1:weight",
    }


def test_separate_weights_decay_as_the_supernet_does() -> None:
    separate, shared = SeparateSupernet(MINI).weights, Supernet(MINI).weights
    names = {name.rpartition(":")[2].rpartition("/")[2] for name in separate.no_weight_decay()}
    assert names == {name.rpartition(".")[2] for name in shared.no_weight_decay()}
    known = {name for name, _ in separate.named_parameters()}
    assert separate.no_weight_decay() <= known


def test_separate_run_goes_on_and_is_read_back(tmp_path: Path, made_data: list[int]) -> None:
    config = replace(CONFIG.train, stages=(Stage(2, 16),))
    state = train_separate(config, tmp_path, tmp_path / "run", False, QUICK)
    network, x = load_separate(tmp_path / "run"), torch.randn(2, 3, 16, 16)
    subnet = MINI.sample(random.Random(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x, subnet), state.ema.module.eval()(x, subnet))
    again = train_separate(config, tmp_path, tmp_path / "run", False, QUICK)
    assert again.step == state.step == 4
    with pytest.raises(ValueError, match=r"run trained weights of their own for each choice"):
        load_averaged(tmp_path / "run")


# Statistics


def test_means_have_students_intervals() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert mean.mean == 2
    assert mean.half_width == pytest.approx(4.302653 / math.sqrt(3))
    assert str(mean) == "2.00 ± 2.48"
    assert mean_of([5.0]).half_width is None
    with pytest.raises(ValueError, match="no value to take the mean of"):
        mean_of([])


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)],
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=5e-4)
    values = [float(i) for i in range(degrees + 1)]
    half_width = t * statistics.stdev(values) / math.sqrt(len(values))
    assert mean_of(values).half_width == pytest.approx(half_width, rel=5e-4)


def test_students_t_takes_any_share_and_nears_the_normal() -> None:
    assert student_t(10, 0.99) == pytest.approx(3.1693, abs=5e-5)
    assert student_t(100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def test_difference_is_seed_by_seed() -> None:
    gap = difference([10.0, 20.0, 30.0], [9.0, 19.0, 29.0])
    assert (gap.mean, gap.half_width) == (1.0, 0.0)
    with pytest.raises(ValueError, match="2 and 1 values; expected one of each a seed"):
        difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        ([1.0, 1.1, 0.9], 0.0, "yes"),
        ([-1.0, -1.1, -0.9], 0.0, "no"),
        ([1.0, -1.0, 0.5], 0.0, "undecided"),
        ([-0.1, -0.1, -0.1], -0.2, "yes"),
        ([3.0], 0.0, "undecided"),
    ],
    ids=["above", "below", "across", "margin", "one seed"],
)
def test_verdict_needs_an_interval_on_one_side(
    values: list[float], margin: float, verdict: str
) -> None:
    assert exceeds(mean_of(values), margin) == verdict


def test_spread_orders_its_figures() -> None:
    spread = spread_of([float(i) for i in range(11)])
    assert (spread.least, spread.p10, spread.median, spread.p90, spread.most) == (0, 1, 5, 9, 10)


def _stages(gap: float, noise: Callable[[int], float]) -> dict[str, dict[str, object]]:
    base = {"uniform": 50.0, "sandwich": 50 + gap, "separate": 50 - gap}
    runs = {
        f"{name}-{i}": {
            **{"steps": 10, "seconds": 1.0, "params": 5, "skipped": 0},
            "held_out": [[5, base[name] - 1 + noise(i)], [10, base[name] + noise(i)]],
        }
        for name in base
        for i in range(3)
    }
    scores = {
        name: [base[name[:-2]] + noise(int(name[-1])), base[name[:-2]] + noise(int(name[-1]))]
        for name in runs
    }
    traces = {
        "evolution": [[50.0, 52 + gap + noise(i)] for i in range(3)],
        "random": [[50.0, 52.0] for _ in range(3)],
    }
    test = {"inherited": [60 + noise(i) for i in range(3)], "alone": [60 - gap] * 3}
    evaluate = {
        "random_held_out_percent": [50 + gap * i / 199 for i in range(200)],
        "compared_held_out_percent": scores,
        "test_percent": test,
    }
    return {"train": {"runs": runs}, "search": {"best_so_far": traces}, "evaluate": evaluate}


def test_answers_follow_the_figures() -> None:
    good = answer(_stages(1.0, lambda seed: 0.1 * seed), 100)["answers"]
    assert {letter: each["verdict"] for letter, each in good.items()} == dict.fromkeys(
        "abcde", "yes"
    )
    bad = answer(_stages(-1.0, lambda seed: 0.1 * seed), 100)["answers"]
    assert [bad[letter]["verdict"] for letter in "acde"] == ["no"] * 4
    uneven = answer(_stages(5.0, lambda seed: 0.1 * seed), 100)["answers"]
    assert uneven["b"]["verdict"] == "no"
    unclear = answer(_stages(0.1, lambda seed: 3.0 * (seed - 1)), 100)["answers"]
    assert [unclear[letter]["verdict"] for letter in "ac"] == ["undecided"] * 2


def test_steps_and_memory_are_compared_too() -> None:
    answers = answer(_stages(1.0, lambda seed: 0.1 * seed), 100)["answers"]
    assert answers["d"]["uniform_steps_to_match_separate"] == 5
    assert answers["d"]["separate_steps_to_match_uniform"] is None
    assert answers["e"]["sandwich_steps_to_match_uniform"] == 5
    assert answers["d"]["training_state_mib"] == 5 * 20 / 2**20
    stages = _stages(1.0, lambda seed: 0.1 * seed)
    stages["train"]["runs"]["separate-1"]["held_out"] = []  # type: ignore[index]
    assert "uniform_steps_to_match_separate" not in answer(stages, 100)["answers"]["d"]


@pytest.mark.data
@pytest.mark.slow
def test_smoke_preset_reports_on_real_images(tmp_path: Path, cifar10: Path) -> None:
    whole = Reproduction(PRESETS["smoke"], cifar10, tmp_path / "out", progress=False)
    whole.run("train", "report")
    assert "## (e)" in (tmp_path / "out" / "report.md").read_text()
