"""Scoring: counts by hand, classes by name, every kind of model, nothing random, clear refusals."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from autoformer_zoo import create_model
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import CIFAR10_CLASSES, SPACES, SUBNETS
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
from benchmarks.measure.evaluation import (
    AnswerCounts,
    evaluate,
    labels_by_name,
    open_dataset,
    open_real_labels,
)
from benchmarks.measure.results import read_rows
from tests.helpers.made_weights import make_supernet

# timm's ImageDataset leaves an image's file to be closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CLASSES = 10
DATA = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 1.0}
NANO = SPACES["nano"]
SMALLEST = NANO.smallest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's classes with three grey images each, named as ImageNet's: class i is 10 * i."""
    root = tmp_path_factory.mktemp("images")
    for index in range(3 * CLASSES):
        label = index // 3
        place = root / "val" / CIFAR10_CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((32, 32, 3), 10 * label, np.uint8))
        image.save(place / f"ILSVRC2012_val_{index + 1:08d}.JPEG", quality=100)
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


def by_brightness(images: Tensor) -> Tensor:
    """Rank classes by how near their grey is, class 9 taken for 8."""
    grey = (images.mean((1, 2, 3)) * 255)[:, None]
    scores = -(grey - 10.0 * torch.arange(CLASSES)).abs()
    scores[:, 8] += 15  # nearest for 7, 8 and 9
    return scores


def classifier(
    run: Callable[[Tensor], Tensor] = by_brightness, labels: tuple[str, ...] = CIFAR10_CLASSES
) -> Classifier:
    return Classifier("made", run, to_tensor, labels, 7, DATA, "eager", "fp32")


def counts_of(made: Classifier, root: Path, name: str = "", **options: Any) -> AnswerCounts:
    dataset = open_dataset(name, root, "validation", made.labels)
    return evaluate(made, dataset, **{"batch_size": 7, **options})


def save(image: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.mark.parametrize("name", ["", "torch/folder"])  # read here, and by torchvision for timm
@pytest.mark.parametrize("workers", [0, 1])
def test_right_answers_are_counted_by_class(name: str, workers: int, folder: Path) -> None:
    counts = counts_of(classifier(), folder, name, workers=workers)

    assert counts.images == 30
    assert counts.by_class[:, 0].tolist() == [3] * 10
    assert counts.by_class[:, 1].tolist() == [3] * 7 + [0, 3, 0]
    assert counts.percent(1) == pytest.approx(80.0)
    assert counts.percent(5) == 100.0
    assert counts.real_percent(1) is None
    limited = counts_of(classifier(), folder, name, workers=workers, batch_size=4, limit=6)
    assert limited.images == 8  # at the end of a batch


@pytest.mark.parametrize("name", ["", "torch/folder"])
def test_classes_are_matched_by_name_and_may_be_missing(name: str, tmp_path: Path) -> None:
    for label in (8, 1, 4):  # as folders their order is automobile, deer, ship
        image = Image.new("RGB", (8, 8), (10 * label,) * 3)
        save(image, tmp_path / CIFAR10_CLASSES[label] / "1.png")

    counts = counts_of(classifier(), tmp_path, name)

    assert counts.by_class[:, 0].nonzero()[:, 0].tolist() == [1, 4, 8]
    assert counts.percent(1) == 100


def test_class_folder_that_the_model_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    save(Image.new("RGB", (8, 8), (20, 20, 20)), tmp_path / "data" / "hamster" / "1.png")
    with pytest.raises(ValueError, match="not among the 10 known classes: 'hamster'; known are"):
        counts_of(classifier(), tmp_path / "data")
    with pytest.raises(ValueError, match="1 classes, made has 10 outputs, and their names differ"):
        counts_of(classifier(), tmp_path / "data", "torch/folder")
    (tmp_path / "map.txt").write_text("mouse\nrat\nhamster\n")  # gives folders their label
    made = classifier()
    dataset = open_dataset("", tmp_path / "data", "test", made.labels, tmp_path / "map.txt")
    assert evaluate(made, dataset, batch_size=1).by_class[2].tolist() == [1, 1, 1]


def test_names_of_imagenet_are_descriptions_and_wordnet_ids() -> None:
    imagenet = ImageNetInfo("imagenet-1k")
    known = labels_by_name(imagenet.label_descriptions())
    assert known["n01440764"] == known["tench, Tinca tinca"] == 0
    assert "crane" not in known  # a bird and a machine
    assert set(imagenet.label_names()) <= set(known)


@pytest.mark.parametrize("name", ["", "torch/folder"])
def test_images_are_read_as_in_prediction(name: str, tmp_path: Path) -> None:
    deep = np.full((8, 8), 128 * 256, np.uint16)  # 16 bits: half
    save(Image.fromarray(deep), tmp_path / "cat" / "1.png")
    save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "cat" / "2.png")  # white behind it
    seen: list[float] = []

    def run(images: Tensor) -> Tensor:
        seen.extend(images.mean((1, 2, 3)).tolist())
        return torch.zeros(len(images), CLASSES)

    counts_of(classifier(run), tmp_path, name)

    assert seen == pytest.approx([0.5, 1.0], abs=0.01)


@pytest.mark.parametrize(
    ("name", "workers"),
    [("", 0), ("torch/folder", 0), pytest.param("", 1, marks=pytest.mark.slow)],  # 5 s to end it
)
def test_broken_image_is_one_line_and_not_another_image(
    name: str, workers: int, tmp_path: Path
) -> None:
    save(Image.new("RGB", (32, 32)), tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="an image of the data set cannot be read: ") as caught:
        counts_of(classifier(), tmp_path, name, batch_size=1, workers=workers)
    assert "2.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_labels_go_by_the_images_name(folder: Path) -> None:
    # Images 1 and 28 to 30: class 3 too, class 8, none, class 0.
    labels: list[list[int]] = [[index // 3] for index in range(30)]
    labels[0], labels[27], labels[28], labels[29] = [0, 3], [8], [], [0]
    (folder / "real.json").write_text(json.dumps(labels))
    made = classifier()
    dataset = open_dataset("", folder, "val", made.labels)
    real = open_real_labels(str(folder / "real.json"), dataset)
    counts = evaluate(made, dataset, batch_size=4, real=real)

    assert counts.real_images == 29
    assert counts.real_percent(1) == pytest.approx(100 * 25 / 29)  # wrong: class 7, and the last
    assert counts.real_percent(5) == pytest.approx(100 * 28 / 29)


@pytest.mark.parametrize("content", [None, "[[1]]", "{", "7"])
def test_real_labels_of_other_images_are_refused(content: str | None, folder: Path) -> None:
    path = folder / "other.json"
    path.write_text(content or "")
    source = "timm" if content is None else str(path)  # timm's are for 50,000 images
    with pytest.raises(ValueError, match=f"{source} does not hold ReaL labels of 30 images"):
        open_real_labels(source, open_dataset("", folder, "val", CIFAR10_CLASSES))


def test_fewer_than_five_classes_have_a_top_5() -> None:
    counts = AnswerCounts(torch.zeros(2, 3, dtype=torch.long))
    counts.add(torch.tensor([[0.1, 0.9], [0.1, 0.9]]), torch.tensor([0, 1]))
    assert (counts.percent(1), counts.percent(5)) == (50.0, 100.0)


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


@pytest.mark.parametrize("name", ["autoformer_nano=", "autoformer_subnet="])
def test_answers_are_those_of_the_model_in_that_file(
    name: str, supernet: Path, subnet_file: Path, tmp_path: Path
) -> None:
    file = supernet if name == "autoformer_nano=" else tmp_path / "noted.safetensors"
    if name == "autoformer_subnet=":  # the header records how images are prepared
        notes = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]", "crop_pct": "1.0"}
        notes["label_names"] = json.dumps(CIFAR10_CLASSES)
        save_subnet(replace(open_checkpoint(subnet_file).subnet(), metadata=notes), file)
    scored = open_classifier(f"{name}{file}", "cpu", "fp32", 1)
    model = create_model(name.rstrip("="), checkpoint_path=file).eval()
    images = torch.rand(2, 3, 32, 32)

    with torch.inference_mode():
        torch.testing.assert_close(scored.run(images), model(images))
    assert scored.labels == CIFAR10_CLASSES
    assert scored.data["crop_pct"] == 1.0
    pixels = scored.prepare(Image.new("RGB", (32, 32), (255, 255, 255)))
    expected = [2.5] * 3 if "subnet" in name else [2.06, 2.12, 2.11]
    assert pixels.mean((1, 2)).tolist() == pytest.approx(expected, abs=0.01)


def _with_classes(weights: SubnetWeights, classes: int) -> SubnetWeights:
    head = {f"head.{n}": weights.tensors[f"head.{n}"][:classes] for n in ("weight", "bias")}
    tensors = {k: v for k, v in weights.tensors.items() if not k.startswith("head.")}
    net = replace(weights.net, num_classes=classes)
    return replace(weights, net=net, tensors={**tensors, **(head if classes else {})})


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (10, "is for 10 classes and does not record how images are prepared: give NAME=FILE"),
        (7, "is for 7 classes and does not record how images are prepared: give NAME=FILE"),
        (0, "the file has no head, so nothing to score"),
    ],
)
def test_file_that_does_not_describe_itself_needs_a_name(
    classes: int, text: str, subnet_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_subnet(_with_classes(open_checkpoint(subnet_file).subnet(), classes), path)
    with pytest.raises(ValueError, match=f"other.safetensors: .*{text}"):
        open_classifier(str(path), "cpu", "fp32", 1)
    if classes:
        named = open_classifier(f"autoformer_nano={path}", "cpu", "fp32", 1)
        assert named.num_classes == classes
        assert (named.labels[3] == "cat") == (classes == 10)


@pytest.mark.parametrize("name", ["", "autoformer_subnet="])
def test_supernet_without_a_subnet_is_refused(name: str, supernet: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a supernet: give NAME=.* or --supernet .* wit"):
        open_classifier(f"{name}{supernet}", "cpu", "fp32", 1)


def test_subnets_that_cannot_be_cut_are_refused(supernet: Path, subnet_file: Path) -> None:
    with pytest.raises(ValueError, match="score it by --models /"):
        open_subnets(str(subnet_file), [SMALLEST], "cpu", "fp32")
    with pytest.raises(ValueError, match="test_vit has no supernet"):
        open_subnets("test_vit", [SMALLEST], "cpu", "fp32")
    large, spec = SPACES["tiny"].largest, f"autoformer_nano={supernet}"
    with pytest.raises(ValueError, match=rf"{re.escape(spec)}\[0\]: the subnet does not fit the s"):
        open_subnets(spec, [large], "cpu", "fp32")[0]()


@pytest.mark.parametrize("is_front", [False, True])
def test_list_of_subnets_is_cut_from_one_supernet(
    folder: Path,
    supernet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_front: bool,
) -> None:
    subnets = tmp_path / "subnets.json"
    listed = [SMALLEST.to_dict(), NANO.largest.to_dict()]
    results = [{"subnet": subnet, "latency_ms": 1.0} for subnet in listed]
    front = {"img_size": 16, "results": results}
    subnets.write_text(json.dumps(front if is_front else listed))
    spec = f"autoformer_nano={supernet}"
    args = ["--supernet", spec, "--subnets", str(subnets)]
    assert main([*args, "--root", str(folder), "--threads", "1"]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [row for row in document["rows"] if row["what"] == "top1"]
    size = "16x16" if is_front else "32x32"
    assert all(size in row["input"] for row in rows)
    # Two supernets' subnets have different names.
    assert [row["model"] for row in rows] == [f"{spec}[0]", f"{spec}[1]"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no list"),
        ('[{"depth": 1}]', "entry 0: SubnetConfig: unknown keys"),
        ('{"results": []}', "holds no list"),
    ],
)
def test_wrong_list_of_subnets_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "subnets.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        accuracy.read_subnets(path)


def test_missing_weights_are_reported_and_never_random(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_one(spec: str, *_: object) -> Classifier:
        if spec == "prenas_tiny_6m.in1k":
            return classifier()
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


def test_timm_models_without_weights_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError("connection refused")

    with pytest.raises(MissingWeightsError, match="timm has no weights of vit_small_"):
        open_classifier("vit_small_patch16_36x1_224", "cpu", "fp32", 1)
    monkeypatch.setattr(classifiers.timm, "create_model", fail)
    with pytest.raises(MissingWeightsError, match="test_vit: connection refused"):
        open_classifier("test_vit", "cpu", "fp32", 1)


@pytest.mark.slow  # the exporter takes seconds
def test_onnx_file_scores_as_the_model(folder: Path, supernet: Path, tmp_path: Path) -> None:
    from autoformer_zoo.onnx.export import export_onnx

    model = create_model("autoformer_nano", checkpoint_path=supernet, subnet=SMALLEST).eval()
    export_onnx(model, tmp_path / "nano.onnx")

    scored = open_classifier(str(tmp_path / "nano.onnx"), "cpu", "fp32", 1)

    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(scored.run(images), model(images), rtol=1e-4, atol=1e-4)
    assert scored.name == str(tmp_path / "nano.onnx")  # files of one name stay apart
    assert scored.backend == "onnxruntime"
    assert scored.params == pytest.approx(count_params(SMALLEST, 32, 4, 10), rel=0.02)
    assert counts_of(scored, folder).images == 30


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
