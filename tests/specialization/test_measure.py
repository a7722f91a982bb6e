"""Measuring profiles: rounds, what they are combined to, the cache; nothing depends on speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import autoformer_zoo as az
from autoformer_zoo.specialization.latency import measure
from autoformer_zoo.specialization.latency.measure import (
    NoisyMachineError,
    combine,
    draw_design,
    find_profile,
    profile_device,
    time_models,
    time_rounds,
    time_subnet,
)
from autoformer_zoo.specialization.latency.network_runs import prepare_models, prepare_runs
from autoformer_zoo.specialization.latency.profile import RunSetting
from autoformer_zoo.specialization.latency.timing import Call
from tests.helpers.made_training import MINI


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(measure, "MOST", 6)
    monkeypatch.setattr(measure, "MAX_NOISE_PERCENT", float("inf"))
    return tmp_path


def test_every_network_is_timed_once_a_round_until_time_runs_out() -> None:
    now, made = [0.0], list[int]()

    def maker(i: int) -> Callable[[], Call]:
        def make() -> Call:
            made.append(i)
            now[0] += 1
            return lambda: i

        return make

    def stopwatch(call: Call) -> float:
        # The machine is slower by the second; the reference shows it.
        return (1 + now[0]) * (10.0 + float(call()))  # type: ignore[arg-type]

    rounds = time_rounds(
        [maker(i) for i in range(4)], lambda: 0, stopwatch, 10, False, lambda: now[0]
    )
    assert Counter(made[:4]) == Counter(made[4:8]) == Counter(range(4))
    assert made[:4] != made[4:8]
    assert len(made) == 10  # two rounds, and half of a third
    assert np.isnan(rounds[2]).sum() == 2
    # The first one is between references of different speeds.
    shares = rounds / rounds[1, 0]
    assert shares[1] == pytest.approx([1, 1.1, 1.2, 1.3], rel=0.1)
    made.clear()
    assert time_rounds([maker(0)], lambda: 0, stopwatch, 0.1, False, lambda: now[0]).shape == (2, 1)


@pytest.mark.parametrize("sd", [0.0, 0.01, 0.1])
def test_standard_error_of_a_latency_is_found(sd: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 20, 60)
    rounds = true * np.exp(sd * rng.normal(size=(4, 60)))
    rounds[3, 30:] = np.nan
    ms, noise_percent = combine(rounds)
    assert ms == pytest.approx(true, rel=3 * sd + 1e-9)
    assert noise_percent == pytest.approx(100 * sd / 3**0.5, rel=0.25, abs=1e-9)


def test_design_has_every_width_equally_often_and_is_the_same_again() -> None:
    small = az.SPACES["small"]
    subnets = draw_design(small, 60)
    assert subnets == draw_design(small, 60)
    assert set(Counter(s.embed_dim for s in subnets).values()) == {20}
    assert all(map(small.contains, subnets))


def test_profile_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_profile(MINI) is None
    profile = profile_device(MINI, seconds=0.1, progress=False)
    assert profile.num_timed == 6
    assert profile.cost(MINI).value(MINI.smallest) > 0
    assert find_profile(MINI) == profile
    monkeypatch.setattr(measure, "time_subnets", None)
    assert profile_device(MINI) == profile
    assert find_profile(MINI, threads=7) is None
    with pytest.raises(ValueError, match="the latency profile is for images and patches of"):
        profile_device("nano", adapt=profile)


def test_damaged_profile_of_the_cache_is_measured_again(cache: Path) -> None:
    profile = profile_device(MINI, seconds=0.1, progress=False)
    (file,) = cache.rglob("*.json")
    file.write_text("{")
    assert find_profile(MINI) is None
    assert profile_device(MINI, seconds=0.1, progress=False).blocks != ()
    assert find_profile(MINI) is not None
    assert find_profile(MINI).setting == profile.setting  # type: ignore[union-attr]


def test_noisy_machine_is_said_to_be_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_NOISE_PERCENT", -1.0)
    with pytest.raises(NoisyMachineError, match=r"standard error \d+\.\d %, expected at most"):
        profile_device(MINI, seconds=0.1, progress=False)
    assert find_profile(MINI) is None


def test_models_of_the_registry_are_timed_as_subnets_are() -> None:
    times = time_models(az.SPACES["nano"], RunSetting(), ["autoformer_nano"], 0.1, progress=False)
    assert set(times) == {"autoformer_nano"}
    assert time_subnet(MINI, RunSetting(), MINI.smallest, rounds=1) > 0
    make = prepare_models(az.SPACES["nano"], RunSetting(backend="compile"))
    assert make("autoformer_nano") is make("autoformer_nano")  # compiled once for all rounds


@pytest.mark.slow  # exports three graphs
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_graph_of_parts_is_the_exported_one(precision: str) -> None:
    from autoformer_zoo.network.vit import AutoFormer
    from autoformer_zoo.onnx.export import export_graph
    from autoformer_zoo.specialization.latency.onnx_parts import OnnxParts

    subnet = az.SubnetConfig(3, 64, (1, 2, 1), (2.0, 1.0, 2.0))
    network = AutoFormer(subnet, MINI.img_size, MINI.patch_size, num_classes=MINI.num_classes)
    for parameter in network.parameters():
        parameter.detach().normal_()
    made = OnnxParts.export(MINI, is_int8=precision != "fp32").model_of(subnet)
    exported = export_graph(network, precision)
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in exported.graph.node]
    shapes = [
        Counter((*t.dims, t.data_type) for t in model.graph.initializer if len(t.dims) > 1)
        for model in (made, exported)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow  # exports a graph
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graphs_of_parts_run(precision: str) -> None:
    make = prepare_runs(MINI, RunSetting(backend="onnxruntime", precision=precision, batch_size=2))
    for subnet in (MINI.smallest, MINI.largest):
        (logits,) = make(subnet)()
        assert logits.shape == (2, MINI.num_classes)
