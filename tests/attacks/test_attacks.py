"""One test for each row of docs/security.md: what is refused, at what cost, and that nothing leaks.

The files are made here. Each is read in a process of its own, which must answer with a documented
exception within 2 seconds of processor time and 256 MB of extra memory, and must leave nothing
behind.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import autoformer_zoo as az
from autoformer_zoo.classify.images import read_image
from autoformer_zoo.cli.inputs import read_config
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.onnx.metadata import PREFIX, OnnxMetadata
from autoformer_zoo.weights.checkpoint import open_checkpoint
from autoformer_zoo.weights.pretrained import CACHE_VARIABLE, WEIGHTS_VARIABLE, cache_path
from hub.checksums import differences
from tests.helpers.attacked import attack
from tests.helpers.hostile import RunsCode, rezipped, saved, state, zip_of
from tests.helpers.loopback import Reply, serve
from tests.helpers.made_downloads import OFFICIAL_FILE, PATH, create, redirect
from tests.helpers.made_weights import make_supernet, supernet_file

SECONDS, BYTES = 2.0, 256e6
DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
DEEP = "[" * 200_000 + "]" * 200_000

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

Case = tuple[Callable[[Path], Any], Callable[[Any], Any], str, str]  # make, read, error, text


def header_of(entries: dict[str, Any], data: int = 0, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def write(name: str, content: Callable[[Path], bytes] | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content(folder) if callable(content) else content)
        return path

    return make


def sparse(name: str, head: bytes, size: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(head)
        with path.open("r+b") as file:
            file.truncate(size)
        return path

    return make


def many_tensors(count: int) -> bytes:
    text = ",".join(
        f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count)
    )
    return struct.pack("<Q", len(text) + 2) + f"{{{text}}}".encode()


def overlapping_zip(folder: Path) -> bytes:
    """Let every entry of the directory stand for the one large entry that is there."""
    content = zip_of({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(1 << 20)})
    start = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", start + 1)
    end = content.index(b"PK\x05\x06")
    copies = 300
    directory = content[start:second] + content[second:end] * copies
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 1 + copies, 1 + copies, len(directory))
    return content[:start] + directory + bytes(tail)


def onnx_file(folder: Path, location: str = "", **properties: str) -> bytes:
    """Return a small classifier, its weight in the file `location` if one is given."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3 * 4 * 4, 2], np.zeros(96, np.float32))
    if location:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="length", value="384")
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    half = (0.5, 0.5, 0.5)
    about = OnnxMetadata((4, 4), 2, half, half, "bicubic", 1.0, ("a", "b"), "fp32", False, False)
    helper.set_model_props(model, {**about.to_properties(), **properties})
    return model.SerializeToString()


def external(location: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "secret.bin").write_bytes(bytes(384))
        (folder / "inner").mkdir()
        path = folder / "inner" / "net.onnx"
        path.write_bytes(onnx_file(folder, location.format(folder=folder)))
        return path

    return make


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def linked_folder(folder: Path) -> Path:
    (folder / "artefact").mkdir()
    (folder / "artefact" / "SHA256SUMS").write_text("")
    (folder / "artefact" / "model.safetensors").symlink_to("/etc/passwd")
    return folder / "artefact"


def sums_outside(folder: Path) -> Path:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n")
    return folder


def subnet_json(**changes: Any) -> Callable[[Path], str]:
    sizes = {"depth": 1, "embed_dim": 64, "num_heads": [1], "mlp_ratio": [4.0], **changes}
    return lambda folder: json.dumps(sizes)


def headed(folder: Path, **changes: str) -> bytes:
    """Return a canonical file with other entries in its header."""
    from autoformer_zoo.weights.checkpoint import save_supernet

    save_supernet(make_supernet(), folder / "whole")
    content = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"].update(changes)
    return header_of(header) + content[8 + length :]


make_model = az.create_model
CASES: dict[str, list[Case]] = {
    "malicious pickle": [
        (
            write("a.pth", lambda f: saved({"model": state(), "x": RunsCode(f / "executed")})),
            open_checkpoint,
            "CheckpointError",
            "could run code; it was not executed",
        ),
    ],
    "header bomb": [
        (
            sparse("a.safetensors", struct.pack("<Q", 99 << 20) + b'{"', 100 << 20),
            open_checkpoint,
            "CheckpointError",
            "header claims",
        ),
        (
            write("a.safetensors", struct.pack("<Q", 1 << 62) + b"{}"),
            open_checkpoint,
            "CheckpointError",
            "header claims",
        ),
        (
            write("a.safetensors", many_tensors(500_000)),
            open_checkpoint,
            "CheckpointError",
            "header claims",
        ),
        (
            write("a.safetensors", many_tensors(15_000)),
            open_checkpoint,
            "CheckpointError",
            "not an AutoFormer's",
        ),
    ],
    "overlapping offsets": [
        (
            write(
                "a.safetensors",
                header_of({"a": entry([8], 0, 32), "b": entry([8], 0, 32)}, data=32),
            ),
            open_checkpoint,
            "CheckpointError",
            "damaged or truncated safetensors",
        ),
    ],
    "absurd shapes": [
        (
            write("a.safetensors", header_of({"a": entry([1 << 40, 1 << 40], 0, 32)}, data=32)),
            open_checkpoint,
            "CheckpointError",
            "damaged or truncated safetensors",
        ),
        (
            write("a.safetensors", lambda f: headed(f, img_size="[4611686018427387904, 64]")),
            open_checkpoint,
            "CheckpointError",
            "pos_embed",
        ),
        (
            subnet_json(depth=10**9),
            az.SubnetConfig.from_json,
            "ValueError",
            "",
        ),
        (
            subnet_json(depth=10**5, num_heads=[1] * 10**5, mlp_ratio=[4.0] * 10**5),
            lambda text: make_model("autoformer_tiny", subnet=az.SubnetConfig.from_json(text)),
            "ValueError",
            "depth is 100000",
        ),
        (
            subnet_json(embed_dim=10**9),
            lambda text: make_model("autoformer_tiny", subnet=az.SubnetConfig.from_json(text)),
            "ValueError",
            "embed_dim is 1000000000",
        ),
    ],
    "path traversal in names": [
        (
            write("a.safetensors", header_of({"../../escaped": entry([8], 0, 32)}, data=32)),
            open_checkpoint,
            "CheckpointError",
            "not an AutoFormer's",
        ),
        (sums_outside, differences, "ValueError", "is not a digest and a file's name"),
        (
            lambda folder: "hf-hub:../../escaped",
            az.load_supernet,
            "CheckpointError",
            "cannot be downloaded",
        ),
    ],
    "ONNX external data": [
        (external("../secret.bin"), OnnxClassifier, "ValueError", "external data is in"),
        (external("{folder}/secret.bin"), OnnxClassifier, "ValueError", "external data"),
        (external("/proc/self/environ"), OnnxClassifier, "ValueError", "external data"),
    ],
    "zip bomb": [
        (
            write(
                "a.pth",
                lambda f: rezipped(saved({"model": {"x": bytes(1 << 26)}}), zipfile.ZIP_DEFLATED),
            ),
            open_checkpoint,
            "CheckpointError",
            "is a compressed zip archive",
        ),
        (
            write("a.pth", overlapping_zip),
            open_checkpoint,
            "CheckpointError",
            "zip archive",
        ),
    ],
    "symbolic links": [
        (linked_folder, differences, "ValueError", "is a link; expected files"),
    ],
    "image bomb": [
        (write("a.png", png(60_000, 60_000)), read_image, "ValueError", "pixels"),
        (write("a.png", png(2**31 - 1, 2**31 - 1)), read_image, "ValueError", ""),
        (
            write("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
            read_image,
            "ValueError",
            "is a PostScript program, which is not run",
        ),
    ],
    "depth bomb in JSON": [
        (lambda folder: DEEP, az.SubnetConfig.from_json, "ValueError", "is not JSON"),
        (lambda folder: DEEP, az.SearchSpace.from_json, "ValueError", "is not JSON"),
        (
            write("a.safetensors", lambda f: headed(f, sizes=DEEP)),
            open_checkpoint,
            "CheckpointError",
            "header is damaged",
        ),
        (
            write("a.safetensors", header_of({}, length=400_000)[:8] + DEEP.encode()),
            open_checkpoint,
            "CheckpointError",
            "",
        ),
        (
            write("a.onnx", lambda f: onnx_file(f, **{PREFIX + "labels": DEEP})),
            OnnxClassifier,
            "ValueError",
            "damaged metadata",
        ),
        (
            write("a.json", f'{{"results": {DEEP}}}'.encode()),
            read_config,
            "ValueError",
            "a.json: ",
        ),
    ],
}
CHECKED_ONE_BY_ONE = ("hash mismatch", "mirror substitution")


@pytest.mark.parametrize(
    ("row", "index"), [(row, i) for row, cases in CASES.items() for i in range(len(cases))]
)
def test_attack_is_refused_cheaply_and_leaves_nothing(row: str, index: int, tmp_path: Path) -> None:
    make, read, error, text = CASES[row][index]
    folder = tmp_path / "given"
    folder.mkdir()
    given = make(folder)
    before = sorted(tmp_path.rglob("*"))

    outcome = attack(lambda: read(given))

    assert outcome.error == error, outcome
    assert re.search(re.escape(text), outcome.text), outcome
    assert len(outcome.text) < 2000
    assert outcome.seconds < SECONDS
    assert outcome.extra_bytes < BYTES
    assert sorted(tmp_path.rglob("*")) == before  # nothing executed, nothing written


def test_small_external_file_beside_the_network_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(384))
    (tmp_path / "net.onnx").write_bytes(onnx_file(tmp_path, "weights.bin"))
    assert OnnxClassifier(tmp_path / "net.onnx").labels == ("a", "b")


# Downloads


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def _written_outside(tmp_path: Path, cache: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path != cache and cache not in path.parents]


def test_hash_mismatch_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({PATH: Reply(OFFICIAL_FILE)}) as server:
        source = redirect(monkeypatch, "official-tiny", server.url + PATH, sha256="0" * 64)
        outcome = attack(lambda: create(source.url))
    assert outcome.error == "CheckpointError"
    assert "expected" in outcome.text
    assert outcome.seconds < SECONDS
    assert outcome.extra_bytes < BYTES
    assert list(cache.iterdir()) == []
    assert _written_outside(tmp_path, cache) == []


def test_mirror_that_substitutes_a_file_is_noticed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({PATH: Reply(OFFICIAL_FILE)}) as server:
        create(server.url + PATH)
        next(cache.glob("*.safetensors")).unlink()
        other = make_supernet(bias_rule="packed_prefix", seed=9)
        server.replies[PATH] = Reply(supernet_file(other))
        outcome = attack(lambda: create(server.url + PATH))
    assert outcome.error == "CheckpointError"
    assert "the file changed" in outcome.text
    assert outcome.seconds < SECONDS
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert _written_outside(tmp_path, cache) == []


def test_link_in_the_cache_is_replaced_not_followed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({PATH: Reply(OFFICIAL_FILE)}) as server:
        source = redirect(monkeypatch, "official-tiny", server.url + PATH)
        cached = cache_path(source)
        cache.mkdir()
        cached.symlink_to(tmp_path / "elsewhere")
        create(source.url)
    assert cached.is_file()
    assert not cached.is_symlink()
    assert _written_outside(tmp_path, cache) == []


# The document


def test_every_row_of_the_document_has_a_test() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("| threat |")[2].partition("\n\n")[0]
    rows = {line.split("|")[1].strip() for line in table.splitlines()[2:]}
    assert rows == {*CASES, *CHECKED_ONE_BY_ONE}
