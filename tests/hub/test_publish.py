"""From a folder to the Hub and back, with huggingface_hub's own client against a local server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import HfApi

import autoformer_zoo as az
from autoformer_zoo.classify.predict import class_names
from autoformer_zoo.published import MODELS
from autoformer_zoo.weights.checkpoint import CheckpointError, save_supernet
from autoformer_zoo.weights.header import cfg_to_notes
from hub.folder import main as make_folder
from hub.publish import PublishConfig, PublishError, git_blob_id, main, plan
from hub.publish import publish as upload
from tests.helpers.loopback_hub import WORD, Failure, HubServer, serve_hub
from tests.helpers.made_weights import SUBNET, make_supernet

CLIENT = tuple(int(part) for part in huggingface_hub.__version__.split(".")[:2])
pytestmark = [
    # huggingface_hub's own call of its HTTP library.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes"),
    pytest.mark.skipif(CLIENT < (0, 30), reason="older clients do not find the local server"),
]

REPO = "someone/small"
SUPERNET = replace(make_supernet(), metadata=cfg_to_notes(MODELS["autoformer_nano"].data))
OTHER = az.SubnetConfig(1, 64, (2,), (2.0,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small subnet and its supernet."""
    root = tmp_path_factory.mktemp("folder")
    save_supernet(SUPERNET, root / "supernet.safetensors")
    (root / "subnet.json").write_text(SUBNET.to_json())
    arguments = [str(root / "supernet.safetensors"), str(root / "made"), "--repo", REPO]
    assert make_folder([*arguments, "--subnet", str(root / "subnet.json"), "--supernet"]) == 0
    return root / "made"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "made"
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
    images = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    found = timm.create_model(name, pretrained=True, cache_dir=cache).eval()
    other = az.create_model(name, pretrained=True, subnet=OTHER, cache_dir=cache).eval()
    with torch.no_grad():
        for model, subnet in ((found, SUBNET), (other, OTHER)):
            assert torch.equal(model(images), az.extract_subnet(SUPERNET, subnet)(images))
            assert class_names(model)[3] == "cat"


def test_supernet_is_read_from_the_hub_and_from_a_folder(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert publish(folder, "--execute") == 0
    for name in (f"hf-hub:{REPO}", f"hf-hub:{REPO}@{hub.head(REPO)}", f"local-dir:{folder}"):
        found = az.load_supernet(name)
        assert found.sizes == SUPERNET.sizes
        assert all(torch.equal(found.tensors[k], v) for k, v in SUPERNET.tensors.items())


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


def test_file_that_somebody_else_adds_meanwhile_is_kept(folder: Path, hub: HubServer) -> None:
    files = plan(config := PublishConfig(folder, REPO, execute=True), api := HfApi())
    hub.commits[REPO] = [("0" * 40, {"README.md": b"of somebody else"})]
    with pytest.raises(PublishError, match=r"README.md was changed meanwhile: try again"):
        upload(config, api, files)
    assert hub.files(REPO) == {"README.md": b"of somebody else"}


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


@pytest.mark.skipif(CLIENT < (1, 0), reason="older clients go on at the next call only")
def test_download_that_is_cut_goes_on_where_it_was(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert publish(folder, "--execute") == 0
    hub.refuse("GET .*/resolve/.*supernet", Failure(200, after_bytes=10_000))
    found = az.load_supernet(f"hf-hub:{REPO}")
    assert all(torch.equal(found.tensors[k], v) for k, v in SUPERNET.tensors.items())


def test_git_blob_id_is_gits() -> None:
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
