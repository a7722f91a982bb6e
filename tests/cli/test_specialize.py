"""The verbs `specialize` and `profile`: tables, files, and what other verbs make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from autoformer_zoo.cli.inputs import read_config
from autoformer_zoo.models import factory
from autoformer_zoo.onnx import export
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization import front
from autoformer_zoo.specialization.constraints import macs_cost
from autoformer_zoo.specialization.latency import measure
from autoformer_zoo.specialization.latency.profile import BlockLatency, LatencyProfile, RunSetting
from autoformer_zoo.specialization.predictor import FOLDER
from autoformer_zoo.specialization.slices import load_slices
from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.made_cli import Run
from tests.helpers.made_search import make_profile
from tests.helpers.made_training import MINI


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path / "cache"))


def test_without_a_bound_the_reach_is_printed(run: Run) -> None:
    code, out, _ = run("specialize", "--space", "small")
    assert code == 0
    assert "smallest" in out
    assert "13.06" in out
    assert "latency: not measured on this machine" in out
    reach = json.loads(run("specialize", "--space", "small", "--json")[1])["reach"]
    assert reach["params"][0] == 13_057_320
    assert reach["top1"][0] < reach["top1"][1] < reach["top1"][2]


def test_best_subnets_are_printed_written_and_exported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, exported = [], []
    monkeypatch.setattr(factory, "create_model", lambda name, **given: made.append((name, given)))
    monkeypatch.setattr(export, "export_onnx", lambda *given, **kw: exported.append((given, kw)))
    out, onnx = tmp_path / "best.json", tmp_path / "best.onnx"
    common = ("specialize", "--space", "base", "--max-params", "50e6", "--top", "3")
    code, text, _ = run(*common, "--out", out, "--export", onnx)
    assert code == 0
    document = json.loads(out.read_text())
    assert document == json.loads(run(*common, "--json")[1])
    assert len(document["results"]) == 3
    assert all(each["params"] <= 50e6 for each in document["results"])
    best = SubnetConfig.from_dict(document["results"][0]["subnet"])
    assert f"1  {best.to_json()}" in text.splitlines()
    assert made == [("autoformer_base", {"pretrained": True, "subnet": best})]
    assert exported[0][0][1] == onnx
    assert read_config(out) == best  # what `extract` and `export --config` read


def test_profile_is_written_and_bounds_a_search(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MOST", 4)
    monkeypatch.setattr(measure, "MAX_NOISE_PERCENT", float("inf"))
    out = tmp_path / "profile.json"
    code, text, _ = run("profile", "--space", MINI.to_json(), "--seconds", "0.1", "--out", out)
    assert code == 0
    assert "4 subnets timed, standard error" in text
    assert LatencyProfile.load(out).num_timed == 4
    # Of another space: refused with what to do.
    code, _, err = run("specialize", "--space", "small", "--profile", out)
    assert code == 2
    assert "measure another one" in err


@pytest.fixture
def profile_of_small(tmp_path: Path) -> Path:
    """A file of made-up latencies of space small in int8."""
    small, cost = SPACES["small"], macs_cost(SPACES["small"])
    kinds = product(small.embed_dim, small.num_heads, small.mlp_ratio)
    profile = replace(
        make_profile(),
        setting=RunSetting(backend="onnxruntime", precision="int8"),
        img_size=small.img_size,
        patch_size=small.patch_size,
        rest_ns={str(dim): 1000 for dim in small.embed_dim},
        blocks=tuple(BlockLatency(*kind, ns=cost.block(*kind)) for kind in kinds),
    )
    file = tmp_path / "profile.json"
    file.write_text(profile.to_json())
    return file


def test_file_has_the_precision_of_the_profile_and_comes_after_the_table(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile_of_small: Path
) -> None:
    exported = []
    monkeypatch.setattr(factory, "create_model", lambda name, **_: name)
    monkeypatch.setattr(export, "export_onnx", lambda *_, **given: exported.append(given))
    command = ("specialize", "--space", "small", "--profile", profile_of_small)
    command = (*command, "--export", tmp_path / "best.onnx")
    assert run(*command)[0] == 0
    assert exported == [{"precision": "int8-dynamic"}]

    def fail(*_: object, **__: object) -> None:
        raise CheckpointError("no weights here")

    monkeypatch.setattr(factory, "create_model", fail)
    code, out, err = run(*command)
    assert (code, "predicted top-1" in out, "no weights here" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--profile PROFILE --precision bf16", "precision is bf16, but the profile was measured"),
        ("--profile PROFILE --threads 7", "threads is 7, but the profile was measured with 1"),
        ("--profile PROFILE --out PROFILE", "profile.json is an input as well"),
        ("--predictor NANO", "nano.npz predicts subnets of nano, not of small"),
        ("--predictor none.npz", "none.npz does not exist; expected a file of training.fit_pred"),
        ("--max-latency-ms 9 --max-params 1", "no subnet of the space has params from 0 to 1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_measuring(
    run: Run, monkeypatch: pytest.MonkeyPatch, profile_of_small: Path, flags: str, text: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(measure, "profile_device", refuse)
    before = profile_of_small.read_text()
    named = {"PROFILE": str(profile_of_small), "NANO": str(FOLDER / "nano.npz")}
    words = [named.get(word, word) for word in flags.split()]
    code, _, err = run("specialize", "--space", "small", *words)
    assert (code, err.count("\n")) == (2, 1), err
    assert text in err
    assert profile_of_small.read_text() == before


def test_front_is_drawn_beside_published_networks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile_of_small: Path
) -> None:
    monkeypatch.setattr(front, "BUDGETS", 3)
    plot = tmp_path / "front.png"
    command = ("specialize", "--space", "small", "--pareto", plot, "--profile", profile_of_small)
    code, out, err = run(*command)
    assert code == 0, err
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = plot.with_suffix(".csv").read_text()
    assert table.count(",predicted,") == 3
    assert "deit_small_patch16_224,published,79.8" in table
    assert f"{plot} and " in out

    plot = tmp_path / "nano.svg"
    command = ("specialize", "--space", "nano", "--pareto", plot, "--against", "params", "--json")
    assert len(json.loads(run(*command)[1])) >= 3  # the table, and nothing else
    assert "CIFAR-10 top-1, %" in plot.read_text()


def test_slices_are_listed_and_described_apart_from_published_models(run: Run) -> None:
    name, slice = next(iter(load_slices().items()))
    (row,) = [line.split() for line in run("list", name)[1].splitlines()[1:]]
    assert row[0] == name
    assert row[5:8] == ["-", "-", f"{slice.top1_percent:.1f}"]
    info = json.loads(run("info", name, "--json")[1])
    assert SubnetConfig.from_dict({k: info[k] for k in slice.subnet.to_dict()}) == slice.subnet
    assert info["predicted"]["top1_low"] == slice.top1_low
    assert {each["published"] for each in info["weights"]} == {None}
    assert f"{slice.top1_percent:.2f} top-1, 90 % interval" in run("info", name)[1]
    whole = json.loads(run("info", slice.model, "--json")[1])
    assert whole["predicted"] is None
    # NNI's files hold one subnet, so no slice can be cut from them.
    assert {each["name"] for each in whole["weights"]} - {
        each["name"] for each in info["weights"]
    } == {f"{slice.model}.nni_in1k"}
