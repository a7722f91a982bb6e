"""Scoring: counts by hand on a made folder, every kind of model, nothing random, clear refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autoformer_zoo import create_model
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from benchmarks import accuracy
from benchmarks.accuracy import PUBLISHED, TIMM_COLUMNS, main
from benchmarks.measure import classifiers
from benchmarks.measure.classifiers import (
    Classifier,
    MissingWeightsError,
    open_classifier,
    open_subnets,
)
from benchmarks.measure.evaluation import AnswerCounts, evaluate, open_dataset, open_real_labels
from benchmarks.measure.results import read_rows
from tests.helpers.made_weights import make_supernet

# timm's ImageDataset leaves a image's file to be closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CLASSES = 10
DATA = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "crop_pct": 1.0,
    "crop_mode": "center",
}
NANO = SPACES["nano"]
SMALLEST = NANO.smallest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of three grey images, in ImageNet's layout and names: class i is 10 * i."""
    root = tmp_path_factory.mktemp("imagenet")
    for index in range(3 * CLASSES):
        label = index // 3
        place = root / "val" / f"n{label:08d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32, 3), 10 * label, np.uint8)
        Image.fromarray(pixels).save(place / f"ILSVRC2012_val_{index + 1:08d}.JPEG", quality=100)
    return root


@pytest.fixture(scope="session")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano supernet with made-up weights."""
    path = tmp_path_factory.mktemp("supernet") / "supernet.safetensors"
    save_supernet(make_supernet(NANO.supernet, img_size=32, patch_size=4), path)
    return path


@pytest.fixture(scope="session")
def subnet_file(supernet: Path) -> Path:
    """The smallest subnet of that supernet in a file of its own."""
    path = supernet.with_name("subnet.safetensors")
    save_subnet(open_checkpoint(supernet).subnet(SMALLEST), path)
    return path


def classifier(run: Callable[[Tensor], Tensor], classes: int = CLASSES) -> Classifier:
    return Classifier("made", run, classes, 7, DATA, "eager", "fp32")


def by_brightness(images: Tensor) -> Tensor:
    """Rank classes by how near their grey is, class 9 taken for 8."""
    grey = (images.mean((1, 2, 3)) * 255)[:, None]
    scores = -(grey - 10.0 * torch.arange(CLASSES)).abs()
    scores[:, 8] += 15  # nearest for 7, 8 and 9
    return scores


def test_right_answers_are_counted_by_class(folder: Path) -> None:
    counts = evaluate(classifier(by_brightness), open_dataset("", folder, "val"), batch_size=7)

    assert counts.images == 30
    assert counts.by_class[:, 0].tolist() == [3] * 10
    assert counts.by_class[:, 1].tolist() == [3] * 7 + [0, 3, 0]
    assert counts.percent(1) == pytest.approx(80.0)
    assert counts.percent(5) == 100.0
    assert counts.real_percent(1) is None


def test_real_labels_go_by_the_images_name(folder: Path) -> None:
    # Images 1 and 28 to 30: class 3 too, class 8, none, class 0.
    labels: list[list[int]] = [[index // 3] for index in range(30)]
    labels[0], labels[27], labels[28], labels[29] = [0, 3], [8], [], [0]
    path = folder / "real.json"
    path.write_text(json.dumps(labels))

    dataset = open_dataset("", folder, "val")
    real = open_real_labels(str(path), dataset)
    counts = evaluate(classifier(by_brightness), dataset, batch_size=4, real=real)

    assert counts.real_images == 29
    assert counts.real_percent(1) == pytest.approx(100 * 25 / 29)  # wrong: class 7, and the last
    assert counts.real_percent(5) == pytest.approx(100 * 28 / 29)


@pytest.mark.parametrize("content", [None, "[[1]]", "{", "7"])
def test_real_labels_of_other_images_are_refused(content: str | None, folder: Path) -> None:
    path = folder / "other.json"
    path.write_text(content or "")
    source = "timm" if content is None else str(path)  # timm's are for 50,000 images
    with pytest.raises(ValueError, match=f"{source} does not hold ReaL labels of 30 images"):
        open_real_labels(source, open_dataset("", folder, "val"))


def test_limit_stops_at_the_end_of_a_batch(folder: Path) -> None:
    dataset = open_dataset("", folder, "val")
    assert evaluate(classifier(by_brightness), dataset, batch_size=4, limit=6).images == 8


def test_fewer_than_five_classes_have_a_top_5() -> None:
    counts = AnswerCounts(torch.zeros(2, 3, dtype=torch.long))
    counts.add(torch.tensor([[0.1, 0.9], [0.1, 0.9]]), torch.tensor([0, 1]))
    assert (counts.percent(1), counts.percent(5)) == (50.0, 100.0)


def test_folder_of_other_classes_is_refused(folder: Path) -> None:
    dataset = open_dataset("", folder, "val")
    with pytest.raises(ValueError, match="has 10 classes, made has 1000 outputs; --class-map"):
        evaluate(classifier(by_brightness, 1000), dataset, batch_size=4)


def test_broken_image_is_an_error_and_not_another_image(tmp_path: Path) -> None:
    for name, content in (("a", None), ("b", b"no image")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "1.png"
        Image.new("RGB", (32, 32)).save(path) if content is None else path.write_bytes(content)

    with pytest.raises(ValueError, match="an image of the data set cannot be read"):
        evaluate(classifier(by_brightness, 2), open_dataset("", tmp_path, "val"), batch_size=1)


def test_command_scores_a_file_and_writes_every_table(
    folder: Path, supernet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"autoformer_nano={supernet}"
    args = ["--models", spec, "--root", str(folder), "--threads", "1", "--batch-size", "16"]
    args += ["--out", str(tmp_path / "out.csv"), "--by-class", str(tmp_path / "classes.csv")]
    assert main([*args, "--save", "--results", str(tmp_path)]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    top1 = next(row for row in document["rows"] if row["what"] == "top1")
    assert (top1["model"], top1["repeats"]) == (spec, 30)
    header, line = csv.reader((tmp_path / "out.csv").open())
    assert tuple(header) == TIMM_COLUMNS
    assert line[0] == spec
    assert float(line[1]) == pytest.approx(top1["median"], abs=1e-3)
    assert float(line[1]) + float(line[2]) == pytest.approx(100)
    params_m = count_params(SUBNETS["autoformer_nano"], 32, 4, 10) / 1e6
    assert line[5:] == [f"{params_m:.2f}", "32", "1.000", "bicubic"]
    classes = list(csv.reader((tmp_path / "classes.csv").open()))[1:]
    assert [cells[1:3] for cells in classes] == [[str(i), "3"] for i in range(10)]
    assert {row.what for row in read_rows(tmp_path / "accuracy.csv")} == {
        *("top1", "top5", "throughput")
    }


def test_answers_are_those_of_the_model_in_that_file(folder: Path, supernet: Path) -> None:
    scored = open_classifier(f"autoformer_nano={supernet}", "cpu", "fp32", 1)
    model = create_model("autoformer_nano", checkpoint_path=supernet).eval()
    images = torch.rand(2, 3, 32, 32)

    with torch.inference_mode():
        torch.testing.assert_close(scored.run(images), model(images))


@pytest.mark.parametrize("name", ["", "autoformer_nano=", "autoformer_subnet="])
def test_file_of_ten_classes_is_scored_as_what_it_holds(
    name: str, folder: Path, subnet_file: Path
) -> None:
    scored = open_classifier(f"{name}{subnet_file}", "cpu", "fp32", 1)
    model = create_model("autoformer_subnet", checkpoint_path=subnet_file).eval()
    images = torch.rand(2, 3, 32, 32)

    with torch.inference_mode():
        torch.testing.assert_close(scored.run(images), model(images))
    assert scored.num_classes == 10
    nano = open_classifier("autoformer_nano", "cpu", "fp32", 1)
    assert scored.data == nano.data  # prepared as the images that such files are trained on
    assert evaluate(scored, open_dataset("", folder, "val"), batch_size=16).images == 30


def test_name_says_how_images_are_prepared_and_the_file_all_else(subnet_file: Path) -> None:
    scored = open_classifier(f"autoformer_tiny={subnet_file}", "cpu", "fp32", 1)
    assert (scored.num_classes, scored.data["input_size"]) == (10, (3, 32, 32))
    assert (scored.data["crop_pct"], scored.data["mean"]) == (0.875, (0.485, 0.456, 0.406))


def _other_classes(weights: SubnetWeights, classes: int) -> SubnetWeights:
    head = {f"head.{n}": weights.tensors[f"head.{n}"][:classes] for n in ("weight", "bias")}
    tensors = {k: v for k, v in weights.tensors.items() if not k.startswith("head.")}
    net = replace(weights.net, num_classes=classes)
    return replace(weights, net=net, tensors={**tensors, **(head if classes else {})})


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (7, "is for 7 classes with patches of 4 px and does not say how images are prepared: gi"),
        (0, "the file has no head, so nothing to score"),
    ],
)
def test_file_that_cannot_be_scored_alone_is_refused(
    classes: int, text: str, subnet_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_subnet(_other_classes(open_checkpoint(subnet_file).subnet(), classes), path)
    with pytest.raises(ValueError, match=f"other.safetensors: .*{text}"):
        open_classifier(str(path), "cpu", "fp32", 1)
    if classes:
        named = open_classifier(f"autoformer_nano={path}", "cpu", "fp32", 1)
        assert named.num_classes == classes


def test_supernet_without_a_subnet_is_refused(supernet: Path) -> None:
    for spec in (str(supernet), f"autoformer_subnet={supernet}"):
        with pytest.raises(
            ValueError, match=r"holds a supernet: give NAME=.* or --supernet .* wit"
        ):
            open_classifier(spec, "cpu", "fp32", 1)


def test_subnets_that_cannot_be_cut_are_refused(supernet: Path, subnet_file: Path) -> None:
    with pytest.raises(ValueError, match="holds one subnet, no supernet: score it by --models /"):
        open_subnets(str(subnet_file), [SMALLEST], "cpu", "fp32")
    with pytest.raises(ValueError, match=r"gone\.pth does not exist; expected the weights of"):
        open_subnets("autoformer_nano=gone.pth", [SMALLEST], "cpu", "fp32")
    large = SPACES["tiny"].largest
    with pytest.raises(ValueError, match=r"autoformer_nano\[0\]: the subnet does not fit the sup"):
        open_subnets(f"autoformer_nano={supernet}", [large], "cpu", "fp32")[0]()


@pytest.mark.parametrize("name", ["autoformer_nano=", "autoformer_subnet=", ""])
def test_list_of_subnets_is_cut_from_one_supernet(
    name: str, folder: Path, supernet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnets = tmp_path / "subnets.json"
    subnets.write_text(json.dumps([SMALLEST.to_dict(), NANO.largest.to_dict()]))
    args = ["--supernet", f"{name}{supernet}", "--subnets", str(subnets)]
    assert main([*args, "--root", str(folder), "--threads", "1"]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    models = [row["model"] for row in document["rows"] if row["what"] == "top1"]
    title = name.rstrip("=") or "autoformer_subnet"
    assert models == [f"{title}[0]", f"{title}[1]"]


def test_missing_weights_are_reported_and_never_random(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_one(spec: str, *_: object) -> Classifier:
        if spec == "prenas_tiny_6m.in1k":
            return classifier(by_brightness)
        raise MissingWeightsError(f"no weights of {spec} from https://example.org")

    monkeypatch.setattr(accuracy, "open_classifier", open_one)
    assert main(["--published", "--root", str(folder), "--threads", "1"]) == 0

    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert set(document["missing"]) == set(PUBLISHED) - {"prenas_tiny_6m.in1k"}
    assert sum(line.startswith("not scored: no weights of ") for line in table) == 5


def test_no_weights_at_all_is_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(folder / "nowhere"))

    assert main(["--models", "autoformer_tiny", "--root", str(folder)]) == 1

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "does not exist" in document["missing"]["autoformer_tiny"]


def test_timm_models_without_weights_are_not_scored() -> None:
    with pytest.raises(MissingWeightsError, match="timm has no weights of vit_small_"):
        open_classifier("vit_small_patch16_36x1_224", "cpu", "fp32", 1)


def test_failed_download_of_timm_is_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError("connection refused")

    monkeypatch.setattr(classifiers.timm, "create_model", fail)
    with pytest.raises(MissingWeightsError, match="test_vit: connection refused"):
        open_classifier("test_vit", "cpu", "fp32", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no list"),
        ('[{"depth": 1}]', "entry 0: SubnetConfig: unknown keys"),
    ],
)
def test_wrong_list_of_subnets_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "subnets.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        accuracy.read_subnets(path)


def test_subnets_come_from_models_of_this_package(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "subnets.json"
    path.write_text(json.dumps([SubnetConfig.uniform(1, 128, 2, 1.0).to_dict()]))

    assert main(["--supernet", "test_vit", "--subnets", str(path), "--root", str(folder)]) == 2
    assert "test_vit has no supernet" in capsys.readouterr().err


@pytest.mark.slow  # the exporter takes seconds
def test_onnx_file_scores_as_the_model(folder: Path, supernet: Path, tmp_path: Path) -> None:
    from autoformer_zoo.onnx.export import export_onnx

    model = create_model("autoformer_nano", checkpoint_path=supernet, subnet=SMALLEST).eval()
    export_onnx(model, tmp_path / "nano.onnx")

    scored = open_classifier(str(tmp_path / "nano.onnx"), "cpu", "fp32", 1)

    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(scored.run(images), model(images), rtol=1e-4, atol=1e-4)
    assert scored.backend == "onnxruntime"
    dataset = open_dataset("", folder, "val")
    assert evaluate(scored, dataset, batch_size=7).images == 30


@pytest.mark.data
def test_nano_on_cifar10_is_what_its_card_says(
    cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoformer_zoo.published import MODELS

    args = ["--models", "autoformer_nano", "--data", "torch/cifar10", "--root", str(cifar10)]
    assert main([*args, "--threads", "2"]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    top1 = next(row for row in document["rows"] if row["what"] == "top1")
    assert top1["repeats"] == 10_000
    expected = MODELS["autoformer_nano"].weights["cifar10"].measured.top1_percent
    assert top1["median"] == pytest.approx(expected, abs=0.05)
