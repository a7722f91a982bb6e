"""From a folder to the Hub and back, with huggingface_hub's own client against a local server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.weights.checkpoint import CheckpointError
from hub.folder import main as make_folder
from hub.publish import git_blob_id, main
from tests.helpers.loopback_hub import WORD, Failure, HubServer, serve_hub

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

REPO = "someone/nano"
SUBNET = az.SPACES["nano"].smallest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "nano"
    assert make_folder(["autoformer_nano", str(folder), "--repo", REPO, "--supernet"]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "nano"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    # Between two tries huggingface_hub waits for seconds, and writes of it.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with serve_hub(monkeypatch) as server:
        yield server


def publish(folder: Path, *options: str) -> int:
    return main([str(folder), "--repo", REPO, *options])


def test_without_execute_nothing_is_sent(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder) == 0
    assert hub.commits == {}
    assert not [request for request in hub.requests if not request.startswith("GET")]
    printed = capsys.readouterr().out
    listed = json.loads(printed.splitlines()[-1])["files"]
    assert {file["name"]: file["state"] for file in listed} == {
        path.name: "new" for path in folder.iterdir()
    }
    assert f"nothing was sent to {REPO}: give --execute" in printed


def test_what_was_published_comes_back_the_same(
    folder: Path, hub: HubServer, tmp_path: Path
) -> None:
    assert publish(folder, "--execute") == 0
    assert hub.files(REPO) == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(hub.objects) == 3  # golden, model and supernet went by LFS

    name, cache = f"hf-hub:{REPO}", tmp_path / "cache"
    images = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
    expected = az.create_model("autoformer_nano", pretrained=True).eval()
    found = timm.create_model(name, pretrained=True, cache_dir=cache).eval()
    subnet = az.create_model(name, pretrained=True, subnet=SUBNET, cache_dir=cache).eval()
    cut = az.create_model("autoformer_nano", pretrained=True, subnet=SUBNET).eval()
    with torch.no_grad():
        assert torch.equal(found(images), expected(images))
        assert torch.equal(subnet(images), cut(images))
    assert az.predict(found, "docs/cat.jpg")[0][0].label == "cat"
    assert az.predict(subnet, "docs/cat.jpg")[0][0].label in az.published.CIFAR10_CLASSES


def test_supernet_is_read_from_the_hub_and_from_a_folder(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert publish(folder, "--execute") == 0
    expected = az.load_supernet("autoformer_nano")
    for name in (f"hf-hub:{REPO}", f"hf-hub:{REPO}@{hub.head(REPO)}", f"local-dir:{folder}"):
        found = az.load_supernet(name)
        assert found.sizes == expected.sizes
        assert all(torch.equal(found.tensors[k], v) for k, v in expected.tensors.items())


def test_equal_files_are_not_sent_again(folder: Path, hub: HubServer) -> None:
    assert publish(folder, "--execute") == 0
    hub.requests.clear()
    assert publish(folder, "--execute") == 0
    assert not [request for request in hub.requests if "commit" in request or "/lfs/" in request]
    assert len(hub.commits[REPO]) == 2  # the empty one, and one


def test_different_file_is_replaced_only_on_demand(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder, "--execute") == 0
    hub.files(REPO)["README.md"] = b"of somebody else"  # type: ignore[index]
    before = len(hub.commits[REPO])
    assert publish(folder, "--execute") == 2
    assert "has other files named README.md: give --replace" in capsys.readouterr().err
    assert len(hub.commits[REPO]) == before
    assert publish(folder, "--execute", "--replace") == 0
    assert hub.files(REPO)["README.md"] == (folder / "README.md").read_bytes()  # type: ignore[index]


def test_damaged_folder_is_not_published(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_text("changed")
    assert publish(folder, "--execute") == 2
    assert "is not published: sha256: README.md has another sha256" in capsys.readouterr().err
    assert hub.commits == {}


REFUSALS = {
    "cannot create": ("POST /api/repos/create", Failure(403)),
    "not logged in": ("POST /api/repos/create", Failure(401)),
    "no rights": ("preupload", Failure(403)),
    "batch fails": ("objects/batch", Failure(500, times=99)),
    "upload is cut": ("PUT /lfs", Failure(0, after_bytes=100, times=99)),
    "too many requests": ("POST .*/commit/", Failure(429, times=99)),
    "commit fails": ("POST .*/commit/", Failure(500, times=99)),
    "cannot list": ("GET .*/tree/", Failure(500, times=99)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_is_one_line_and_the_next_try_goes_on(
    case: str, folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse(*REFUSALS[case])
    assert publish(folder, "--execute") == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith(f"python -m hub.publish: {REPO}: ")
    assert "Traceback" not in errors
    assert WORD not in errors
    sent = len(hub.objects)
    hub.failures.clear()
    hub.requests.clear()
    assert publish(folder, "--execute") == 0
    assert len([request for request in hub.requests if "PUT /lfs" in request]) == 3 - sent


def test_what_arrives_damaged_is_reported(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.damages = "config.json"
    assert publish(folder, "--execute") == 1
    assert "is not what was sent: config.json" in capsys.readouterr().err


READING: dict[str, tuple[Callable[[HubServer], object], str]] = {
    "missing repository": (lambda hub: hub.commits.clear(), "404"),
    "no supernet": (
        lambda hub: (hub.files(REPO) or {}).pop("supernet.safetensors"),
        "has no supernet",
    ),
    "gated": (lambda hub: setattr(hub, "is_gated", True), "401|restricted"),
    "server error": (lambda hub: hub.refuse("resolve", Failure(500, times=99)), "500"),
    "too many requests": (lambda hub: hub.refuse("resolve", Failure(429, times=99)), "429"),
}


@pytest.mark.parametrize("case", READING)
def test_supernet_that_cannot_be_had_says_why(
    case: str, folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert publish(folder, "--execute") == 0
    monkeypatch.delenv("HF_TOKEN")
    happens, reason = READING[case]
    happens(hub)
    with pytest.raises(CheckpointError, match=f"hf-hub:{REPO}.*({reason})") as caught:
        az.load_supernet(f"hf-hub:{REPO}")
    assert "\n" not in str(caught.value)


def test_download_that_is_cut_goes_on_where_it_was(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert publish(folder, "--execute") == 0
    hub.refuse("GET .*/resolve/.*supernet", Failure(200, after_bytes=100_000))
    found = az.load_supernet(f"hf-hub:{REPO}")
    assert all(
        torch.equal(found.tensors[k], v)
        for k, v in az.load_supernet("autoformer_nano").tensors.items()
    )


def test_git_blob_id_is_gits() -> None:
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
