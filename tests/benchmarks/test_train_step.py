"""The benchmarks of a training step and of a search's candidates: what runs, what is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoformer_zoo.published import SPACES
from benchmarks.measure.memory import in_new_process
from benchmarks.measure.results import read_rows
from benchmarks.report.tables import make_table
from benchmarks.training import candidates, train_step
from benchmarks.training.train_step import StepOptions, draw_subnets, make_step, step_peak
from tests.helpers.made_training import MINI

NANO = SPACES["nano"]


def test_every_form_has_the_same_loss() -> None:
    subnet = next(draw_subnets(NANO))
    losses = {
        form: make_step(NANO, form, "fp32", 2, "cpu")(subnet)
        for form in ("explicit", "decomposed", "decomposed-checkpointed")
    }
    assert losses["decomposed-checkpointed"] == losses["decomposed"]
    assert float(losses["decomposed"]) == pytest.approx(float(losses["explicit"]), abs=1e-5)


def test_each_precision_has_its_explicit_form() -> None:
    names = StepOptions(precision=("bf16",), form=("augmented",)).competitors
    assert names == [("augmented", "bf16"), ("explicit", "bf16"), ("explicit", "fp32")]


def test_steps_are_compared_with_the_explicit_form(tmp_path: Path) -> None:
    args = ["--batch-size", "2", "--rounds", "3", "--form", "decomposed", "--no-memory"]
    assert train_step.main([*args, "--save", "--results", str(tmp_path)]) == 0

    rows = read_rows(tmp_path / "training.csv")
    assert [(row.what, row.backend) for row in rows] == [
        ("supernet step", "decomposed"),
        ("throughput", "decomposed"),
        ("supernet step", "explicit"),
        ("throughput", "explicit"),
    ]
    assert rows[1].value == pytest.approx(2e3 / rows[0].value, rel=1e-3)
    (ratio,) = read_rows(tmp_path / "training_ratios.csv")
    assert (ratio.backend, ratio.baseline) == ("decomposed", "explicit fp32")
    assert ratio.value == pytest.approx(rows[0].value / rows[2].value, rel=1e-3)
    lines = make_table("training-cpu", tmp_path).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:4]] == ["decomposed", "explicit"]
    assert "explicit fp32: " in lines[2]


def test_methods_of_a_search_are_compared_with_the_explicit_form(tmp_path: Path) -> None:
    args = "--images 4 --batch-size 2 --explicit-batch-size 4 --rounds 3 --bf16 --save"
    space = ["--space", MINI.to_json(), "--results", str(tmp_path)]
    assert candidates.main([*args.split(), *space]) == 0

    rows = read_rows(tmp_path / "training.csv")
    assert [(row.backend, row.precision, row.batch) for row in rows[::2]] == [
        ("explicit, sliced", "fp32", 4),
        ("extracted", "fp32", 2),
        ("extracted", "bf16", 2),
    ]
    for time, speed in zip(rows[::2], rows[1::2], strict=True):
        assert speed.value == pytest.approx(1e3 / time.value, rel=1e-3)
    ratios = read_rows(tmp_path / "training_ratios.csv")
    assert [ratio.precision for ratio in ratios] == ["fp32", "bf16"]
    assert {ratio.baseline for ratio in ratios} == {"explicit fp32, 4 at a time"}
    assert ratios[0].value == pytest.approx(rows[2].value / rows[0].value, rel=1e-3)


@pytest.mark.slow  # fresh processes import torch and timm
def test_explicit_form_takes_more_memory() -> None:
    explicit, decomposed = (
        in_new_process(step_peak, NANO, form, "fp32", 64, "cpu")
        for form in ("explicit", "decomposed")
    )
    assert explicit is not None
    assert decomposed is not None
    assert 0 < decomposed < explicit
