"""The benchmark of a training step: what it runs, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.published import SPACES
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import RatioRow, Row
from benchmarks.report.tables import make_table
from benchmarks.train_step import RATIOS, ROWS, Step, StepOptions, drawn, main, peak_bytes

NANO = SPACES["nano"]


def test_step_is_the_one_of_supernet_training() -> None:
    subnet = next(drawn(NANO))
    step = Step(NANO, "decomposed", "fp32", 2, "cpu")
    loss = step.run(subnet)
    supernet = Supernet(NANO, attention="decomposed")
    supernet.weights.load_state_dict(step._weights.state_dict())
    expected = F.cross_entropy(supernet(step._images, subnet), step._labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(step._weights.parameters(), supernet.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_every_form_is_reported_against_the_explicit_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--batch-size", "2", "--rounds", "3", "--form", "decomposed", "--no-memory"]
    assert main([*arguments, "--save", "--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:-1]] == ["decomposed", "explicit"]
    report = json.loads(told[-1])
    rows = read_rows(tmp_path / ROWS, Row)
    assert [(row.what, row.backend, row.unit, row.repeats) for row in rows] == [
        ("supernet step", "decomposed", "ms", 3),
        ("throughput", "decomposed", "images/s", 3),
        ("supernet step", "explicit", "ms", 3),
        ("throughput", "explicit", "images/s", 3),
    ]
    assert rows[1].median == pytest.approx(2e3 / rows[0].median, rel=1e-3)
    (ratio,) = read_rows(tmp_path / RATIOS, RatioRow)
    assert (ratio.backend, ratio.baseline) == ("decomposed", "explicit fp32")
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.ratio == pytest.approx(rows[0].median / rows[2].median, rel=1e-3)
    assert len(report["rows"]) == len(rows)
    assert len(report["ratios"]) == 1
    lines = make_table("training-cpu", tmp_path).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:4]] == ["decomposed", "explicit"]
    assert "explicit fp32: " in lines[2]


def test_each_precision_has_its_explicit_form() -> None:
    names = StepOptions(precision=("bf16",), form=("augmented",)).competitors
    assert names == [("augmented", "bf16"), ("explicit", "bf16"), ("explicit", "fp32")]


@pytest.mark.slow  # fresh processes import torch and timm
def test_explicit_form_takes_more_memory() -> None:
    options = StepOptions(batch_size=64)
    explicit, decomposed = (
        peak_bytes(options, form, "fp32") for form in ("explicit", "decomposed")
    )
    assert 0 < decomposed < explicit


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
        StepOptions(batch_size=0)
    assert main(["--space", "huge"]) == 2
    assert "space 'huge' is unknown; expected one of tiny" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_missing_cuda_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "python -m benchmarks.train_step: "
        "device is cuda, but torch finds no CUDA here; use --device cpu"
    ]
