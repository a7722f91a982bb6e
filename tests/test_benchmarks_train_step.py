"""The benchmark of a training step: what it runs, and what it reports."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from autoformer_zoo.published import SPACES
from benchmarks.train_step import Setting, Step, drawn, main, peak_mb
from training.supernet import Supernet

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
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--batch-size", "2", "--rounds", "3", "--form", "decomposed", "--no-memory"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["rows"]
    assert [row["form"] for row in rows] == ["decomposed", "explicit"]
    assert rows[1]["over_explicit_fp32"] == rows[1]["over_explicit"] == 1
    assert rows[0]["repeats"] == 3
    assert {"versions", "commit", "date"} <= report["environment"].keys()


def test_each_precision_has_its_explicit_form() -> None:
    names = Setting(precision=("bf16",), form=("augmented",)).competitors
    assert names == [("augmented", "bf16"), ("explicit", "bf16"), ("explicit", "fp32")]


@pytest.mark.slow  # fresh processes import torch and timm
def test_explicit_form_takes_more_memory() -> None:
    setting = Setting(batch_size=64)
    explicit, decomposed = (peak_mb(setting, form, "fp32") for form in ("explicit", "decomposed"))
    assert 0 < decomposed < explicit


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
        Setting(batch_size=0)
    with pytest.raises(SystemExit, match="2"):
        main(["--space", "huge"])
    assert "space 'huge' is unknown; expected one of tiny" in capsys.readouterr().err
