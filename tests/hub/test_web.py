"""The page: what the build writes, and its preparation of images against Pillow's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoformer_zoo.onnx.classifier import prepare
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import OnnxMetadata
from autoformer_zoo.published import SPACES, SUBNETS
from hub.web import networks
from hub.web.__main__ import main
from hub.web.build import describe_input, fill
from tests.helpers.onnx_models import small_model

HELPERS = Path(__file__).parents[1] / "helpers"
COEFFICIENTS = networks.FOLDER / "tiny.npz"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the build takes from onnxruntime-web, empty ones."""
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "dist").mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / name).touch()
    (folder / "package.json").write_text('{"version": "0.0.1"}')
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "a<b.onnx"
    export_onnx(small_model(), path)
    return path


def test_build_lists_every_network_and_stores_every_file(
    tmp_path: Path, runtime: Path, exported: Path
) -> None:
    out = tmp_path / "site"
    assert main([str(out), str(exported), "--runtime", str(runtime)]) == 0
    written = json.loads((out / "models.json").read_text())
    [network] = written["networks"]
    [file] = network["files"]
    assert file["precision"] == "fp32"
    assert (out / file["path"]).read_bytes() == exported.read_bytes()
    assert len(written["labels"][network["labels"]]) == small_model().num_classes
    page = (out / "index.html").read_text()
    assert f'value="{file["path"]}" aria-label="a&lt;b, fp32" checked' in page
    assert "0.0.1" in page
    assert not re.search("@[A-Z]+@", page)
    # The service worker's list is complete: all files but itself.
    stored = json.loads(re.findall("const FILES = (.*);", (out / "sw.js").read_text())[0])
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(stored) == found - {"sw.js"} | {"./"}


def test_page_names_no_other_origin() -> None:
    for path in (Path(networks.__file__).parent / "page").iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text), path.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OUT", "--runtime", "EMPTY"], "lacks dist/ort.wasm.bundle.min.mjs"),
        (["EMPTY"], "exists; give the name of a new folder"),
        (["OUT", "autoformer_nanno"], "no model is called 'autoformer_nanno'"),
        (["OUT", "FILE", "FILE"], "networks have the same name"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hub.web.build.nano_front", list)
    places = {"OUT": tmp_path / "site", "EMPTY": tmp_path, "FILE": exported}
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not places["OUT"].exists()


def test_missing_npm_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hub.web.build.nano_front", list)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "site")]) == 2
    assert "install Node.js, or give --runtime FOLDER" in capsys.readouterr().err


def test_file_that_prepares_images_is_refused(
    tmp_path: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images.onnx"
    export_onnx(small_model(), path, preprocess=True)
    assert main([str(tmp_path / "site"), str(path), "--runtime", str(runtime)]) == 2
    assert "export it without --preprocess" in capsys.readouterr().err


@pytest.mark.parametrize("predicted", [False, True])
def test_nano_front_rises_to_the_published_subnet(
    predicted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if predicted:  # any coefficients do: whose they are is not this test's matter
        shutil.copy(COEFFICIENTS, tmp_path / "nano.npz")
    monkeypatch.setattr(networks, "FOLDER", tmp_path)
    monkeypatch.setattr("autoformer_zoo.specialization.predictor.FOLDER", tmp_path)
    front = networks.nano_front()
    subnets = [network.source.cfg for network in front]
    macs = [networks.macs_cost(SPACES["nano"]).value(subnet) for subnet in subnets]
    assert macs == sorted(set(macs))
    assert len(front) == networks.ALONG_FRONT
    assert subnets[-1] == SUBNETS["autoformer_nano"]
    assert all(map(SPACES["nano"].contains, subnets))
    kinds = [network.top1.kind if network.top1 else None for network in front]
    assert kinds == ["predicted" if predicted else None] * 3 + ["measured"]


def test_gaps_keep_the_indentation() -> None:
    assert fill("<ul>\n  @ROWS@\n</ul>", {"ROWS": "a\nb"}) == "<ul>\n  a\n  b\n</ul>"


def input_of(size: tuple[int, int], interpolation: str, crop_pct: float, mode: str) -> OnnxMetadata:
    mean = (0.5, 0.5, 0.5)
    plain = OnnxMetadata(size, 10, mean, mean, interpolation, crop_pct, None, "fp32", False, False)
    return replace(plain, crop_mode=mode)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    ("shape", "metadata"),
    [
        ((300, 451), input_of((32, 32), "bicubic", 1.0, "center")),
        ((451, 301), input_of((64, 64), "bilinear", 0.875, "center")),
        ((17, 23), input_of((32, 32), "bicubic", 0.9, "center")),
        ((120, 90), input_of((32, 48), "bicubic", 0.875, "center")),
        ((120, 90), input_of((32, 32), "bicubic", 1.0, "squash")),
    ],
    ids=["down", "bilinear", "up", "oblong", "squash"],
)
def test_page_prepares_images_as_python_does(
    shape: tuple[int, int], metadata: OnnxMetadata, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    (tmp_path / "pixels").write_bytes(image.convert("RGBA").tobytes())
    described = describe_input(metadata)
    # An .mjs file that imports a .js one: node asks for its type, and warns.
    command = ["node", "--no-warnings", "--experimental-default-type=module"]
    words = [HELPERS / "prepare.mjs", tmp_path / "pixels", shape[1], shape[0]]
    run = subprocess.run(
        [*command, *map(str, words), json.dumps(described)], capture_output=True, timeout=100
    )
    assert run.returncode == 0, run.stderr.decode()
    expected = (prepare(image, metadata).transpose(1, 2, 0) * 0.5 + 0.5) * 255
    found = np.frombuffer(run.stdout, np.uint8).reshape(expected.shape)
    # Exact with Pillow before 13; newer ones may take rows first, and round otherwise.
    assert np.abs(found - np.rint(expected)).max() <= 1
    assert (found == np.rint(expected)).mean() > 0.9
