"""export.py and what it calls: files that agree with PyTorch, or no file at all."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from autoformer_zoo.classify.predict import make_transform
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.frozen import freeze
from autoformer_zoo.onnx import check as onnx_check
from autoformer_zoo.onnx import export as onnx_export
from autoformer_zoo.onnx import quantize as onnx_quantize
from autoformer_zoo.onnx.classifier import OnnxClassifier, prepare
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import OnnxMetadata
from autoformer_zoo.onnx.preprocess import prepend_preprocessing
from autoformer_zoo.published import SPACES
from tests.helpers.onnx_models import (
    IN_ONE_PROCESS,
    SUBNET,
    made_images,
    reuse_exports,
    small_model,
)

pytestmark = IN_ONE_PROCESS


@pytest.fixture(autouse=True)
def _reused(monkeypatch: pytest.MonkeyPatch) -> None:
    reuse_exports(monkeypatch)


def export(path: Path, **options: Any) -> Any:
    return export_onnx(small_model(), path, **options)


def test_file_agrees_with_torch_at_any_batch_size(tmp_path: Path) -> None:
    before = copy.deepcopy(small_model().state_dict())
    report = export(tmp_path / "net.onnx")
    torch.testing.assert_close(small_model().state_dict(), before, rtol=0, atol=0)
    assert report.batch_sizes == (1, 3, 8)
    assert max(report.max_differences) < 1e-5
    assert report.top1_agreement == 1
    assert report.size_bytes == (tmp_path / "net.onnx").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]  # one file, nothing left over
    images = torch.randn(5, 3, 16, 24)
    with torch.no_grad():
        expected = small_model()(images)
    found = OnnxClassifier(tmp_path / "net.onnx").run(images.numpy())
    assert np.abs(found - expected.numpy()).max() < 1e-5


reads_22 = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 20),
    reason="this onnxruntime reads opsets up to 21",
)


@pytest.mark.parametrize("softmax", [False, True])
def test_input_and_output_have_the_names_that_clients_look_for(
    softmax: bool, tmp_path: Path
) -> None:
    export(tmp_path / "net.onnx", softmax=softmax)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.input] == ["pixel_values"]
    assert [value.name for value in graph.output] == ["probabilities" if softmax else "logits"]


def test_graph_is_what_engines_run_fast(tmp_path: Path) -> None:
    export(tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMul") == 12 * SUBNET.depth  # 4 linear layers, 2 of attention, 6 others
    assert not {"Gather", "GatherElements", "Cast", "Where"} & set(kinds)
    assert kinds.count("Slice") <= 3 * SUBNET.depth + 3  # q, k and v, and the pooling's
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > 1000]
    assert len({tensor.raw_data for tensor in large}) == len(large)  # each constant once


def test_file_says_what_it_is(tmp_path: Path) -> None:
    report = export(tmp_path / "net.onnx")
    metadata = OnnxClassifier(tmp_path / "net.onnx").metadata
    assert metadata.input_size == (16, 24)
    assert metadata.subnet == SUBNET.to_dict()
    assert metadata.labels is not None
    assert metadata.labels[3] == "cat"
    assert metadata.mean == (0.4914, 0.4822, 0.4465)
    assert (metadata.interpolation, metadata.crop_pct) == ("bicubic", 1.0)
    assert metadata.license == "mit"
    assert metadata.checked is not None
    assert metadata.checked["max_differences"] == list(report.max_differences)
    text = (tmp_path / "net.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in text  # no paths of the machine


def test_int8_dynamic_agrees_and_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Before 1.32 the quantizer refuses the exporter's shapes, and 1.18 reads a table that onnx
    # dropped.
    def look(source: Path, *rest: Any) -> None:
        assert not onnx.load(source).graph.value_info
        assert onnx.mapping.TENSOR_TYPE_TO_NP_TYPE[onnx.TensorProto.INT8] == np.int8
        dynamic(source, *rest)

    dynamic = onnx_quantize._dynamic
    monkeypatch.setattr(onnx_quantize, "_dynamic", look)
    full = export(tmp_path / "a.onnx")
    small = export(tmp_path / "b.onnx", precision="int8-dynamic")
    assert capfd.readouterr() == ("", "")
    assert small.size_bytes < 0.5 * full.size_bytes
    assert small.top1_agreement >= 0.8
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 4 * SUBNET.depth


def test_int8_static_is_calibrated_with_images(tmp_path: Path) -> None:
    report = export(tmp_path / "a.onnx", precision="int8-static", calibration=made_images(20))
    assert report.top1_agreement >= 0.8
    kinds = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert kinds & {"QuantizeLinear", "DynamicQuantizeLinear"} == {"QuantizeLinear"}


@pytest.mark.parametrize("batch_size", [1, 3, 16, 32])
def test_ranges_of_int8_static_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    images = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)

    def ranges(size: int | str) -> dict[str, list[float]]:
        proto = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 18]> f (float[{size}, 2] x) => '
            f"(float[{size}, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}, float[2] b = {{5, 6}}> "
            "{ z = MatMul(x, w) y = Add(z, b) }"
        )
        proto.graph.node[0].name = "linear"
        found = onnx_quantize.quantize(proto, images).graph.initializer
        return {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in found}

    assert "x_scale" in ranges(batch_size)
    assert ranges(batch_size) == ranges("B")


def test_calibration_images_are_spread_over_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_CALIBRATION", 6)
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (label,) * 3).save(tmp_path / str(label) / f"{i}.png")
    sizes = ((8, 8), 10, (0.0,) * 3, (1 / 255,) * 3, "bicubic", 1.0)
    metadata = OnnxMetadata(*sizes, None, "int8-static", False, False)
    inputs = onnx_export._calibration_inputs(tmp_path, metadata)
    assert inputs is not None
    assert inputs[:, 0, 0, 0].round().tolist() == [0, 0, 1, 1, 2, 2]


def test_preprocessing_in_the_graph_is_timms(tmp_path: Path) -> None:
    export(tmp_path / "net.onnx", preprocess=True)
    classifier = OnnxClassifier(tmp_path / "net.onnx")
    transform = make_transform(small_model())
    for image in made_images(12, seed=1):
        with torch.no_grad():
            expected = small_model()(transform(image)[None]).softmax(-1).numpy()
        logits = torch.from_numpy(classifier.run(np.asarray(image)[None]))
        assert np.abs(logits.softmax(-1).numpy() - expected).max() <= 0.01
    # No operator that engines compute differently, as Resize with antialiasing.
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert not kinds & {"Resize", "Upsample", "CastLike"}


@pytest.mark.parametrize("opset", [18, pytest.param(22, marks=reads_22)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_preprocessing_differs_by_a_few_grey_levels_at_most(
    size: tuple[int, int], filter_name: str, crop_mode: str, opset: int
) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    sizes = (size, 10, mean, std, filter_name, 0.9)
    metadata = OnnxMetadata(*sizes, None, "fp32", True, False, crop_mode=crop_mode)
    identity = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> f (float[B, 3, {size[0]}, {size[1]}] x) '
        f"=> (float[B, 3, {size[0]}, {size[1]}] y) {{ y = Identity(x) }}"
    )
    proto = prepend_preprocessing(identity, metadata, None)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for image in made_images(10):
        found = session.run(None, {"images": np.asarray(image)[None]})[0][0]
        differences = np.abs(found - prepare(image, metadata)) * np.reshape(std, (3, 1, 1)) * 255
        # Pillow 13 takes rows first in some images, which rounds otherwise.
        assert differences.max() < 5
        assert (differences > 0.5).mean() < 0.25


@pytest.mark.slow  # another export
@pytest.mark.parametrize("opset", [20, 22])
def test_softmax_fixed_batch_and_opset(tmp_path: Path, opset: int) -> None:
    report = export(tmp_path / "net.onnx", softmax=True, batch_size=2, opset=opset)
    assert report.batch_sizes == (2,)
    classifier = OnnxClassifier(tmp_path / "net.onnx")
    outputs = classifier.run(np.zeros((5, 3, 16, 24), np.float32))
    assert outputs.shape == (5, 10)
    assert np.allclose(outputs.sum(1), 1, atol=1e-5)


@pytest.mark.slow  # another export
def test_fp16_halves_the_file_and_keeps_fp32_outside(tmp_path: Path) -> None:
    full, half = export(tmp_path / "a.onnx"), export(tmp_path / "b.onnx", precision="fp16")
    assert half.size_bytes < 0.6 * full.size_bytes
    assert half.top1_agreement >= 0.9
    assert OnnxClassifier(tmp_path / "b.onnx").run(np.zeros((1, 3, 16, 24), np.float32)).any()


@pytest.mark.slow  # two exports
def test_networks_of_timm_are_quantized_too(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32, num_classes=10).eval()
    full = export_onnx(model, tmp_path / "fp32.onnx")
    eight = export_onnx(model, tmp_path / "int8.onnx", precision="int8-dynamic")
    assert 0.25 < eight.size_bytes / full.size_bytes < 0.5  # but for the patch projection


def test_network_that_takes_several_sizes_is_exported_at_its_own(tmp_path: Path) -> None:
    arguments = {"subnet": SUBNET, "img_size": (16, 24), "dynamic_img_size": True}
    model = create_model("autoformer_nano", **arguments).eval()
    model.load_state_dict(small_model().state_dict())
    export_onnx(model, tmp_path / "net.onnx")
    assert OnnxClassifier(tmp_path / "net.onnx").metadata.input_size == (16, 24)


@pytest.mark.slow  # another export
def test_other_input_size_is_that_of_set_input_size(tmp_path: Path) -> None:
    export(tmp_path / "net.onnx", img_size=(32, 16))
    resized = create_model("autoformer_nano", subnet=SUBNET, img_size=(16, 24)).eval()
    resized.load_state_dict(small_model().state_dict())
    resized.set_input_size((32, 16))
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        expected = resized(images).numpy()
    found = OnnxClassifier(tmp_path / "net.onnx").run(images.numpy())
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.slow  # two minutes and more
@pytest.mark.parametrize(
    ("space", "seed"),
    [("nano", i) for i in range(50)]
    + [(name, i) for name in ("tiny", "small", "base") for i in range(3)],
)
def test_random_subnets_agree(tmp_path: Path, space: str, seed: int) -> None:
    rng = random.Random(seed)
    subnet = SPACES[space].sample(rng)
    side = 16 if space == "nano" else 48
    model = create_model(f"autoformer_{space}", subnet=subnet, img_size=side)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2 if "rel_pos" in name else 0.05)
    report = export_onnx(model, tmp_path / "net.onnx")
    assert report.top1_agreement == 1
    assert report.size_bytes < 1.02 * 4 * report.params + 60_000  # names and labels


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "int4"}, "precision is 'int4'; expected one of"),
        ({"opset": 17}, "opset is 17; expected 18 to 22"),
        ({"batch_size": 0}, "batch_size is 0; expected a positive whole number"),
        (
            {"img_size": 30},
            r"img_size is 30; expected positive multiples of the patch size \(4, 4\)",
        ),
        ({"precision": "int8-static"}, "int8-static needs calibration images"),
        ({"calibration": "x"}, "no other precision uses any"),
        ({"precision": "int8-static", "calibration": []}, "calibration holds no image"),
        ({"precision": "int8-static", "calibration": "none"}, "none does not exist"),
        ({"path": "net.pb"}, "expected a file name that ends in .onnx"),
        ({"path": "no/net.onnx"}, "does not exist; make it first"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: Any, text: str) -> None:
    path = tmp_path / options.pop("path", "net.onnx")
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        export(path, **options)
    assert list(tmp_path.iterdir()) == []


class LoRA(torch.nn.Module):
    """A linear layer with an adapter beside it, as peft wraps it."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight, self.bias = base_layer, base_layer.weight, base_layer.bias


class OwnLinear(torch.nn.Linear):
    """A linear layer that computes something else, as loralib's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Wrapper(torch.nn.Module):
    """A model around another one, as peft's."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.num_classes, self.pretrained_cfg = base, 10, base.pretrained_cfg


def replaced(name: str, part: Any, **arguments: Any) -> Any:
    model = create_model("autoformer_nano", subnet=SUBNET, **arguments)
    if name:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, part)
    return model


CROP = {"pretrained_cfg_overlay": {"crop_mode": "border"}}
LORA = LoRA(torch.nn.Linear(128, 192))


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (replaced("", None, num_classes=0), {}, "no classifier"),
        (replaced("", None, **CROP), {}, "crop mode 'border' is unknown; expected center or squ"),
        (replaced("", None, in_chans=1), {"preprocess": True}, "takes 1 channels; preprocessing a"),
        (
            replaced("blocks.1.attn.qkv", LORA),
            {},
            r"blocks\.1\.attn\.qkv is a .*\.LoRA; expected a plain Linear: merge adapters such",
        ),
        (replaced("blocks.0.attn.proj", OwnLinear(128, 128)), {}, "OwnLinear; expected a plain L"),
        (replaced("blocks.0.attn", torch.nn.Identity()), {}, "expected a plain RelPosAttention"),
        (replaced("blocks.1", torch.nn.Identity()), {}, "Identity; expected a plain Block"),
        (Wrapper(replaced("blocks.1.mlp", torch.nn.Identity())), {}, "expected a plain Mlp: merge"),
        (freeze(replaced("", None)), {}, "frozen model cannot be exported: give the model that"),
    ],
    ids=[
        "headless",
        "crop",
        "grey",
        "lora",
        "own-linear",
        "attention",
        "block",
        "wrapped",
        "frozen",
    ],
)
def test_wrong_models_are_refused(tmp_path: Path, model: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        export_onnx(model, tmp_path / "net.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_wrapped_model_is_exported(tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(torch.compile(small_model(), backend="eager"))
    assert export_onnx(wrapped, tmp_path / "net.onnx").top1_agreement == 1
    assert OnnxClassifier(tmp_path / "net.onnx").metadata.subnet == SUBNET.to_dict()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ((onnx_check, "TOLERANCES", {"fp32": 1e-12}), "fp32 network differs from PyTorch by .*;"),
        ((onnx_check.np, "isfinite", lambda _: np.zeros(1, bool)), "returns NaN or infinity;"),
    ],
    ids=["differs", "nan"],
)
def test_file_that_differs_is_not_left_behind(
    changed: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"before")
    monkeypatch.setattr(*changed)
    with pytest.raises(ValueError, match=rf"{text} nothing was written"):
        export(tmp_path / "net.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
