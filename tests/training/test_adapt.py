"""From a folder of images to a front and an ONNX file: stages, resuming, bounds, wrong input."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import autoformer_zoo as az
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx.check import OnnxReport
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.latency.measure import machine_name
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from autoformer_zoo.weights.checkpoint import save_supernet
from tests.helpers.made_photos import write_photos
from tests.helpers.made_search import make_profile, make_weights
from tests.helpers.made_training import MINI
from training import adapt as adapt_module
from training.adapt import FrontConfig, adapt, main, recipe
from training.search import evaluation
from training.search.evaluation import accuracy_on, inherited_accuracy, open_task
from training.settings.config import Resources, TrainConfig
from training.train import train

pytestmark = pytest.mark.xdist_group("adapt")  # which runs its commands once

CLASSES = ["blue", "green", "grey", "red"]
BOUND = 0.4  # ms; the space reaches 0.032 to 0.768
RESOURCES = Resources(workers=0, plot=False, device="cpu")
RESULTS = (
    *("latency.json", "supernet/weights.safetensors", "accuracies/accuracies.json"),
    *("predictor.npz", "front.json", "front.csv", "front.svg", "model.safetensors"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images to train on and 24 held out, with a supernet for two classes and a profile."""
    root = write_photos(tmp_path_factory.mktemp("photos"), train=20, val=6)
    space = replace(MINI, num_classes=2)
    torch.manual_seed(0)
    save_supernet(make_weights(space), root / "supernet.safetensors")
    (root / "profile.json").write_text(make_profile().to_json())
    return root


def flags(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--data-dir", str(photos), "--out", str(out), "--space", MINI.to_json()),
        *("--supernet", str(photos / "supernet.safetensors")),
        *("--profile", str(photos / "profile.json"), "--stages", "2:16", "--batch-size", "8"),
        *("--precision", "fp32", "--measured", "30", "--workers", "0", "--device", "cpu", *more),
    ]


def stop(*rest: object, **more: object) -> NoReturn:
    raise KeyboardInterrupt


def config_of(photos: Path) -> TrainConfig:
    config = recipe(str(photos / "supernet.safetensors"), photos, space=MINI.to_json())
    (stage,) = config.stages
    return replace(config, stages=(replace(stage, epochs=2),), batch_size=8, precision="fp32")


def run(photos: Path, out: Path, bound: float = BOUND) -> dict[str, Any]:
    wanted = FrontConfig(max_latency_ms=bound, measured=30, profile=str(photos / "profile.json"))
    return adapt(config_of(photos), wanted, photos, out, RESOURCES, progress=False)


def read_front(out: Path) -> list[dict[str, Any]]:
    front: list[dict[str, Any]] = json.loads((out / "front.json").read_text())["results"]
    return front


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(photos, out)
    return out


def test_front_keeps_the_bound_and_its_accuracies_are_measured(photos: Path, whole: Path) -> None:
    front = read_front(whole)
    cost, latencies = make_profile().cost(MINI), [each["latency_ms"] for each in front]
    assert latencies == sorted(latencies)
    assert latencies[-1] <= BOUND
    predicted = [each["top1"]["value"] for each in front]
    assert predicted == sorted(predicted)
    task = open_task(photos, whole / "supernet", half=False, device="cpu")
    assert json.loads((whole / "front.json").read_text())["img_size"] == task.img_size == 16
    for each in front:
        subnet = SubnetConfig.from_dict(each["subnet"])
        assert cost.value(subnet) == each["latency_ms"]
        assert task.accuracy(subnet) == each["held_out_percent"]
    assert "<svg" in (whole / "front.svg").read_text()
    with (whole / "front.csv").open() as file:
        measured = [float(row["measured_top1_percent"]) for row in csv.DictReader(file)]
    assert measured == [round(each["held_out_percent"], 3) for each in front]


def test_latencies_of_another_machine_are_not_taken_for_this_ones(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = replace(make_profile(), machine=machine_name("cpu"))
    monkeypatch.setattr(adapt_module, "profile_device", lambda *_, **__: ours)
    monkeypatch.setattr(adapt_module, "train", stop)
    for profile, expected in ((str(photos / "profile.json"), make_profile()), ("", ours)):
        with pytest.raises(KeyboardInterrupt):
            adapt(config_of(photos), FrontConfig(profile=profile), photos, tmp_path, RESOURCES)
        assert LatencyProfile.load(tmp_path / "latency.json").machine == expected.machine
    assert ours.machine != make_profile().machine


def test_chosen_model_has_the_folders_classes_in_both_files(photos: Path, whole: Path) -> None:
    best = read_front(whole)[-1]
    model = az.create_model("autoformer_subnet", checkpoint_path=whole / "model.safetensors").eval()
    assert model.cfg.to_dict() == best["subnet"]
    assert list(model.pretrained_cfg["label_names"]) == CLASSES
    batches = open_task(photos, whole / "supernet", half=False, device="cpu").batches
    assert accuracy_on(model, batches) == best["held_out_percent"]
    onnx = az.OnnxClassifier(whole / "model.onnx")
    assert list(onnx.metadata.labels) == CLASSES
    assert onnx.metadata.subnet == best["subnet"]


def test_run_that_is_stopped_in_every_stage_ends_with_the_same_files(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scored = tmp_path / "run", list[object]()

    def train_partly(*rest: Any, **more: Any) -> NoReturn:
        train(*rest, **more, stop_at=7)
        raise KeyboardInterrupt

    def score_some(*rest: Any) -> float:
        scored.append(rest)
        return inherited_accuracy(*rest) if len(scored) < 12 else stop()

    for module, name, stopped in (
        (adapt_module, "train", train_partly),
        (evaluation, "inherited_accuracy", score_some),
        (adapt_module, "fit_predictor", stop),
        (adapt_module, "find_front", stop),
        (adapt_module, "draw_front", stop),
        (adapt_module, "export_onnx", stop),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                run(photos, out)
    run(photos, out)
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]


def refuse(*rest: object, **more: object) -> NoReturn:
    raise AssertionError("made again")


def test_another_bound_makes_the_front_and_the_model_again(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "supernet", tmp_path / "supernet")
    exported = []

    def score(supernet: object, subnet: SubnetConfig, *rest: object) -> float:
        return 10.0 * subnet.depth + sum(subnet.num_heads) + sum(subnet.mlp_ratio)

    def export(model: AutoFormer, *rest: object, **more: object) -> OnnxReport:
        exported.append(model.cfg.to_dict())
        return OnnxReport((), (), 1.0, 0.0, "", 0, 0, "fp32", 18)

    monkeypatch.setattr(evaluation, "inherited_accuracy", score)
    monkeypatch.setattr(adapt_module, "export_onnx", export)
    front = run(photos, tmp_path)["results"]
    assert len(front) > 3
    monkeypatch.setattr(adapt_module, "fit_predictor", refuse)
    shorter = run(photos, tmp_path, BOUND / 2)["results"]
    assert shorter[-1]["latency_ms"] <= BOUND / 2 < front[-1]["latency_ms"]
    assert exported == [front[-1]["subnet"], shorter[-1]["subnet"]]
    model = az.create_model("autoformer_subnet", checkpoint_path=tmp_path / "model.safetensors")
    assert model.cfg.to_dict() == exported[-1]


def test_command_prints_the_front_and_makes_nothing_again(
    photos: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fit_predictor", "find_front", "export_onnx"):
        monkeypatch.setattr(adapt_module, name, refuse)
    assert main(flags(photos, whole, "--max-latency-ms", str(BOUND))) == 0
    out, err = capsys.readouterr()
    front = read_front(whole)
    assert len(out.splitlines()) == 1 + len(front) + 2
    last = json.loads(out.splitlines()[-1])
    assert last.items() >= front[-1].items()
    assert last["onnx"] == str(whole / "model.onnx")
    assert "supernet.safetensors has 2 classes, the data 4: its head is a new one" in err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--supernet", "autoformer_nan"], "the nearest are autoformer_nano"),
        (["--supernet", "no.pth"], "no.pth: No such file"),
        (["--max-latency-ms", "0.01"], "the space reaches 0.032 to"),
        (["--data-dir", "nothing"], "nothing/train is not there"),
        (["--profile", "no.json"], "no.json"),
        (["--measured", "3"], "measured is 3; expected a value greater than or equal to 30"),
        (["--space", "nano"], "name its space"),
        (["--images", "-1"], "images is -1"),
        (["--sampling", "fixed", "--subnet", "autoformer_nano"], "sampling is fixed; expected uni"),
        (["--data.held-out-split", "", "--held-out-per-class", "0"], "held_out_per_class is 0 and"),
        (["--latency-threads", "2"], "has its own device, backend, precision, batch size and th"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str
) -> None:
    words = flags(photos, tmp_path / "run")
    for flag in more[::2]:  # tyro refuses one that is given twice
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    assert main([*words, *more]) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("python -m training.adapt: ")]
    assert text in line
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started in 2 processes; expected one"):
        run(photos, tmp_path / "run")


def test_empty_class_folder_is_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="cat"):
        adapt(config_of(photos), FrontConfig(), tmp_path / "data", tmp_path / "run", RESOURCES)
    assert not (tmp_path / "run").exists()
