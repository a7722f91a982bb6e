"""cli.py: predict and export, their JSON and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autoformer_zoo.classify.predict import predict
from autoformer_zoo.cli import export as onnx_command
from autoformer_zoo.cli import main as cli
from autoformer_zoo.cli import predict as predict_command
from autoformer_zoo.cli.models import describe
from autoformer_zoo.factory import create_model, extract_subnet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.published import CIFAR10_CLASSES
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_cli import SUBNET, Run, assert_refused, runner, write_config, write_supernet
from tests.helpers.onnx_models import reuse_exports, small_model


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    return write_supernet(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture
def subnet_file(supernet: Path, config: Path, tmp_path: Path) -> Path:
    path = tmp_path / "subnet.safetensors"
    assert cli.main(["extract", str(supernet), str(config), str(path)]) == 0
    return path


def test_predict_prints_what_python_returns(run: Run, subnet_file: Path, image: Path) -> None:
    run()  # forgets what the fixture printed
    arguments = ("predict", image, "--checkpoint", subnet_file, "--model", "autoformer_nano")
    code, out, err = run(*arguments, "--json", "--top-k", 3)
    model = create_model("autoformer_nano", checkpoint_path=subnet_file, subnet=SUBNET)
    [expected] = predict(model, image, top_k=3)
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {
            "image": str(image),
            "top": [
                {"label": p.label, "index": p.index, "probability": p.probability} for p in expected
            ],
        }
    ]
    _, text, _ = run(*arguments, "--top-k", 3)
    best = expected[0]
    assert text.splitlines()[0] == str(image)
    assert text.splitlines()[1] == f"  {100 * best.probability:5.1f} %  {best.label}"
    assert len(text.splitlines()) == 4


def test_predict_uses_the_embedded_model_by_default(
    run: Run, supernet: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs))
        return extract_subnet(load_supernet(supernet), SUBNET)

    monkeypatch.setattr(predict_command, "create_model", create)
    code, out, _ = run("predict", image)
    assert code == 0
    assert "%" in out
    assert asked == [("autoformer_nano", {"pretrained": True})]


def test_predict_takes_folders_in_one_json_document(
    run: Run, subnet_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.png", "a.png", "c.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    run()
    code, out, _ = run(
        *("predict", folder, "--checkpoint", subnet_file, "--model", "autoformer_nano"),
        *("--json", "--batch-size", 2),
    )
    answers = json.loads(out)
    assert code == 0
    assert [Path(answer["image"]).name for answer in answers] == ["a.png", "b.png", "c.png"]
    assert {top["label"] for top in answers[0]["top"]} <= set(CIFAR10_CLASSES)


def test_predict_cuts_the_named_model_out_of_a_supernet(
    run: Run, image: Path, tmp_path: Path
) -> None:
    network = AutoFormer(nano := describe("autoformer_nano").subnet, 32, 4, num_classes=10)
    net = Architecture(nano, (32, 32), (4, 4), in_chans=3, num_classes=10)
    path = tmp_path / "supernet.safetensors"
    save_supernet(SupernetWeights(network.state_dict(), net, "prefix"), path)
    code, out, _ = run("predict", image, "--checkpoint", path, "--model", "autoformer_nano")
    assert code == 0
    assert out.count("%") == 5
    assert_refused(run("predict", image, "--checkpoint", path), "holds a supernet")


def test_predict_with_a_1000_class_checkpoint_takes_imagenet(
    run: Run, image: Path, tmp_path: Path
) -> None:
    network = AutoFormer(SUBNET, img_size=32)
    net = Architecture(SUBNET, (32, 32), (16, 16), in_chans=3, num_classes=1000)
    path = tmp_path / "subnet.safetensors"
    save_subnet(SubnetWeights(network.state_dict(), net), path)
    code, out, _ = run("predict", image, "--checkpoint", path, "--json", "--top-k", 1)
    assert code == 0
    assert not json.loads(out)[0]["top"][0]["label"].startswith("class ")


def test_predict_does_not_guess_other_classes(run: Run, subnet_file: Path, image: Path) -> None:
    run()
    assert_refused(
        run("predict", image, "--checkpoint", subnet_file),
        "is for 10 classes, and does not say which: name with --model",
    )


def test_predict_skips_unreadable_images_when_told_to(
    run: Run, subnet_file: Path, image: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    run()
    arguments = ("predict", bad, image, "--checkpoint", subnet_file, "--model", "autoformer_nano")
    assert_refused(run(*arguments, "--json"), "bad.png is not a image")
    code, out, err = run(*arguments, "--json", "--skip-unreadable")
    assert code == 0
    assert len(json.loads(out)) == 1
    assert err == f"autoformer-zoo: skipped: {bad} is not a image that Pillow can read\n"
    code, out, _ = run(*arguments[:2], *arguments[3:], "--json", "--skip-unreadable")
    assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("https://example.org/cat.jpg",), "is a URL; images are not fetched: download it"),
        (("no/such.png",), "no/such.png does not exist"),
        (("IMAGE", "--top-k", "0"), "top_k is 0; expected a positive whole number"),
        (("IMAGE", "--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_wrong_images_and_numbers_are_refused(
    run: Run, subnet_file: Path, image: Path, arguments: Any, text: str
) -> None:
    run()
    given = [image if argument == "IMAGE" else argument for argument in arguments]
    checkpoint = ("--checkpoint", subnet_file, "--model", "autoformer_nano")
    assert_refused(run("predict", *given, *checkpoint), text)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's exporter write each graph of `small_model` once a process."""
    reuse_exports(monkeypatch)
    monkeypatch.setattr(onnx_command, "create_model", lambda *_, **__: small_model())


@pytest.mark.usefixtures("exported")
def test_export_writes_a_file_that_predict_runs(run: Run, image: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "net.onnx"
    code, out, err = run("export", "autoformer_nano", out_file)
    assert (code, err) == (0, "")
    params = sum(parameter.numel() for parameter in small_model().parameters())
    size = out_file.stat().st_size
    lines = out.splitlines()
    assert lines[0] == f"{out_file}: fp32, opset 18, {params:,} parameters, {size:,} bytes"
    assert [line.split(":")[0] for line in lines[1:4]] == ["  batch 1", "  batch 3", "  batch 8"]
    assert lines[4].startswith("  best class as in torch: 100.0 %")

    arguments = ("predict", image, "--backend", "onnxruntime", "--checkpoint", out_file)
    code, out, err = run(*arguments, "--top-k", 2, "--json")
    [expected] = predict(small_model(), image, top_k=2)
    assert (code, err) == (0, "")
    [answer] = json.loads(out)
    assert [top["label"] for top in answer["top"]] == [p.label for p in expected]
    assert answer["top"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)
    assert_refused(run(*arguments, "--device", "mps"), "expected cpu or cuda")


@pytest.mark.usefixtures("exported")
def test_export_json_is_the_report(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("export", "autoformer_nano", tmp_path / "net.onnx", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["path"] == str(tmp_path / "net.onnx")
    assert report["batch_sizes"] == [1, 3, 8]
    assert report["precision"] == "fp32"


@pytest.mark.slow  # torch's exporter
def test_export_cuts_a_subnet_and_names_its_origin(
    run: Run, supernet: Path, config: Path, tmp_path: Path
) -> None:
    out_file = tmp_path / "net.onnx"
    code, _, err = run(
        *("export", supernet, out_file, "--config", config, "--model", "autoformer_nano"),
    )
    assert (code, err) == (0, "")
    metadata = OnnxClassifier(out_file).metadata
    assert metadata.subnet == SUBNET.to_dict()
    assert metadata.labels == CIFAR10_CLASSES
    assert metadata.origin == "the file supernet.safetensors"
    assert metadata.license == "unknown"
    assert_refused(run("export", supernet, out_file, "--config", config), "name with --model")
