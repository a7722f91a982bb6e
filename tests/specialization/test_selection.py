"""`specialize`, the front and the slices: bounds, seeds, what is refused, what is written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoformer_zoo as az
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization import selection
from autoformer_zoo.specialization.front import draw_front, find_front, known_points
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from autoformer_zoo.specialization.predictor import Top1
from autoformer_zoo.specialization.selection import Choices, specialize
from autoformer_zoo.specialization.slices import load_slices
from tests.helpers.made_search import make_profile
from tests.helpers.made_training import MINI


@dataclass(frozen=True)
class MadePredictor:
    """A predictor that likes heads in even blocks and MLPs in odd ones."""

    def predict(self, subnets: Sequence[SubnetConfig]) -> Any:
        return np.array(
            [
                sum((h if i % 2 else 2 * r) for i, (h, r) in enumerate(zip(*blocks, strict=True)))
                for s in subnets
                for blocks in [(s.num_heads, s.mlp_ratio)]
            ]
        )

    def intervals(self, subnets: Sequence[SubnetConfig]) -> list[Top1]:
        return [Top1(v, v - 1, v + 1, False) for v in self.predict(subnets).tolist()]


@pytest.fixture(autouse=True)
def made_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(selection, "load_predictor", lambda name: MadePredictor())
    monkeypatch.setattr(selection, "space_name", lambda space: "mini")


def test_bounds_hold_and_the_same_seed_gives_the_same_answer() -> None:
    bounds = {"max_params": 6e4, "min_macs": 2e5, "max_latency_ms": 0.3}
    found = specialize(MINI, **bounds, profile=make_profile(), top=4)
    assert len(found) == 4
    values = [each.top1.value for each in found]
    assert values == sorted(values, reverse=True)
    for each in found:
        assert each.params == az.count_params(each.subnet, 16, 4, 4) <= 6e4
        assert each.macs == az.count_macs(each.subnet, 16, 4, 4) >= 2e5
        assert each.latency_ms is not None
        assert each.latency_ms == make_profile().cost(MINI).value(each.subnet) <= 0.3
    assert specialize(MINI, **bounds, profile=make_profile(), top=4) == found


def test_latency_is_measured_only_for_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoformer_zoo.specialization.latency import measure

    asked = []

    def measured(space: Any, **setting: Any) -> LatencyProfile:
        asked.append(setting)
        return make_profile()

    monkeypatch.setattr(measure, "profile_device", measured)
    assert specialize(MINI)[0].latency_ms is None
    assert asked == []
    found = specialize(MINI, max_latency_ms=0.3, backend="compile", threads=2, progress=False)
    assert found[0].latency_ms is not None
    assert asked[0]["backend"] == "compile"
    assert asked[0]["threads"] == 2
    with pytest.raises(ValueError, match="no subnet of the space has params"):
        specialize(MINI, max_params=1, max_latency_ms=0.3)
    assert len(asked) == 1  # refused before minutes are spent


def test_impossible_bounds_are_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match=r"latency_ms from 0 to 1e-06; the space reaches 0\.032 "):
        specialize(MINI, max_latency_ms=1e-6, profile=make_profile())
    with pytest.raises(ValueError, match="min_params is 9 and max_params is 8; expected the lower"):
        specialize(MINI, min_params=9, max_params=8)
    with pytest.raises(ValueError, match="top is 0; expected 1 or more"):
        specialize(MINI, top=0)


def test_space_without_a_predictor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has no accuracy predictor"):
        specialize(replace(MINI, img_size=32))


def test_reach_is_that_of_all_subnets() -> None:
    choices = Choices.of(MINI, profile=make_profile())
    reach = choices.reach()
    assert reach["params"][0] == az.count_params(MINI.smallest, 16, 4, 4)
    assert reach["top1"][0] == pytest.approx(2.0)
    assert reach["top1"][2] == pytest.approx(2 * 2 + 2 + 2 * 2)
    assert all(low <= median <= high for low, median, high in reach.values())


def test_front_rises_and_is_written_with_its_figures(tmp_path: Path) -> None:
    choices = Choices.of(MINI, profile=make_profile())
    front = find_front(choices, "latency_ms")
    assert len(front) > 2
    for one, other in pairwise(front):
        assert one.latency_ms < other.latency_ms  # type: ignore[operator]
        assert one.top1.value < other.top1.value
    known = known_points("small", choices, None)
    assert [point.name for point in known] == [
        *("autoformer_small", "prenas_small_23m", "deit_small_patch16_224")
    ]
    path = tmp_path / "front.svg"
    rows = draw_front(path, front, known, "params", None)
    assert "<svg" in path.read_text()
    with path.with_suffix(".csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) == len(front) + 3
    assert SubnetConfig.from_json(read[0]["subnet"]) == front[0].subnet
    assert read[-1]["top1_kind"] == "published"


# Slices


def test_slices_are_a_rising_front_within_their_names() -> None:
    slices = load_slices()
    for space in ("tiny", "small", "base"):
        own = [each for each in slices.values() if each.model == f"autoformer_{space}"]
        assert 8 <= len(own) <= 12
        for one, other in pairwise(own):
            assert one.params < other.params
            assert one.top1_percent < other.top1_percent
        for each in own:
            number, unit = float(each.name[:-1]), {"m": 1e6, "k": 1e3}[each.name[-1]]
            assert 0.9 * number * unit < each.params <= number * unit
            assert SPACES[space].contains(each.subnet)
            assert each.params == az.count_params(each.subnet)
            assert each.macs == az.count_macs(each.subnet)


def test_slice_is_made_by_either_name() -> None:
    first = next(iter(load_slices().values()))
    for model in (
        az.create_model(first.model, slice=first.name),
        az.create_model(first.full_name),
    ):
        assert model.cfg == first.subnet  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"has no slice '1m'; expected one of .*\d"):
        az.create_model(first.model, slice="1m")
    with pytest.raises(ValueError, match="prenas_small_23m has no slices; expected one of auto"):
        az.create_model("prenas_small_23m", slice="15m")
    with pytest.raises(ValueError, match="slice= and subnet= both name a subnet"):
        az.create_model(first.model, slice=first.name, subnet=first.subnet)
