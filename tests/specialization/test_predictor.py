"""Predicted accuracies: polynomial, additive part, intervals, and the files in the package."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import autoformer_zoo as az
from autoformer_zoo.published import MODELS, PUBLISHED, SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.predictor import FOLDER, Predictor, load_predictor, predict_top1

FITTED = ("tiny", "small", "base")
SUBNETS = [
    SubnetConfig(1, 8, (2,), (3,)),
    SubnetConfig(2, 8, (2, 4), (3.5, 4)),
    SubnetConfig(2, 16, (3, 2), (4, 4)),
]


@pytest.fixture
def made_up() -> Predictor:
    """A predictor of up to 2 blocks with random coefficients, 0 beyond the depth."""
    cells = np.array([(1, 8), (2, 8), (2, 16)])
    rng = np.random.default_rng(0)
    present = np.arange(4) % 2 < cells[:, :1]
    return Predictor(
        cells=cells,
        num_heads=np.array([2, 3, 4]),
        mlp_ratio=np.array([3, 3.5, 4]),
        constant=np.array([70.0, 71, 73]),
        linear=rng.normal(size=(3, 4)) * present,
        quadratic=np.triu(rng.normal(size=(3, 4, 4))) * present[:, :, None] * present[:, None],
        half_width=np.array([0.1, 0.2, 0.3]),
        about=np.array("{}"),
    )


def test_prediction_is_the_polynomial_of_its_depth_and_width(made_up: Predictor) -> None:
    expected = []
    for k, subnet in enumerate(SUBNETS):
        z = [0.0] * 4
        for block in range(subnet.depth):
            z[block] = subnet.num_heads[block] - 3
            z[2 + block] = 2 * (subnet.mlp_ratio[block] - 3.5)
        value = made_up.constant[k] + sum(made_up.linear[k, a] * z[a] for a in range(4))
        value += sum(made_up.quadratic[k, a, b] * z[a] * z[b] for a in range(4) for b in range(4))
        expected.append(value)
    assert made_up.predict(SUBNETS) == pytest.approx(expected, abs=1e-12)
    assert made_up.predict([]).shape == (0,)


def test_additive_part_is_the_prediction_without_products(made_up: Predictor) -> None:
    diagonal = made_up.quadratic * np.eye(4)
    expected = replace(made_up, quadratic=diagonal).predict(SUBNETS)
    for subnet, value in zip(SUBNETS, expected, strict=True):
        constant, blocks = made_up.additive(subnet.depth, subnet.embed_dim)
        chosen = [
            blocks[i, heads - 2, int(2 * ratio - 6)]
            for i, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))
        ]
        assert constant + sum(chosen) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "unknown",
    [
        SubnetConfig(2, 16, (3, 5), (4, 4)),
        SubnetConfig(2, 16, (3, 2), (4, 2.5)),
        SubnetConfig(2, 16, (3, 2), (4, 3.75)),
        SubnetConfig(1, 16, (3,), (4,)),
        SubnetConfig(2, 12, (3, 2), (4, 4)),
        SubnetConfig(3, 16, (3, 2, 3), (4, 4, 4)),
    ],
    ids=["heads", "ratio", "ratio between", "depth with width", "width", "depth"],
)
def test_unknown_sizes_are_extrapolated_with_wider_intervals(
    made_up: Predictor, unknown: SubnetConfig
) -> None:
    (known, other) = made_up.intervals([SUBNETS[2], unknown])
    assert not known.extrapolated
    assert other.extrapolated
    assert known.high - known.low == pytest.approx(0.6)
    assert other.high - other.low > known.high - known.low
    assert other.low < other.value < other.high


@pytest.mark.parametrize("name", FITTED)
def test_file_of_a_space_is_small_and_knows_the_whole_space(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    assert (FOLDER / f"{name}.npz").stat().st_size < 300_000
    assert load_predictor(name).facts["space"] == name
    subnets = [space.sample(rng) for _ in range(100)]
    found = predict_top1(space, subnets)
    assert not any(top1.extrapolated for top1 in found)
    assert [top1.value for top1 in found] == load_predictor(name).predict(subnets).tolist()


@pytest.mark.parametrize("name", FITTED)
def test_prediction_is_near_the_published_accuracy(name: str) -> None:
    model = f"autoformer_{name}"
    (top1,) = az.predict_top1(name, [MODELS[model].subnet])
    # The authors chose it among 1,000 subnets by this very accuracy, so it is above what is usual.
    assert abs(top1.value - PUBLISHED[f"{model}.ms_in1k"].top1_percent) < 0.2
    assert top1.extrapolated == (name == "tiny")  # for its MLP ratios of 3


def test_predictor_that_was_fitted_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    for name in ("small", "base"):
        file.write_bytes((FOLDER / f"{name}.npz").read_bytes())
        assert load_predictor(str(file)).facts["space"] == name


def test_missing_and_damaged_predictors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="space 'huge' has no accuracy predictor; expected one of"):
        predict_top1("huge", SUBNETS)
    with pytest.raises(ValueError, match=r"none of autoformer_zoo\.SPACES"):
        predict_top1(replace(SPACES["tiny"], num_classes=7), SUBNETS)
    file = tmp_path / "damaged.npz"
    file.write_bytes(b"PK\x03\x04 not a file of arrays")
    with pytest.raises(ValueError, match=r"damaged.npz is no accuracy predictor"):
        load_predictor(str(file))
    np.savez(file, cells=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="num_heads"):
        load_predictor(str(file))
