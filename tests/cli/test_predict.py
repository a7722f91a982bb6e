"""predict and export: their output, and what is refused once the network is there."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from autoformer_zoo.classify.predict import predict
from autoformer_zoo.models import factory
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.published import CIFAR10_CLASSES, CIFAR10_MEAN, SUBNETS
from autoformer_zoo.weights.checkpoint import SubnetWeights, save_subnet
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.layouts import Architecture
from tests.helpers.made_cli import SUBNET, Run, assert_refused, write_image, write_supernet
from tests.helpers.onnx_models import IN_ONE_PROCESS, reuse_exports, small_model


@pytest.fixture
def file(run: Run, supernet: Path, config: Path, tmp_path: Path) -> Path:
    """A subnet's file, cut by the command."""
    path = tmp_path / "subnet.safetensors"
    assert run("extract", supernet, config, path)[0] == 0
    return path


@pytest.fixture
def model(file: Path) -> tuple[Any, ...]:
    return ("--checkpoint", file, "--model", "autoformer_nano")


def test_predict_prints_what_python_returns(run: Run, file: Path, model: Any, image: Path) -> None:
    arguments = ("predict", image, *model, "--top-k", 3)
    code, out, err = run(*arguments, "--json")
    network = create_model("autoformer_nano", checkpoint_path=file, subnet=SUBNET)
    [expected] = predict(network, image, top_k=3)
    top = [{"label": p.label, "index": p.index, "probability": p.probability} for p in expected]
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"image": str(image), "top": top}]
    name, first, *others = run(*arguments)[1].splitlines()
    assert name == str(image)
    assert first == f"  {100 * expected[0].probability:5.1f} %  {expected[0].label}"
    assert len(others) == 2


def test_predict_reads_standard_input(
    run: Run, model: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(run("predict", image, *model, "--json")[1])[0]["top"]
    stdin = io.BytesIO(image.read_bytes())
    stdin.name = "<stdin>"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    [answer] = json.loads(run("predict", "-", *model, "--json")[1])
    assert answer == {"image": "<stdin>", "top": expected}
    monkeypatch.setattr(sys, "stdin", None)
    assert_refused(run("predict", "-", *model), "standard input is closed; give image files")


def test_predict_cuts_the_named_model_out_of_a_supernet(
    run: Run, image: Path, tmp_path: Path
) -> None:
    arguments = (
        "predict",
        image,
        "--checkpoint",
        write_supernet(tmp_path, SUBNETS["autoformer_nano"]),
    )
    code, out, _ = run(*arguments, "--model", "autoformer_nano")
    assert code == 0
    assert out.count("%") == 5
    assert_refused(run(*arguments), "holds a supernet: give --model NAME, whose subnet is cut out")


def test_only_names_of_1000_classes_are_guessed(
    run: Run, file: Path, image: Path, tmp_path: Path
) -> None:
    network = AutoFormer(SUBNET, img_size=32)
    net = Architecture(SUBNET, (32, 32), (16, 16), in_chans=3, num_classes=1000)
    path = tmp_path / "imagenet.safetensors"
    save_subnet(SubnetWeights(network.state_dict(), net), path)
    code, out, _ = run("predict", image, "--checkpoint", path, "--json", "--top-k", 1)
    assert code == 0
    assert not json.loads(out)[0]["top"][0]["label"].startswith("class ")
    assert_refused(
        run("predict", image, "--checkpoint", file),
        "has 10 classes but no names of them: give --model NAME",
    )


def test_fine_tuned_state_dict_runs_with_its_own_number_of_classes(
    run: Run, image: Path, tmp_path: Path
) -> None:
    network = create_model("autoformer_nano", num_classes=7)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "tuned.pth.tar")
    model = ("--checkpoint", tmp_path / "tuned.pth.tar", "--model", "autoformer_nano")
    code, out, err = run("predict", image, *model, "--top-k", 7)
    assert (code, err) == (0, "")
    assert out.count("class ") == 7


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_unreadable_images_end_nothing(run: Run, model: Any, tmp_path: Path, flags: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        write_image(folder, name)
    (folder / "b.png").write_bytes(b"nothing")
    Image.new("RGB", (8000, 1)).save(folder / "d.png")
    arguments = ("predict", folder, *model, "--top-k", 1, "--batch-size", 2, *flags)
    code, out, err = run(*arguments)
    skipped, summary = err.splitlines()
    assert code == 2
    assert skipped.startswith(f"autoformer-zoo: skipped: {folder / 'b.png'} cannot be read as an")
    assert "1 of 4 images could not be read" in summary
    assert "--skip-unreadable" in summary
    names = [answer["image"] for answer in json.loads(out)] if flags else out.splitlines()[::2]
    assert [Path(name).name for name in names] == ["a.png", "c.png", "d.png"]
    assert run(*arguments, "--skip-unreadable") == (0, out, skipped + "\n")


def test_json_is_whole_whatever_happens(
    run: Run, model: Any, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    code, out, _ = run("predict", tmp_path / "bad.png", *model, "--json", "--skip-unreadable")
    assert (code, json.loads(out)) == (0, [])
    assert_refused(run("predict", image, "none.png", *model, "--json"), "none.png does not exist")
    monkeypatch.setattr(AutoFormer, "forward", lambda self, x: torch.full((len(x), 10), torch.nan))
    code, out, err = run("predict", image, *model, "--json")
    assert (code, json.loads(out)) == (2, [])
    assert "returned NaN" in err


def test_progress_is_shown_to_who_watches_and_threads_are_set(
    run: Run, model: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run("predict", image, image, *model, "--threads", 3)
    assert code == 0
    assert "2/2" in err
    assert out.count(str(image)) == 2
    assert found == [3]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's exporter write each graph of `small_model` once a process."""
    reuse_exports(monkeypatch)
    monkeypatch.setattr(factory, "create_model", lambda *_, **__: small_model())


@IN_ONE_PROCESS
@pytest.mark.usefixtures("exported")
def test_export_writes_a_file_that_predict_runs(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_file = tmp_path / "net.onnx"
    code, out, err = run("export", "autoformer_nano", out_file)
    assert (code, err) == (0, "")
    params = sum(parameter.numel() for parameter in small_model().parameters())
    size = out_file.stat().st_size
    lines = out.splitlines()
    assert lines[0] == f"{out_file}: fp32, opset 18, {params:,} parameters, {size:,} bytes"
    assert [line.split(":")[0] for line in lines[1:4]] == ["  batch 1", "  batch 3", "  batch 8"]
    assert lines[4].startswith("  best class as in PyTorch: 100.0 %")

    arguments = ("predict", image, "--backend", "onnxruntime", "--checkpoint", out_file)
    code, out, err = run(*arguments, "--top-k", 2, "--threads", 1, "--json")
    [expected] = predict(small_model(), image, top_k=2)
    assert (code, err) == (0, "")
    [answer] = json.loads(out)
    assert [top["label"] for top in answer["top"]] == [p.label for p in expected]
    assert answer["top"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)
    assert_refused(run(*arguments, "--device", "mps"), "expected cpu or cuda")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, out, err = run("export", "autoformer_nano", out_file, "--json")
    report = json.loads(out)
    assert report["path"] == str(out_file)
    assert report["batch_sizes"] == [1, 3, 8]
    assert "autoformer-zoo: exporting the graph" in err  # to who watches


NOTES = {
    "label_names": tuple("abcdefghij"),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "origin": "my own photos",
    "license": "cc0-1.0",
}


@pytest.mark.slow  # torch's exporter
@pytest.mark.parametrize("notes", [{}, NOTES], ids=["unknown", "described"])
def test_exported_file_records_what_its_source_does(
    run: Run, image: Path, config: Path, tmp_path: Path, notes: dict[str, Any]
) -> None:
    supernet = write_supernet(tmp_path, notes=cfg_to_notes(notes))
    cut, out_file = tmp_path / "cut.safetensors", tmp_path / "a.onnx"
    assert run("extract", supernet, config, cut)[0] == 0
    if not notes:
        assert_refused(run("export", cut, out_file), "no names of them: give --model NAME")
    model = () if notes else ("--model", "autoformer_nano")
    assert run("export", cut, out_file, *model)[::2] == (0, "")

    metadata = OnnxClassifier(out_file).metadata
    assert metadata.subnet == SUBNET.to_dict()
    assert metadata.labels == notes.get("label_names", CIFAR10_CLASSES)
    assert metadata.mean == notes.get("mean", CIFAR10_MEAN)
    assert metadata.crop_mode == notes.get("crop_mode", "center")
    assert metadata.origin == notes.get("origin", "the file cut.safetensors")
    assert metadata.license == notes.get("license", "unknown")
    assert "nano." not in metadata.name
    arguments = ("predict", image, "--json", "--checkpoint")
    expected = json.loads(run(*arguments, cut, *model)[1])[0]["top"]
    found = json.loads(run(*arguments, out_file, "--backend", "onnxruntime")[1])[0]["top"]
    assert [top["label"] for top in found] == [top["label"] for top in expected]
