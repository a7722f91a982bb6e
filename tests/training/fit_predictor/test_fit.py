"""Fitting a predictor: better than a count, the same bytes every time, intervals that hold."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.predictor import load_predictor
from training.engine.sampling import sample_different
from training.fit_predictor.__main__ import main
from training.fit_predictor.measured import read_measured
from training.fit_predictor.process import Process, make_design
from training.fit_predictor.validation import half_widths, lost_under_budgets

COLUMNS = ["depth", "embed_dim", "num_heads", "mlp_ratio", "top1_percent"]
QUICK = ("--validation.folds", "3", "--validation.repeats", "1")


def make_top1(subnet: SubnetConfig, rng: random.Random) -> float:
    """Make up an accuracy: early heads are worth more, two neighbours more than their sum."""
    width = subnet.embed_dim / 160
    heads = sum((heads - 2) / (1 + i) for i, heads in enumerate(subnet.num_heads)) / width
    ratios = sum((ratio - 3.5) * (i - 3) for i, ratio in enumerate(subnet.mlp_ratio)) / 4
    both = (subnet.num_heads[1] - 2.5) * (subnet.num_heads[2] - 2.5)
    return 70 + 3 * width + 0.5 * subnet.depth + heads + ratios + both + rng.gauss(0, 0.05)


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    rng = random.Random(0)
    subnets = sample_different(SPACES["nano"], 180, rng)
    rows = [[*subnet.to_dict().values(), make_top1(subnet, rng)] for subnet in subnets]
    return {"space": "nano", "columns": COLUMNS, "rows": rows}


@pytest.fixture
def data(tmp_path: Path, table: dict[str, Any]) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(table))
    return path


def test_command_writes_the_same_predictor_again(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = data.with_name("one.npz"), data.with_name("other.npz")
    assert main([str(data), "--out", str(one), *QUICK]) == 0
    (figures, *_) = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert main([str(data), "--out", str(other), *QUICK]) == 0
    assert one.read_bytes() == other.read_bytes()
    assert figures["subnets"] == 180
    assert figures["spearman"] > 0.95 > figures["spearman_of_params"]
    assert 0.8 < figures["coverage"] < 0.98
    rng = random.Random(1)
    unseen = sample_different(SPACES["nano"], 200, rng)
    true = np.array([make_top1(subnet, rng) for subnet in unseen])
    predictor = load_predictor(str(one))
    assert np.sqrt(np.square(predictor.predict(unseen) - true).mean()) < 0.25 * true.std()
    held = [t.low <= y <= t.high for t, y in zip(predictor.intervals(unseen), true, strict=True)]
    assert 0.8 < np.mean(held) <= 1


@pytest.mark.parametrize(("flag", "least"), [("folds", 2), ("repeats", 1), ("iterations", 1)])
def test_too_little_validation_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str], flag: str, least: int
) -> None:
    out = data.with_name("out.npz")
    assert main([str(data), "--out", str(out), f"--validation.{flag}", str(least - 1)]) == 2
    assert f"{flag} is {least - 1}; expected {least} or more" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("has_products", [True, False])
def test_polynomials_are_the_mean_of_the_process(data: Path, has_products: bool) -> None:
    measured = read_measured([data])
    process, rows = Process(make_design(measured.subnets), has_products), np.arange(0, 180, 2)
    hyper = process.fit(measured.top1, rows, 3, process.start())
    predictor = process.predictor(hyper, measured.top1, rows)
    kernel = process.kernel(hyper, np.arange(180)).numpy()
    noisy = kernel[np.ix_(rows, rows)] + np.diag(process.noise(hyper, rows).numpy())
    average = process.averages(measured.top1, rows)[process.design.cell]
    mean = average + kernel[:, rows] @ np.linalg.solve(noisy, (measured.top1 - average)[rows])
    assert predictor.predict(measured.subnets) == pytest.approx(mean, abs=1e-6)


def test_half_width_is_the_conformal_quantile_scaled_to_each_width() -> None:
    errors = np.arange(1.0, 20)[None]  # 18 of 19 with one more that is larger: 90 % of 20
    assert half_widths(errors, np.full(19, 8)) == {8: pytest.approx(18)}
    both, width = np.concatenate([errors, 3 * errors[:, :9]], axis=1), np.repeat([8, 16], [19, 9])
    halves = half_widths(both, width)
    small, large = (np.sqrt(np.square(both[:, width == one]).mean()) for one in (8, 16))
    assert halves[16] / halves[8] == pytest.approx(large / small)


def test_loss_under_budgets_is_none_for_a_perfect_ranking() -> None:
    rng = np.random.default_rng(0)
    params, top1 = rng.uniform(1, 2, 50), rng.normal(size=50)
    assert lost_under_budgets(params, top1, 3 * top1 - 1) == 0
    assert lost_under_budgets(params, top1, -top1) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": COLUMNS[:4]}, "no table of measured subnets"),
        ({"rows": [[1, 128, [2, 2], [3], 70]]}, "num_heads has 2 entries"),
        ({"space": "huge"}, "space 'huge' is unknown"),
        ({"rows": [[1, 128, [2], [3], float("nan")]]}, "expected finite accuracies"),
    ],
    ids=["columns", "subnet", "space", "accuracy"],
)
def test_wrong_tables_are_refused(
    data: Path, table: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    data.write_text(json.dumps({**table, **change}))
    with pytest.raises(ValueError, match=message):
        read_measured([data])
